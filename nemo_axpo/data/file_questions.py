"""Questions of data files as a stream by index: epoch after epoch, every epoch in an order of its own.

``train`` asks all questions but those held out; ``eval`` and ``window`` ask the held-out ones, once each: those of
``data.eval_files``, or else the share ``data.held_out`` of the training files, chosen by id.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from nemo_axpo.config.schema import DataConfig
from nemo_axpo.data.images import ImageStore
from nemo_axpo.data.question_table import QuestionTable, question_table, rank_of, read_row
from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.registry import get_reader
from nemo_axpo.data.tables import open_streams
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.types import Question

HELD_OUT_STREAMS = ("eval", "window")


class FileQuestions:
    """Questions by index; question ``i`` is the same in every process. An epoch's ids end with ``~1``, ``~2`` after the
    first, so that ids stay unique within a run."""

    def __init__(
        self,
        table: QuestionTable,
        *,
        positions: Sequence[int],
        images: ImageStore,
        seed: int,
        shuffle: bool,
        repeats: bool,
    ) -> None:
        """``positions``: of the table, that are asked. ``repeats``: begin anew after the last one."""
        self._table, self._positions, self._images = table, list(positions), images
        self._seed, self._shuffle, self._repeats = seed, shuffle, repeats
        self._epoch: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        """Questions of an epoch."""
        return len(self._positions)

    def take(self, start: int, count: int) -> tuple[Question, ...]:
        """Questions ``start`` to ``start + count``, their images stored; fewer at the end of a stream that stops there.

        DataError for an image that is broken.
        """
        stop = start + count if self._repeats else min(start + count, len(self))
        return tuple(self._question(index) for index in range(start, stop))

    def records(self, start: int, count: int) -> list[QuestionRecord]:
        """As :meth:`take`, with the images still encoded."""
        stop = start + count if self._repeats else min(start + count, len(self))
        return [self._record(index) for index in range(start, stop)]

    def _question(self, index: int) -> Question:
        return self._record(index).to_question(self._images)

    def _record(self, index: int) -> QuestionRecord:
        epoch, place = divmod(index, len(self))
        record = self._table.record(self._order(epoch)[place])
        return replace(record, id=f"{record.id}~{epoch}") if epoch else record

    def _order(self, epoch: int) -> list[int]:
        if self._epoch[0] != epoch:
            order = self._positions
            if self._shuffle:
                order = [self._positions[i] for i in np.random.default_rng([self._seed, epoch]).permutation(len(self))]
            self._epoch = (epoch, order)
        return self._epoch[1]


class StreamedQuestions:
    """As :class:`FileQuestions`, read as they are asked for and shuffled within a buffer; for data too large for a disk.

    ``take`` goes forward; an earlier index begins the stream anew.
    """

    def __init__(self, config: DataConfig, *, images: ImageStore, seed: int) -> None:
        self._config, self._images, self._seed = config, images, seed
        self._records: Iterator[QuestionRecord] = iter(())
        self._next: int | None = None

    def take(self, start: int, count: int) -> tuple[Question, ...]:
        """Questions ``start`` to ``start + count``. DataError naming file, row and field for a row that cannot be used."""
        if self._next is None or start < self._next:
            self._records, self._next = self._all(), 0
        for _ in itertools.islice(self._records, start - self._next):
            pass  # what was asked before a resume
        records = list(itertools.islice(self._records, count))
        self._next = start + count
        return tuple(record.to_question(self._images) for record in records)

    def _all(self) -> Iterator[QuestionRecord]:
        for epoch in itertools.count():
            for record in self._shuffled(self._epoch(), epoch=epoch):
                yield replace(record, id=f"{record.id}~{epoch}") if epoch else record

    def _epoch(self) -> Iterator[QuestionRecord]:
        for file in self._config.files:
            reader, count = get_reader(file.reader), 0
            for stream in open_streams(
                file.path, subset=file.subset, split=file.split, cache_dir=self._config.cache_dir
            ):
                for index, row in stream.rows():
                    record = read_row(stream, index, row, file=file, reader=reader)
                    if record is None or count == file.max_questions:
                        continue
                    count += 1
                    yield record

    def _shuffled(self, records: Iterator[QuestionRecord], *, epoch: int) -> Iterator[QuestionRecord]:
        if not self._config.shuffle:
            yield from records
            return
        rng = np.random.default_rng([self._seed, epoch])
        buffer = list(itertools.islice(records, self._config.shuffle_buffer))
        for record in records:
            place = int(rng.integers(len(buffer)))
            yield buffer[place]
            buffer[place] = record
        yield from (buffer[i] for i in rng.permutation(len(buffer)))


def build_file_questions(
    config: DataConfig, *, stream: str, seed: int, images: ImageStore
) -> FileQuestions | StreamedQuestions:
    """The stream ``stream`` of a config. DataError for data that cannot be used, ConfigError where nothing is held out."""
    is_held_out = stream in HELD_OUT_STREAMS
    if config.streaming and not is_held_out:
        return StreamedQuestions(config, images=images, seed=seed)
    if is_held_out and config.eval_files:
        table = question_table(config.eval_files, cache_dir=config.cache_dir)
        positions = list(range(len(table)))
    else:
        table = question_table(config.files, cache_dir=config.cache_dir)
        held_out = _held_out(table, share=0.0 if config.eval_files else config.held_out)
        positions = [i for i in range(len(table)) if (i in held_out) == is_held_out]
    if not positions:
        rule = f"the stream {stream!r} must have questions"
        cure = "give data.eval_files, or change data.held_out"
        raise ConfigError(rule_message(rule, got=f"none, held_out {config.held_out:g}", cure=cure))
    return FileQuestions(
        table, positions=positions, images=images, seed=seed, shuffle=config.shuffle, repeats=not is_held_out
    )


def _held_out(table: QuestionTable, *, share: float) -> set[int]:
    """Positions of the share of questions with the lowest rank; at least one where ``share`` is not 0."""
    count = max(1, round(share * len(table))) if share else 0
    return set(sorted(range(len(table)), key=lambda i: rank_of(table.refs[i].id))[:count])
