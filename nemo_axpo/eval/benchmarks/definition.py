"""What a benchmark is: one YAML file. The shipped ones lie in ``conf/benchmark``; one's own may lie anywhere.

name: my_bench                     # of its records and its verifier
title: My benchmark                # in tables
path: questions.jsonl              # file, directory or pattern, from this file's directory; or hub: owner/name
reader: my_reader.py:read          # or a shipped reader; ``schema``: rows of the question schema
verifiers: [multiple_choice]       # one of which must say right
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemo_axpo.config.load import config_directory
from nemo_axpo.config.messages import did_you_mean
from nemo_axpo.config.schema import VerifierName
from nemo_axpo.errors import ConfigError, rule_message

GROUPS = ("Reasoning", "Perception", "Search")
"""Of the paper's table, in its order."""
PAPER_BENCHMARKS = (
    "mathvision", "dynamath", "math_vr", "vstar", "visual_probe_hard", "hr_bench_4k", "hr_bench_8k", "hr_mmsearch",
    "mmsearch",
)  # fmt: skip
"""The nine benchmarks of the paper, in the order of its table."""
ALL = "all"
"""Stands for them on the command line."""


class Benchmark(BaseModel):
    """One benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    title: str = ""
    """In tables; empty: the name."""
    group: str = ""
    """Of the table; empty: none."""
    paper_name: str | None = None
    """Under which the paper's numbers list it."""
    hub: str | None = None
    """Data set of the Hugging Face hub that publishes it."""
    subset: str | None = None
    """Configuration of the hub's data set."""
    split: str = "test"
    """Of the hub's data set."""
    file: str | None = None
    """File or pattern inside a downloaded copy of the data set."""
    has_images_in_rows: bool = True
    """False: rows hold paths, so that the data set must be downloaded whole."""
    path: str | None = None
    """File, directory or pattern on this machine, from the directory of the YAML file."""
    reader: str
    """A shipped reader, ``module:function`` or ``path/to/file.py:function`` (from the directory of the YAML file)."""
    verifiers: Annotated[tuple[VerifierName, ...], Field(min_length=1)]
    """One of them must say that an answer is right."""
    instruction: str = ""
    """Last line of every question: the form of its answer."""
    measures: tuple[Literal["exact_match", "token_f1"], ...] = ()
    """Means over rollouts that are reported beside the score."""
    num_questions: Annotated[int, Field(ge=1)] | None = None
    """As published; another number is told."""
    directory: Path = Path()
    """Of the YAML file."""

    @property
    def shown_title(self) -> str:
        """Title, or else the name."""
        return self.title or self.name


def load_benchmarks(words: list[str]) -> list[Benchmark]:
    """Benchmarks by name, ``all``, or path of a YAML file; ``=PATH`` behind a word says where its data are. ``all`` stands for
    those of the nine that no other word names: ``all vstar=DIR``.

    ConfigError for a word that names none, for a file that does not fit, and for two benchmarks of one name.
    """
    named = {word.partition("=")[0] for word in words}
    others = [name for name in PAPER_BENCHMARKS if name not in named]
    benchmarks = [_load_word(part) for word in words for part in (others if word == ALL else (word,))]
    names = [benchmark.name for benchmark in benchmarks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(rule_message("every benchmark may be asked once", got=twice, cure="name it once"))
    return benchmarks


def load_benchmark(file: Path, *, data: str | None = None) -> Benchmark:
    """The benchmark of a YAML file. ``data``: where its data are, instead of what the file says."""
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError(f"the file holds {type(values).__name__}, no mapping")
    except (OSError, TypeError, yaml.YAMLError) as error:
        rule = f"a benchmark is a YAML file with its fields; {file} must be one"
        raise ConfigError(rule_message(rule, got=error, cure="correct it; docs/evaluation.md has an example")) from None
    try:
        benchmark = Benchmark.model_validate({**values, "directory": file.resolve().parent})
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(problem, file=file) for problem in error.errors())) from None
    if data is None:
        return benchmark
    where = Path(data).absolute()
    inside = where / benchmark.file if where.is_dir() and benchmark.file else where
    return benchmark.model_copy(update={"path": str(inside)})


def data_path(benchmark: Benchmark) -> str:
    """Path or hub id of its data. ConfigError where it must be downloaded first."""
    if benchmark.path is not None:
        return str(benchmark.directory / benchmark.path)
    if benchmark.hub is not None and benchmark.has_images_in_rows:
        return benchmark.hub
    if benchmark.hub is None:
        rule = f"benchmark {benchmark.name} needs a path or a hub id"
        cure = f"add one of them to its YAML file, or give --benchmark {benchmark.name}=PATH"
        raise ConfigError(rule_message(rule, got="neither", cure=cure))
    rule = f"benchmark {benchmark.name} needs a copy of its data set, whose rows name image files"
    cure = f"hf download {benchmark.hub} --repo-type dataset --local-dir DIR, then --benchmark {benchmark.name}=DIR"
    raise ConfigError(rule_message(rule, got="no path", cure=cure))


def _describe(problem: Any, *, file: Path) -> str:
    field = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        cure = did_you_mean(field, Benchmark.model_fields) or f"there are: {', '.join(Benchmark.model_fields)}"
        return rule_message(f"{file} may hold the fields of a benchmark", got=repr(field), cure=cure)
    rule = f"{file}, field {field!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    cure = Benchmark.model_fields[field].description or "add it"
    return rule_message(rule, got=repr(problem["input"]) if problem["type"] != "missing" else "none", cure=cure)


def _load_word(word: str) -> Benchmark:
    name, equals, data = word.partition("=")
    if name.endswith((".yaml", ".yml")):
        return load_benchmark(Path(name), data=data if equals else None)
    directory = config_directory() / "benchmark"
    shipped = sorted(path.stem for path in directory.glob("*.yaml"))
    if name not in shipped:
        cure = did_you_mean(name, shipped) or f"there are: {', '.join(shipped)}, {ALL}"
        rule = "--benchmark must name a benchmark or a YAML file of one"
        raise ConfigError(rule_message(rule, got=repr(word), cure=cure))
    return load_benchmark(directory / f"{name}.yaml", data=data if equals else None)
