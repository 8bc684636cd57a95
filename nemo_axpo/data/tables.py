"""Rows of data files and hub data sets, through HF ``datasets``: by index, or streamed.

A file is converted to Arrow once, cached, and memory-mapped; images stay encoded. A file that ``datasets`` cannot read is
read again piece by piece, so that the message names the line or row group that is broken.
"""

from __future__ import annotations

import contextlib
import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from nemo_axpo.data.arrow_rows import table_rows
from nemo_axpo.errors import DataError, rule_message

Row = Mapping[str, Any]
BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
"""Builder of ``datasets`` by suffix of a file."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FAILURES = (datasets.exceptions.DatasetGenerationError, pyarrow.ArrowException, OSError, ValueError, TypeError)
"""What ``datasets`` raises for data it cannot read."""


@dataclass(frozen=True)
class Table:
    """Rows of one file or hub data set, by index."""

    name: str
    """File, or hub id with split; for messages."""
    data: datasets.Dataset | Sequence[Row]
    directory: Path | None = None
    """Of a local file: where its relative image paths start."""

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, start: int, stop: int) -> Sequence[Row]:
        """Rows ``start`` to ``stop``, images encoded."""
        found = self.data[start:stop]
        return table_rows(found) if isinstance(found, pyarrow.Table) else found

    def select(self, column: str) -> Sequence[Row]:
        """All rows, of one field alone."""
        if isinstance(self.data, datasets.Dataset):
            return table_rows(self.data.select_columns([column])[:])
        return [{column: row[column]} for row in self.data]

    def where(self, index: int) -> str:
        """A row in a message; counted from 1."""
        return f"{self.name} row {index + 1}"


@dataclass(frozen=True)
class TableStream:
    """Rows of one file or hub data set in order, read as they are asked for."""

    name: str
    data: datasets.IterableDataset
    directory: Path | None = None

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Index and row, from the first on. DataError where a row cannot be read."""
        index = 0
        try:
            for table in self.data.iter(batch_size=64):
                for row in table_rows(table):
                    yield index, row
                    index += 1
        except _FAILURES as error:
            if isinstance(error, DataError):
                raise
            cure = "restore the file, or read it without streaming for the exact place"
            raise DataError(
                rule_message(f"{self.name} must be readable after row {index}", got=error, cure=cure)
            ) from None

    def where(self, index: int) -> str:
        """A row in a message; counted from 1."""
        return f"{self.name} row {index + 1}"


def open_tables(
    path: str, *, subset: str | None = None, split: str = "train", cache_dir: str | None = None
) -> list[Table]:
    """Tables of a file, a directory or pattern of files (one each, by name), or a hub id with its subset and split.

    DataError for a path at which there is nothing, and for a file that is broken, naming the place.
    """
    files = local_files(path)
    if not files:
        data = _load(path, subset=subset, split=split, cache_dir=cache_dir, streaming=False)
        return [Table(f"{path}[{split}]", data.with_format("arrow"))]
    return [Table(str(file), _load_file(file, cache_dir=cache_dir), file.parent) for file in files]


def open_streams(
    path: str, *, subset: str | None = None, split: str = "train", cache_dir: str | None = None
) -> list[TableStream]:
    """As :func:`open_tables`, without converting or downloading anything beforehand."""
    files = local_files(path)
    if not files:
        data = _load(path, subset=subset, split=split, cache_dir=cache_dir, streaming=True)
        return [TableStream(f"{path}[{split}]", data.with_format("arrow"))]
    return [
        TableStream(
            str(file),
            datasets.load_dataset(
                BUILDERS[file.suffix], data_files=str(file), split="train", streaming=True, cache_dir=cache_dir
            ).with_format("arrow"),
            file.parent,
        )
        for file in files
    ]


def local_files(path: str) -> list[Path]:
    """The data files at a path, in a directory, or of a pattern; none where ``path`` is a hub id. DataError otherwise."""
    suffixes = ", ".join(BUILDERS)
    where = Path(path)
    if where.is_file():
        if where.suffix not in BUILDERS:
            raise DataError(
                rule_message(f"a data file must end with {suffixes}", got=path, cure="convert or rename it")
            )
        return [where]
    if where.is_dir():
        found = [file for file in where.rglob("*") if file.suffix in BUILDERS and not file.name.startswith(".")]
    else:
        found = [Path(name) for name in glob.glob(path, recursive=True) if Path(name).suffix in BUILDERS]
    if found:
        return sorted(found)
    if not where.exists() and _HUB_ID.fullmatch(path) and where.suffix not in BUILDERS:
        return []
    rule = f"a data path must be a file, a directory or pattern of files ({suffixes}), or a hub id (owner/name)"
    raise DataError(rule_message(rule, got=path, cure="correct it; it is relative to the working directory"))


def _load(path: str, *, subset: str | None, split: str, cache_dir: str | None, streaming: bool) -> Any:
    """A hub data set."""
    try:
        return datasets.load_dataset(path, subset, split=split, cache_dir=cache_dir, streaming=streaming)
    except _FAILURES as error:
        rule = f"the hub data set {path}, {f'subset {subset!r}, ' if subset else ''}split {split!r}, must be readable"
        cure = "check id, split and connection, or download it and give the path of its files"
        raise DataError(rule_message(rule, got=error, cure=cure)) from None


def _load_file(file: Path, *, cache_dir: str | None) -> datasets.Dataset | Sequence[Row]:
    try:
        with _quiet():
            data = datasets.load_dataset(
                BUILDERS[file.suffix], data_files=str(file), split="train", cache_dir=cache_dir
            )
        return data.with_format("arrow")
    except _FAILURES as error:
        return _read_parquet(file, error) if file.suffix == ".parquet" else _read_json(file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and the log of ``datasets``: a run has a display of its own, and a failure is told by us."""
    had_bars, level = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if had_bars:
            datasets.enable_progress_bars()


def _read_parquet(file: Path, error: Exception) -> Sequence[Row]:
    """Names what is broken in a Parquet file; rows where only ``datasets`` could not read it."""
    cure = "restore the file (a download or a write that was cut off leaves such a file)"
    try:
        parquet = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as broken:
        raise DataError(rule_message(f"{file} must be a whole Parquet file", got=broken, cure=cure)) from error
    rows: list[Row] = []
    for group in range(parquet.num_row_groups):
        try:
            rows += parquet.read_row_group(group).to_pylist()
        except (pyarrow.ArrowException, OSError) as broken:
            last = len(rows) + parquet.metadata.row_group(group).num_rows
            rule = f"{file} must be readable; rows {len(rows) + 1} to {last} (row group {group}) are not"
            raise DataError(rule_message(rule, got=broken, cure=cure)) from error
    return rows


def _read_json(file: Path) -> Sequence[Row]:
    """The rows of JSON lines, or of a JSON list, whose fields change their type. DataError naming the broken line."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if text.lstrip().startswith("["):
        return _json_list(file, text)
    rows = []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            is_last = not any(rest.strip() for rest in lines[number:])
            cure = "remove the half-written last line, or write the file again" if is_last else "correct the line"
            raise DataError(rule_message(f"{file} line {number} must be a JSON object", got=error, cure=cure)) from None
    return rows


def _json_list(file: Path, text: str) -> Sequence[Row]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cure = "restore the file (a write that was cut off leaves such a file)"
        raise DataError(rule_message(f"{file} must be a whole JSON list", got=error, cure=cure)) from None
