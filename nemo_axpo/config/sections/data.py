"""Which questions a run asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from nemo_axpo.config.sections.base import Count, Section
from nemo_axpo.errors import rule_message


class DataFileConfig(Section):
    """Files of one layout, and what is taken of them."""

    path: str
    """File, directory or pattern of files (.parquet, .jsonl, .json), or a hub id."""
    reader: str = "schema"
    """Their layout: schema, virl39k, fvqa, pyvision, mmfinereason, mmfinereason_hard, that of a benchmark (docs/evaluation.md),
    or ``path/to/file.py:function``."""
    subset: str | None = None
    """Configuration of a hub data set; null: its only one."""
    split: str = "train"
    """Of a hub data set."""
    source: str | None = None
    """Name of the data source, which chooses the verifier; null: the reader's, or the rows' own."""
    image_root: str | None = None
    """Directory that relative image paths start from; null: the file's."""
    keep: str | None = None
    """JSONL file of ids (``nemo-axpo filter`` writes one): other questions are left out."""
    max_questions: Count | None = None
    """So many of them, drawn by id; null: all."""


class DataConfig(Section):
    """Which questions are asked."""

    name: Literal["world", "world_specks", "files"] = "world"
    """``world`` and ``world_specks`` are the embedded world's two tasks; ``files``: the questions of data files."""
    num_questions_per_step: Count = 16
    """B: questions of one step of the whole job."""
    files: tuple[DataFileConfig, ...] = ()
    """What training, distillation and filtering ask."""
    eval_files: tuple[DataFileConfig, ...] = ()
    """What evaluations during training ask; none: the share ``held_out`` of ``files``."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the questions that training never asks, chosen by id, where there are no ``eval_files``."""
    shuffle: bool = True
    """Every epoch has an order of its own; false: the files' order."""
    streaming: bool = False
    """Rows are read as they are asked for, not converted and checked beforehand; needs ``eval_files``."""
    shuffle_buffer: Count = 1_000
    """Questions among which a streamed one is drawn."""
    cache_dir: str | None = None
    """Where ``datasets`` keeps converted files; null: its own place."""

    def problems(self) -> Iterator[str]:
        """Questions that lack their files; whether these can be read is seen when they are."""
        if self.name != "files":
            return
        if not self.files:
            cure = "name them: data=files 'data.files=[{path: questions.jsonl}]' (docs/data.md)"
            yield rule_message("data.name=files needs data.files", got="none", cure=cure)
        if self.streaming and not self.eval_files:
            rule = "data.streaming needs data.eval_files: held-out questions of a stream are not known beforehand"
            yield rule_message(rule, got="none", cure="name some, or set data.streaming=false")
        if self.streaming and any(file.keep for file in self.files):
            cure = "set data.streaming=false"
            yield rule_message("data.files[].keep is for questions that are not streamed", got="streaming", cure=cure)
