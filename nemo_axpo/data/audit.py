"""``nemo-axpo check-data``: every row and image of a config's files looked at before anything is trained on them.

Unlike a run, which stops at the first, it goes on after a bad row and reports all. What is usable, and no image of which an
evaluation shows, is written as ``kept.jsonl`` for ``data.files[].keep``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from PIL import Image

from nemo_axpo.config.schema import DataFileConfig
from nemo_axpo.data.image_hashes import HashedImage, SimilarPair, leaked_pairs, perceptual_hash, similar_pairs
from nemo_axpo.data.image_sizes import size_id
from nemo_axpo.data.images import check_aspect_ratio
from nemo_axpo.data.question_table import place_of
from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.registry import get_reader
from nemo_axpo.data.tables import open_tables
from nemo_axpo.errors import DataError
from nemo_axpo.types import ImageId, Question

if TYPE_CHECKING:
    from nemo_axpo.rollouts.prompt_meter import PromptMeter

_BATCH = 256
"""Rows in memory at a time."""


@dataclass
class FileAudit:
    """What one entry of ``data.files`` holds."""

    num_rows: int = 0
    num_left_out: int = 0
    """By the reader, on purpose."""
    ids: list[str] = field(default_factory=list)
    """Of usable questions, in order; an id that occurs twice is usable once."""
    sources: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    images: list[HashedImage] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    """Of every question whose prompt was measured, those that leave no room included."""
    problems: list[str] = field(default_factory=list)
    """One message per row that cannot be used, naming row and field."""


@dataclass(frozen=True)
class DataAudit:
    """What a config's files hold, and which images occur twice."""

    train: FileAudit
    evaluation: FileAudit
    duplicates: Sequence[SimilarPair]
    """Within the training questions."""
    leaks: Sequence[SimilarPair]
    """First a training image, second the evaluation's."""
    max_row_tokens: int | None = None
    """What every prompt was compared with; None where prompts were not measured."""

    @property
    def kept(self) -> list[str]:
        """Usable training questions without an image that an evaluation shows."""
        leaked = {pair.first.question_id for pair in self.leaks}
        return [question_id for question_id in self.train.ids if question_id not in leaked]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "train": _summary(self.train),
            "evaluation": _summary(self.evaluation),
            "num_kept": len(self.kept),
            "max_row_tokens": self.max_row_tokens,
            "duplicates": [_pair(pair) for pair in self.duplicates],
            "leaks": [_pair(pair) for pair in self.leaks],
        }


def audit(
    files: Sequence[DataFileConfig],
    eval_files: Sequence[DataFileConfig] = (),
    *,
    cache_dir: str | None = None,
    meter: PromptMeter | None = None,
    num_threads: int = 4,
    on_rows: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> DataAudit:
    """Reads all rows, decodes and hashes all images. ``on_rows`` gets file, rows done (first 0), rows in all.

    With ``meter``, questions whose prompt leaves no room in a row are bad too.

    DataError only for a file that cannot be opened at all.
    """
    train, evaluation = (
        _audit(group, cache_dir=cache_dir, meter=meter, num_threads=num_threads, on_rows=on_rows)
        for group in (files, eval_files)
    )
    return DataAudit(
        train,
        evaluation,
        duplicates=similar_pairs(train.images),
        leaks=leaked_pairs(train.images, evaluation.images),
        max_row_tokens=meter.max_row_tokens if meter else None,
    )


def write_audit(result: DataAudit, directory: str | Path) -> Path:
    """``data_report.json`` and ``kept.jsonl``; returns the directory."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    (path / "data_report.json").write_text(json.dumps(result.as_dict(), indent=1, ensure_ascii=False) + "\n")
    lines = [json.dumps({"id": question_id}, ensure_ascii=False) + "\n" for question_id in result.kept]
    (path / "kept.jsonl").write_text("".join(lines), encoding="utf-8")
    return path


def _audit(
    files: Sequence[DataFileConfig],
    *,
    cache_dir: str | None,
    meter: PromptMeter | None,
    num_threads: int,
    on_rows: Callable[[str, int, int], None],
) -> FileAudit:
    result, seen = FileAudit(), {}
    with ThreadPoolExecutor(num_threads) as pool:  # decoding and hashing leave the interpreter's lock
        for file in files:
            for where, record in _records(file, result=result, cache_dir=cache_dir, pool=pool, on_rows=on_rows):
                _add(record, where=where, result=result, seen=seen, meter=meter)
    return result


@dataclass(frozen=True)
class _Read:
    """A row as it was read: its record, question and hashes, or what is wrong with it."""

    record: QuestionRecord | None = None
    question: Question | None = None
    """Its images' ids are their sizes."""
    hashes: tuple[int, ...] = ()
    problem: str = ""


def _records(
    file: DataFileConfig,
    *,
    result: FileAudit,
    cache_dir: str | None,
    pool: ThreadPoolExecutor,
    on_rows: Callable[[str, int, int], None],
) -> Iterator[tuple[str, _Read]]:
    reader = get_reader(file.reader)
    for table in open_tables(file.path, subset=file.subset, split=file.split, cache_dir=cache_dir):
        on_rows(table.name, 0, len(table))
        for start in range(0, len(table), _BATCH):
            rows = table.rows(start, min(start + _BATCH, len(table)))
            places = [place_of(table, index, file) for index in range(start, start + len(rows))]
            for place, read in zip(places, pool.map(partial(_read, reader), rows, places), strict=True):
                result.num_rows += 1
                yield place.where, read
            on_rows(table.name, start + len(rows), len(table))


def _read(reader: Any, row: Any, place: Any) -> _Read:
    try:
        record = reader(row, place)
        images = _RowImages()
        question = record.to_question(images) if record else None
        return _Read(record, question, tuple(images.hashes))
    except DataError as error:
        return _Read(problem=str(error))


class _RowImages:
    """Takes the images of a row as an ImageStore does, and keeps their hashes alone."""

    def __init__(self) -> None:
        self.hashes: list[int] = []

    def add(self, image: Image.Image) -> ImageId:
        check_aspect_ratio(image)
        self.hashes.append(perceptual_hash(image))
        return size_id(image)


def _add(read: _Read, *, where: str, result: FileAudit, seen: dict[str, str], meter: PromptMeter | None) -> None:
    if read.problem:
        result.problems.append(read.problem)
        return
    record = read.record
    if record is None:
        result.num_left_out += 1
        return
    if record.id in seen:
        result.problems.append(f"{where} has the id {record.id!r} of {seen[record.id]}: ids must be unique")
        return
    seen[record.id] = where
    if meter:
        try:
            result.prompt_tokens.append(meter.num_tokens(read.question, where=where))
            meter.check_room(result.prompt_tokens[-1], question_id=record.id, where=where)
        except DataError as error:
            result.problems.append(str(error))
            return
    result.ids.append(record.id)
    result.sources[record.source] += 1
    result.kinds[record.kind] += 1
    result.images += [HashedImage(record.id, index, bits) for index, bits in enumerate(read.hashes)]


def _summary(audit: FileAudit) -> dict[str, Any]:
    counts = {"num_rows": audit.num_rows, "num_usable": len(audit.ids), "num_left_out": audit.num_left_out}
    counts |= {"num_bad": len(audit.problems), "num_images": len(audit.images)}
    named = {"sources": audit.sources, "kinds": audit.kinds, "prompt_tokens": spread(audit.prompt_tokens)}
    return counts | named | {"problems": audit.problems}


def spread(values: Sequence[int]) -> dict[str, float] | None:
    """Smallest, median and largest of some numbers; None of none."""
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None


def _pair(pair: SimilarPair) -> dict[str, Any]:
    named = {
        name: {"id": image.question_id, "image": image.index}
        for name, image in (("first", pair.first), ("second", pair.second))
    }
    return named | {"distance": pair.distance}
