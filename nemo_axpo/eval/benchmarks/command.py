"""``nemo-axpo eval --benchmark``: a checkpoint on benchmarks, its row of the paper's table, and everything behind it.

    <output-dir>/<benchmark>/records.jsonl    what it answered       <output-dir>/<benchmark>/settings.json    how it was asked
    <output-dir>/results.json, table.md, table.tex, sizes.png

The same command goes on where it was interrupted. Several processes may share the questions (``--shard 2/4``): each has its
own engine, and the last one to end sees the records of all.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from safetensors import safe_open

from nemo_axpo import assembly
from nemo_axpo.assembly import Workbench
from nemo_axpo.config.schema import Config
from nemo_axpo.errors import ConfigError, UnfinishedEvaluationError, rule_message
from nemo_axpo.eval.benchmarks.asking import Asker, AskingSettings, Outcome
from nemo_axpo.eval.benchmarks.definition import Benchmark
from nemo_axpo.eval.benchmarks.outputs import write_tables
from nemo_axpo.eval.benchmarks.questions import BenchmarkQuestions
from nemo_axpo.eval.benchmarks.records import RecordFile, in_order, read_records
from nemo_axpo.eval.benchmarks.results import ModelResult, write_result
from nemo_axpo.eval.benchmarks.scores import averages, score
from nemo_axpo.eval.benchmarks.settings import asking_settings, fix_settings, told_settings
from nemo_axpo.eval.benchmarks.tables import markdown
from nemo_axpo.eval.bootstrap import BootstrapSettings
from nemo_axpo.eval.paper_numbers import load_paper_numbers
from nemo_axpo.models.qwen3_vl.loading import read_checkpoint
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.rewards.base import require_verifiers
from nemo_axpo.rollouts.producer import Producer

NUM_CANARIES = 4
"""Questions of every benchmark whose own answers its verifiers must take for right, and a wrong one for wrong."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated where."""

    benchmarks: Sequence[Benchmark]
    output_dir: Path
    label: str
    """Row of the table; a size in front (``8B …``) places it in the figure."""
    paper_row: str | None = None
    """Row of the paper's table beside it; None: the label, where the paper has such a row."""
    limit: int | None = None
    """Only the first questions of every benchmark."""
    shard: tuple[int, int] = (1, 1)
    """Number (from 1) and count of the processes that share the questions."""


def run_benchmarks(config: Config, *, plan: EvaluationPlan, console: Console | None = None) -> ModelResult:
    """Evaluates ``config.model.path``; prints the table and writes everything into the output directory.

    DataError for data that cannot be asked, CanaryError for verifiers that judge wrongly or are down, RunDirectoryError
    for records made under other settings: all before anything is sampled. UnfinishedEvaluationError where questions stay
    open, with what to do; the records are kept.
    """
    console = console or Console()
    _check_paper_row(plan.paper_row)
    asked = [
        BenchmarkQuestions(benchmark, limit=plan.limit, cache_dir=config.data.cache_dir)
        for benchmark in plan.benchmarks
    ]
    for benchmark in plan.benchmarks:
        directory = plan.output_dir / benchmark.name
        fix_settings(asking_settings(config, benchmark=benchmark), directory=directory)
    with ProgressDisplay(console=console, shown={}, unit="question") as progress:
        outcomes = asyncio.run(_ask(config, plan=plan, asked=asked, progress=progress))
    result = collect(config, plan=plan, asked=asked)
    path = write_result(result, plan.output_dir)
    if result.scores:
        write_tables([result], plan.output_dir)
        console.print(markdown([result]), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {path.parent}", markup=False, soft_wrap=True)
    _require_answers(outcomes)
    return result


def collect(config: Config, *, plan: EvaluationPlan, asked: Sequence[BenchmarkQuestions]) -> ModelResult:
    """The result of everything in the records, of other shards and earlier starts too."""
    section = config.benchmarks
    bootstrap = BootstrapSettings(section.confidence, section.num_resamples, section.seed)
    scores, answered = [], []
    for questions in asked:
        records = read_records(plan.output_dir / questions.benchmark.name, num_rollouts=section.num_rollouts)
        kept = in_order(records, [place.id for place in questions.places])
        found = score(questions.benchmark, kept, num_asked=len(questions), k=section.num_rollouts, settings=bootstrap)
        if found is not None:
            scores.append(found)
            answered.append([question for question in kept if question.is_complete(section.num_rollouts)])
    pass_at_1, pass_at_k = averages(answered, settings=bootstrap)
    return ModelResult(
        label=plan.label,
        checkpoint=str(config.model.path),
        num_parameters=num_parameters(Path(str(config.model.path))),
        settings=told_settings(config),
        scores=tuple(scores),
        average_pass_at_1=pass_at_1,
        average_pass_at_k=pass_at_k,
        paper_row=plan.paper_row or (plan.label if plan.label in load_paper_numbers().pass_at_1 else None),
    )


def num_parameters(checkpoint: Path) -> int:
    """Numbers in the tensors of a checkpoint, from the headers of its files."""
    total = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no dict
    return total


async def _ask(
    config: Config, *, plan: EvaluationPlan, asked: Sequence[BenchmarkQuestions], progress: ProgressDisplay
) -> list[tuple[str, Outcome]]:
    bench = assembly.build_workbench(config, checkpoint=config.model.path)
    engine = assembly.build_engine(config, bench=bench)
    try:
        await _check_verifiers(asked, bench=bench)
        engine.load_weights(read_checkpoint(bench.checkpoint), policy_version=0)
        producer = assembly.build_benchmark_producer(config, bench=bench, engine=engine)
        outcomes = []
        for questions in asked:
            outcome = await _ask_one(config, questions, plan=plan, bench=bench, producer=producer, progress=progress)
            outcomes.append((questions.benchmark.name, outcome))
            if outcome.has_stopped:
                break
        return outcomes
    finally:
        await bench.verifiers.close()
        await engine.close()


async def _check_verifiers(asked: Sequence[BenchmarkQuestions], *, bench: Workbench) -> None:
    """CanaryError unless the verifiers know right from wrong on the benchmarks' own answers."""
    questions = [one.record(place).to_question(bench.images) for one in asked for place in one.places[:NUM_CANARIES]]
    require_verifiers(await bench.verifiers.measure(questions))
    bench.images.retain(())


async def _ask_one(
    config: Config,
    questions: BenchmarkQuestions,
    *,
    plan: EvaluationPlan,
    bench: Workbench,
    producer: Producer,
    progress: ProgressDisplay,
) -> Outcome:
    section, name = config.benchmarks, questions.benchmark.name
    directory = plan.output_dir / name
    number, count = plan.shard
    places = questions.places[number - 1 :: count]
    with RecordFile(directory, shard=plan.shard) as file:
        known = read_records(directory, num_rollouts=section.num_rollouts)
        done = sum(place.id in known and known[place.id].is_complete(section.num_rollouts) for place in places)
        progress.start(name, total=len(places), done=done)
        asker = Asker(
            producer,
            images=bench.images,
            settings=AskingSettings(
                section.num_rollouts,
                section.seed,
                section.max_questions_in_flight,
                section.max_failures,
                section.keep_text,
            ),
        )
        return await asker.ask(
            questions, known=known, file=file, places=places, on_finished=_counter(progress, name, done=done)
        )


def _counter(progress: ProgressDisplay, name: str, *, done: int) -> Callable[[], None]:
    """Counts questions on the display."""
    num_done = done

    def count() -> None:
        nonlocal num_done
        num_done += 1
        progress.update(name, step=num_done)

    return count


def _check_paper_row(row: str | None) -> None:
    rows = load_paper_numbers().pass_at_1
    if row is not None and row not in rows:
        rule = f"--paper-row must be a row of the paper's table: {', '.join(rows)}"
        raise ConfigError(rule_message(rule, got=repr(row), cure="choose one of these"))


def _require_answers(outcomes: Sequence[tuple[str, Outcome]]) -> None:
    """UnfinishedEvaluationError that says what is open and what to do."""
    unfinished = [
        f"{name}: {outcome.num_open} questions" + (", the rest was not asked" if outcome.has_stopped else "")
        for name, outcome in outcomes
        if outcome.num_open or outcome.has_stopped
    ]
    if unfinished:
        raise UnfinishedEvaluationError(
            f"some rollouts were lost or could not be judged ({'; '.join(unfinished)}): the engine, the tool servers or "
            "the judge were down, see the warnings above; restart them and run the same command again, which asks and "
            "judges only what is missing"
        )
