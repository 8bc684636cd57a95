"""The whole study on a Slurm queue: for every size the warm start, then GRPO and AXPO from it, the benchmarks of base and all
three, and at the end one table and figure.

What is done is read from the run directories, what is queued from squeue and the number that sbatch gave; a second start
queues the rest. Dependencies name jobs that are in the queue, and no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_axpo.config.load import RECIPES, config_directory
from nemo_axpo.errors import ConfigError, RunDirectoryError, rule_message
from nemo_axpo.eval.benchmarks.definition import PAPER_BENCHMARKS, data_path, load_benchmarks
from nemo_axpo.eval.benchmarks.outputs import MARKDOWN
from nemo_axpo.eval.benchmarks.results import FILE as RESULT
from nemo_axpo.eval.benchmarks.results import read_result

ALGORITHMS = ("grpo", "axpo")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""The last file of a Hugging Face checkpoint, in one piece and in several."""


@dataclass(frozen=True)
class Study:
    """What is trained and asked where."""

    models: Path
    """Holds ``Qwen3-VL-2B-Thinking`` and its like."""
    results: Path
    """Absolute, on a file system of all nodes; every job has a directory in it."""
    sizes: tuple[str, ...]
    settings: tuple[str, ...] = ()
    """Of every training job."""
    benchmarks: tuple[str, ...] = PAPER_BENCHMARKS
    """The nine, with ``=PATH`` where the data lie on this cluster."""

    def base(self, size: str) -> Path:
        """The published model."""
        return self.models / f"Qwen3-VL-{size.upper()}-Thinking"

    def queue_name(self, job: StudyJob) -> str:
        """Of a job in the queue: another study of the same user has other ones."""
        return f"{self.results.name}-{hashlib.sha256(str(self.results).encode()).hexdigest()[:6]}-{job.name}"


@dataclass(frozen=True)
class StudyJob:
    """One job of the study."""

    name: str
    words: tuple[str, ...]
    """A command of ``nemo-axpo``."""
    directory: Path
    """What it leaves."""
    after: tuple[str, ...]
    """Names of the jobs whose results it needs."""
    is_finished: Callable[[], bool]

    @property
    def number_path(self) -> Path:
        """Beside the directory: the number that sbatch gave."""
        return Path(f"{self.directory}.job")


@dataclass(frozen=True)
class Step:
    """What one start of the study does with a job."""

    job: StudyJob
    action: str
    """``finished``, ``queued`` (it is in the queue from before) or ``submit``."""
    number: str | None = None
    """In the queue."""
    dependency: str | None = None
    """Of a job that is submitted, as sbatch takes it."""


def study_jobs(study: Study) -> list[StudyJob]:
    """Every job, each after those it needs."""
    jobs = [job for size in study.sizes for job in _jobs_of_size(study, size)]
    evaluations = [job for job in jobs if job.words[0] == "eval"]
    output = study.results / "table"
    directories = [job.directory for job in evaluations]
    words = ("table", *map(str, directories), "--output", str(output))
    is_finished = _later(output / MARKDOWN, [directory / RESULT for directory in directories])
    return [*jobs, StudyJob("table", words, output, tuple(job.name for job in evaluations), is_finished)]


def run_study(
    study: Study,
    *,
    queued: Mapping[str, str],
    submit: Callable[[StudyJob, str | None], str],
    tell: Callable[[Step], None],
) -> list[Step]:
    """Queues what is neither finished nor queued. ``queued``: names of jobs in the queue by number; ``submit`` takes a job and
    its dependency, and returns its number; ``tell`` hears of every job in turn."""
    numbers: dict[str, str | None] = {}
    steps = []
    for job in study_jobs(study):
        number = queued_number(job, name=study.queue_name(job), queued=queued)
        is_waited_for = any(numbers[name] is not None for name in job.after)
        if number is not None:
            step = Step(job, "queued", number)
        elif not is_waited_for and job.is_finished():
            step = Step(job, "finished")
        else:
            before = [number for name in job.after if (number := numbers[name]) is not None]
            dependency = f"afterok:{':'.join(before)}" if before else None
            step = Step(job, "submit", submit(job, dependency), dependency)
        numbers[job.name] = step.number
        steps.append(step)
        tell(step)
    return steps


def queued_number(job: StudyJob, *, name: str, queued: Mapping[str, str]) -> str | None:
    """Its number where it is in the queue: the one recorded, or else one of its name (a start that was cut off)."""
    recorded = job.number_path.read_text(encoding="utf-8").strip() if job.number_path.is_file() else None
    if recorded is not None and queued.get(recorded) == name:
        return recorded
    return next((number for number, other in queued.items() if other == name), None)


def check_study(study: Study, *, has_models: bool = True) -> None:
    """ConfigError for a size without recipes, benchmarks without data, and (``has_models``) models that are not there."""
    known = sorted(path.stem.removeprefix("axpo_") for path in (config_directory() / RECIPES).glob("axpo_*.yaml"))
    problems = [rule_message("--sizes has recipes", got=size, cure=f"there are: {', '.join(known)}")
                for size in study.sizes if size not in known]  # fmt: skip
    for benchmark in load_benchmarks(list(study.benchmarks)):
        data_path(benchmark)
    if has_models and not problems:
        for base in map(study.base, study.sizes):
            if not (base / "config.json").is_file():
                rule, cure = "--models holds the published models", f"hf download Qwen/{base.name} --local-dir {base}"
                problems.append(rule_message(rule, got=f"no {base}", cure=cure))
    if problems:
        raise ConfigError("\n".join(problems))


def benchmark_words(places: Sequence[str]) -> tuple[str, ...]:
    """The nine benchmarks; ``places``: ``NAME=PATH`` for those whose data lie on this cluster."""
    found = dict(place.partition("=")[::2] for place in places)
    wrong = [place for place in places if "=" not in place or place.partition("=")[0] not in PAPER_BENCHMARKS]
    if wrong:
        rule = f"--benchmark says where the data of one of the nine lie ({', '.join(PAPER_BENCHMARKS)})"
        raise ConfigError(rule_message(rule, got=wrong[0], cure="give NAME=PATH"))
    return tuple(f"{name}={found[name]}" if name in found else name for name in PAPER_BENCHMARKS)


def _jobs_of_size(study: Study, size: str) -> list[StudyJob]:
    base, sft = study.base(size), f"sft_{size}"
    policy = study.results / sft / "hf"
    jobs = [
        _training(study, "sft", size, model=base, after=()),
        _evaluation(study, f"base_{size}", f"{size.upper()} Base", checkpoint=base, after=()),
        _evaluation(study, sft, f"{size.upper()} SFT", checkpoint=policy, after=(sft,)),
    ]
    for algorithm in ALGORITHMS:
        run = f"{algorithm}_{size}"
        jobs.append(_training(study, algorithm, size, model=policy, after=(sft,)))
        label = f"{size.upper()} SFT+{algorithm.upper()}"
        jobs.append(_evaluation(study, run, label, checkpoint=study.results / run / "hf", after=(run,)))
    return jobs


def _training(study: Study, stage: str, size: str, *, model: Path, after: tuple[str, ...]) -> StudyJob:
    name = f"{stage}_{size}"
    directory = study.results / name
    command = "sft" if stage == "sft" else "train"
    words = (command, "--config-name", f"{RECIPES}/{name}", "--output-dir", str(directory), f"model.path={model}")
    return StudyJob(name, (*words, *study.settings), directory, after, _has_policy(directory))


def _evaluation(study: Study, name: str, label: str, *, checkpoint: Path, after: tuple[str, ...]) -> StudyJob:
    directory = study.results / "eval" / name
    size = name.rpartition("_")[2]
    asked = [word for benchmark in study.benchmarks for word in ("--benchmark", benchmark)]
    words = ("eval", "--config-name", f"{RECIPES}/eval_{size}", "--checkpoint", str(checkpoint), *asked,
             "--label", label, "--output-dir", str(directory))  # fmt: skip
    names = {word.partition("=")[0] for word in study.benchmarks}
    return StudyJob(f"eval_{name}", words, directory, after, _has_answers(directory, names))


def _has_policy(run: Path) -> Callable[[], bool]:
    """A training run writes its policy last, and the weights last of it."""
    return lambda: any((run / "hf" / name).is_file() for name in _WEIGHTS) and not (run / "stopped.json").exists()


def _has_answers(directory: Path, names: set[str]) -> Callable[[], bool]:
    """Every question of every benchmark has all its rollouts and rewards."""

    def is_finished() -> bool:
        try:
            scores = read_result(directory).scores
        except RunDirectoryError:
            return False
        return names <= {score.name for score in scores if not score.num_open}

    return is_finished


def _later(path: Path, sources: Sequence[Path]) -> Callable[[], bool]:
    """``path`` was written after all of ``sources``."""

    def is_finished() -> bool:
        there = path.is_file() and all(source.is_file() for source in sources)
        return there and all(source.stat().st_mtime <= path.stat().st_mtime for source in sources)

    return is_finished
