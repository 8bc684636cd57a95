"""Trajectories of one or more directories as supervised training rows: epoch after epoch, loss on model tokens alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_axpo.data.image_files import ImageFiles
from nemo_axpo.data.images import ImageStore
from nemo_axpo.data.tables import Table, open_tables
from nemo_axpo.data.trajectories import (
    IMAGES_DIRECTORY,
    ROWS_FILE,
    image_processor_fingerprint,
    read_origin,
    tokenizer_fingerprint,
    trajectory_from_row,
)
from nemo_axpo.errors import DataError, rule_message
from nemo_axpo.types import TrainingSample

logger = logging.getLogger(__name__)


class TrajectorySamples:
    """Rows to imitate, so many a step. Every epoch takes each one once, in an order of its own."""

    def __init__(
        self,
        directories: Sequence[str | Path],
        *,
        images: ImageStore,
        tokenizer: Any,
        image_processor: Any,
        max_row_tokens: int,
        seed: int,
        cache_dir: str | None = None,
    ) -> None:
        """``tokenizer``, ``image_processor``: the student's. Rows longer than ``max_row_tokens`` are left out.

        DataError for a directory without trajectories, and for ones that the student would read as something else.
        """
        self._images, self._seed = images, seed
        self._tables: list[Table] = []
        self._files: list[ImageFiles] = []
        self._rows: list[tuple[int, int]] = []
        self._epoch: tuple[int, list[int]] = (-1, [])
        for directory in directories:
            _check_origin(directory, tokenizer=tokenizer, image_processor=image_processor)
            self._open(Path(directory), max_row_tokens=max_row_tokens, cache_dir=cache_dir)
        if not self._rows:
            rule = f"there must be trajectories of at most {max_row_tokens} tokens"
            cure = "raise sft.max_row_tokens, or give other sft.trajectories"
            raise DataError(rule_message(rule, got=f"none in {', '.join(map(str, directories))}", cure=cure))

    def __len__(self) -> int:
        """Trajectories of an epoch."""
        return len(self._rows)

    async def take(self, step: int, *, batch_size: int) -> tuple[TrainingSample, ...]:
        """The rows of one step of the whole job, in an order that is the same on every rank; without their pictures.

        The last step of a run may end with rows of the next epoch. A row's id ends with its place, because an epoch that
        ends within a step may show a trajectory twice in it.
        """
        return tuple(self._sample(index) for index in range(step * batch_size, (step + 1) * batch_size))

    def load_images(self, samples: Sequence[TrainingSample]) -> None:
        """Puts the pictures of these rows into the store. DataError for one that is missing or broken."""
        for sample in samples:
            table, _ = self._place(int(sample.rollout_id.rpartition("#")[2]))
            self._files[table].load(sample.image_ids, images=self._images)

    def _open(self, directory: Path, *, max_row_tokens: int, cache_dir: str | None) -> None:
        (table,) = open_tables(str(directory / ROWS_FILE), cache_dir=cache_dir)
        lengths = [row["num_tokens"] for row in table.select("num_tokens")]
        fitting = [row for row, length in enumerate(lengths) if length <= max_row_tokens]
        logger.info("%s: %d of %d trajectories are trained", directory, len(fitting), len(lengths))
        number = len(self._tables)
        self._tables.append(table)
        self._files.append(ImageFiles(directory / IMAGES_DIRECTORY))
        self._rows += [(number, row) for row in fitting]

    def _sample(self, index: int) -> TrainingSample:
        table, row = self._place(index)
        (values,) = self._tables[table].rows(row, row + 1)
        sample = trajectory_from_row(values).to_sample()
        return replace(sample, rollout_id=f"{sample.rollout_id}#{index}")

    def _place(self, index: int) -> tuple[int, int]:
        """Table and row of the trajectory at a place of the run."""
        epoch, place = divmod(index, len(self))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self)).tolist())
        return self._rows[self._epoch[1][place]]


def _check_origin(directory: str | Path, *, tokenizer: Any, image_processor: Any) -> None:
    """DataError where token ids or pictures mean something else to the student than to the teacher."""
    origin = read_origin(directory)
    for name, held, own in (
        ("tokenizer", origin.tokenizer, tokenizer_fingerprint(tokenizer)),
        ("image processor", origin.image_processor, image_processor_fingerprint(image_processor)),
    ):
        if held != own:
            rule = f"trajectories train token for token, so student and teacher need the same {name}"
            got = f"{held} in {directory}, {own} of the student"
            cure = "distill again with the student's (distill.teacher=endpoint writes rows for model.path)"
            raise DataError(rule_message(rule, got=got, cure=cure))
