"""The questions of one benchmark: its files read once for what is wrong with them, then row by row as they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nemo_axpo.config.schema import DataFileConfig
from nemo_axpo.data.question_table import QuestionTable
from nemo_axpo.data.questions import QuestionRecord, RecordMessage
from nemo_axpo.eval.benchmarks.definition import Benchmark, data_path


@dataclass(frozen=True)
class QuestionPlace:
    """Where a question stands. Example: ``QuestionPlace("vstar-direct_attributes-3", 3)``."""

    id: str
    position: int
    """In the benchmark's table."""


class BenchmarkQuestions:
    """Questions by place. Rows are read again when they are asked, so that images do not fill the memory."""

    def __init__(self, benchmark: Benchmark, *, limit: int | None = None, cache_dir: str | None = None) -> None:
        """Reads every row once. ``limit``: only the first questions.

        DataError naming file, row and field for what cannot be asked; ConfigError for a reader that does not exist, and
        where the data must be downloaded first.
        """
        self.benchmark = benchmark
        file = DataFileConfig(
            path=data_path(benchmark),
            subset=benchmark.subset,
            split=benchmark.split,
            reader=reader_name(benchmark),
            source=benchmark.name,
        )
        self._table = QuestionTable((file,), cache_dir=cache_dir)
        self.places = [QuestionPlace(ref.id, position) for position, ref in enumerate(self._table.refs[:limit])]

    def __len__(self) -> int:
        return len(self.places)

    def record(self, place: QuestionPlace) -> QuestionRecord:
        """The question at a place, its instruction added; its source is the benchmark's name."""
        record = replace(self._table.record(place.position), source=self.benchmark.name)
        return with_instruction(record, self.benchmark.instruction)


def reader_name(benchmark: Benchmark) -> str:
    """As the registry finds it: a file of one's own starts from the directory of the YAML file."""
    file, colon, function = benchmark.reader.rpartition(":")
    is_file = colon and file.endswith(".py")
    return f"{benchmark.directory / file}:{function}" if is_file else benchmark.reader


def with_instruction(record: QuestionRecord, instruction: str) -> QuestionRecord:
    """The record with a last line in its last turn; the same record for an empty instruction."""
    if not instruction:
        return record
    *before, last = record.messages
    return replace(record, messages=(*before, RecordMessage(last.role, _with_line(last.parts, instruction))))


def _with_line(parts: Sequence[str | int], line: str) -> tuple[str | int, ...]:
    *before, last = parts
    if isinstance(last, str):
        return (*before, f"{last.rstrip()}\n{line}")
    return (*before, last, line)
