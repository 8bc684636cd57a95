"""The usable questions of data files: every row read once and checked, chosen by id, and read again when asked for.

A run learns of a missing field before it starts and not in its last night. Images are decoded only when asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nemo_axpo.config.schema import DataFileConfig
from nemo_axpo.data.questions import QuestionRecord
from nemo_axpo.data.readers.base import Reader, RowPlace
from nemo_axpo.data.readers.registry import get_reader
from nemo_axpo.data.tables import Row, Table, TableStream, open_tables
from nemo_axpo.errors import DataError, rule_message

_SCAN_ROWS = 256
"""Rows in memory at a time while a file is checked, images included."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowRef:
    """One usable row."""

    id: str
    """Question id."""
    table: int
    row: int


class QuestionTable:
    """The records of a config's files by position, in the order of the files."""

    def __init__(self, files: Sequence[DataFileConfig], *, cache_dir: str | None = None) -> None:
        """DataError naming file, row and field for the first row that cannot be used, and for ids that occur twice.

        Of an entry with ``keep``, rows that cannot be used are left out, as are all that are not in it.
        """
        self._tables: list[tuple[Table, DataFileConfig, Reader]] = []
        self.refs: list[RowRef] = []
        for file in files:
            self.refs += self._open(file, cache_dir=cache_dir)
        _check_unique(self.refs, where=self._where)

    def __len__(self) -> int:
        return len(self.refs)

    def record(self, position: int) -> QuestionRecord:
        """The record at a position."""
        ref = self.refs[position]
        table, file, reader = self._tables[ref.table]
        (row,) = table.rows(ref.row, ref.row + 1)
        record = reader(row, place_of(table, ref.row, file))
        assert record is not None and record.id == ref.id, f"{self._where(ref)} has changed since it was checked"
        return record

    def records(self) -> Iterator[QuestionRecord]:
        """All of them, in order."""
        return (self.record(position) for position in range(len(self)))

    def _open(self, file: DataFileConfig, *, cache_dir: str | None) -> list[RowRef]:
        kept = read_ids(file.keep) if file.keep else None
        found, problems, num_rows = [], [], 0
        for table in open_tables(file.path, subset=file.subset, split=file.split, cache_dir=cache_dir):
            number, num_rows = len(self._tables), num_rows + len(table)
            self._tables.append((table, file, get_reader(file.reader)))
            for index, read in _read_all(table, file=file):
                if isinstance(read, DataError):
                    problems.append(read)
                elif read is not None and (kept is None or read.id in kept):
                    found.append(RowRef(read.id, number, index))
                if problems and kept is None:
                    raise problems[0]
        if problems:
            logger.warning("%s: %d rows cannot be used, the first: %s", file.path, len(problems), problems[0])
        chosen = draw(found, count=file.max_questions)
        logger.info("%s: %d of %d rows are asked", file.path, len(chosen), num_rows)
        if not chosen:
            cure = "check reader, keep and max_questions of this entry of data.files"
            raise DataError(rule_message(f"{file.path} must have questions", got=f"none of {num_rows} rows", cure=cure))
        return chosen

    def _where(self, ref: RowRef) -> str:
        return self._tables[ref.table][0].where(ref.row)


@lru_cache(maxsize=4)
def question_table(files: tuple[DataFileConfig, ...], *, cache_dir: str | None) -> QuestionTable:
    """The table of a config's files; asked for again (canaries, evaluations) it is not read again."""
    return QuestionTable(files, cache_dir=cache_dir)


def read_row(
    table: Table | TableStream, index: int, row: Row, *, file: DataFileConfig, reader: Reader
) -> QuestionRecord | None:
    """A row of a table as its reader reads it."""
    return reader(row, place_of(table, index, file))


def draw(refs: Sequence[RowRef], *, count: int | None) -> list[RowRef]:
    """``count`` of the rows, the same ones always, in their order; all where ``count`` is None or there are no more."""
    if count is None or count >= len(refs):
        return list(refs)
    chosen = {ref.id for ref in sorted(refs, key=lambda ref: rank_of(ref.id))[:count]}
    return [ref for ref in refs if ref.id in chosen]


def rank_of(question_id: str) -> bytes:
    """Places ids in an order that has nothing to do with their file's."""
    return hashlib.blake2b(question_id.encode(), digest_size=8).digest()


def read_ids(path: str | Path) -> set[str]:
    """The ids of a JSONL file with a field ``id`` a line. DataError for a line without one."""
    ids = set()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        cure = "give the kept.jsonl of nemo-axpo filter"
        raise DataError(rule_message("keep must name a file that can be read", got=error, cure=cure)) from None
    for number, line in enumerate(lines, start=1):
        try:
            ids.add(json.loads(line)["id"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            rule = f"{path} line {number} must be an object with an id"
            raise DataError(rule_message(rule, got=repr(error), cure="write the file again")) from None
    return ids


def _read_all(table: Table, *, file: DataFileConfig) -> Iterator[tuple[int, QuestionRecord | DataError | None]]:
    """Every row's record, or what is wrong with it; None for one that the reader leaves out."""
    reader = get_reader(file.reader)
    for index, row in _scan(table):
        try:
            yield index, read_row(table, index, row, file=file, reader=reader)
        except DataError as error:
            yield index, error


def _scan(table: Table) -> Iterator[tuple[int, Row]]:
    for start in range(0, len(table), _SCAN_ROWS):
        yield from enumerate(table.rows(start, min(start + _SCAN_ROWS, len(table))), start=start)


def place_of(table: Table | TableStream, index: int, file: DataFileConfig) -> RowPlace:
    """Where a row of a table comes from, for its reader."""
    return RowPlace(table.where(index), file.source, file.image_root or table.directory)


def _check_unique(refs: Sequence[RowRef], *, where: Callable[[RowRef], str]) -> None:
    seen: dict[str, RowRef] = {}
    for ref in refs:
        if ref.id in seen:
            rule = "question ids must be unique over all data files, because groups are formed by them"
            got = f"{ref.id!r} in {where(seen[ref.id])} and {where(ref)}"
            raise DataError(rule_message(rule, got=got, cure="change one, or leave one of the two out"))
        seen[ref.id] = ref
