"""``nemo-axpo eval``: what a Hugging Face checkpoint scores on the held-out questions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nemo_axpo import assembly
from nemo_axpo.canaries.rewards import verifier_checks
from nemo_axpo.config.schema import Config
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.eval.evaluate import EvalResult
from nemo_axpo.eval.held_out import evaluate_held_out
from nemo_axpo.models.qwen3_vl.loading import read_checkpoint
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.rewards.base import require_verifiers

_ONE_PROCESS = OneProcess()
TITLES = {
    "tool_use": "Tool use",
    "tool_accuracy": "Tool accuracy",
    "direct_accuracy": "Direct accuracy",
    "all_wrong": "All-wrong rate",
    "truncated": "Truncated",
}
_NUM_UPDATES = 200
"""Redraws of the progress display: smooth, and nothing beside the sampling."""


def run_eval(config: Config, *, output: Path | None = None, console: Console | None = None) -> EvalResult:
    """Evaluates the checkpoint ``config.model.path``, prints a table and writes ``output`` as JSON.

    A run's last checkpoint gets exactly the run's final evaluation under the run's config. ValueError for a checkpoint
    that does not fit, and for an ``output`` that cannot be written, before anything is sampled.
    """
    console = console or Console()
    if output is not None:
        _prepare(output)
    with ProgressDisplay(console=console, shown={}, unit="rollout") as progress:
        result = asyncio.run(_evaluate(config, progress=progress))
    console.print(_table(result, checkpoint=str(config.model.path)))
    if output is not None:
        record = {"checkpoint": config.model.path, "seed": config.eval.seed, **result.as_dict()}
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        console.print(f"written to {output}", markup=False, soft_wrap=True)
    return result


async def _evaluate(config: Config, *, progress: ProgressDisplay) -> EvalResult:
    bench = assembly.build_workbench(config, checkpoint=config.model.path)
    engine = assembly.build_engine(config, bench=bench)
    try:
        require_verifiers(await verifier_checks(config, bench=bench, replicas=_ONE_PROCESS))
        engine.load_weights(read_checkpoint(bench.checkpoint), policy_version=0)
        return await evaluate_held_out(config, bench=bench, engine=engine, on_finished=_counter(config, progress))
    finally:
        await bench.verifiers.close()
        await engine.close()


def _counter(config: Config, progress: ProgressDisplay) -> Callable[[], None]:
    """Counts rollouts on the display."""
    total, done = config.eval.num_questions * config.eval.num_rollouts, 0
    every = max(1, total // _NUM_UPDATES)
    progress.start("eval", total=total)

    def count() -> None:
        nonlocal done
        done += 1
        if done % every == 0 or done == total:
            progress.update("eval", step=done)

    return count


def _table(result: EvalResult, *, checkpoint: str) -> Table:
    """One line a rate; a dash where it has no denominator."""
    table = Table(caption=f"{len(result.questions)} questions, {result.num_rollouts} rollouts")
    table.add_column("")
    table.add_column(Path(checkpoint).name, justify="right")
    metrics = result.metrics()
    for name in ("pass@1", f"pass@{result.k}") if result.k > 1 else ("pass@1",):
        table.add_row(name.capitalize(), _percent(metrics[name]))
    for name, title in TITLES.items():
        table.add_row(title, _percent(metrics[name]))
    table.add_row("Tokens per rollout", "–" if result.tokens is None else f"{result.tokens:.1f}")
    return table


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _prepare(output: Path) -> None:
    """Makes sure that the result of a long evaluation will have a place."""
    if output.is_dir():
        raise ConfigError(
            rule_message("--output names the JSON file to write", got=f"the directory {output}", cure="name a file in it")
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.open("a").close()
    except OSError as error:
        rule = "--output names a file that can be written"
        raise ConfigError(rule_message(rule, got=error, cure="choose another place")) from None
