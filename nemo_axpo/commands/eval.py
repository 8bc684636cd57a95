"""``nemo-axpo eval``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_axpo.commands.options import add_config_options, check, composed_config, run_config

if TYPE_CHECKING:
    from nemo_axpo.config.schema import Config

_SHARD = re.compile(r"(\d+)/(\d+)")


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``eval`` and its options."""
    parser = subparsers.add_parser(
        "eval",
        help="evaluate a checkpoint",
        description="Evaluates a Hugging Face checkpoint: Pass@1, Pass@k, tool use; on held-out questions of the config's "
        "data, or on benchmarks (docs/evaluation.md).",
        epilog="example: nemo-axpo eval --checkpoint exported/ --benchmark vstar=data/vstar --output-dir outputs/eval",
    )
    add_config_options(parser)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", required=True, help="what to evaluate (model.path)")
    parser.add_argument("--run", dest="run_dir", type=Path, metavar="DIR", help="take the settings of this run")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the result as JSON too (without --benchmark)"
    )
    _add_benchmark_options(parser.add_argument_group("benchmarks"))
    parser.set_defaults(run=_run)


def _add_benchmark_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="NAME[=PATH]",
        help="a benchmark of conf/benchmark, a YAML file of one's own, or all; PATH: its data on this machine",
    )
    group.add_argument("--output-dir", type=Path, metavar="DIR", help="records, results and tables; also to resume")
    group.add_argument(
        "--label", metavar="TEXT", help="row of the table, e.g. '8B SFT+AXPO' (default: the checkpoint's name)"
    )
    group.add_argument("--paper-row", metavar="TEXT", help="row of the paper's table beside it (default: the label)")
    group.add_argument("--limit", type=_count, metavar="N", help="only the first N questions of every benchmark")
    group.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="of N processes that share the questions"
    )


def _run(options: argparse.Namespace) -> None:
    if options.benchmark:
        _run_benchmarks(options)
        return
    config = _config(options)
    check(config, needs_policy=True)
    from nemo_axpo.eval.command import run_eval

    run_eval(config, output=options.output)


def _config(options: argparse.Namespace) -> Config:
    settings = {"model.path": str(options.checkpoint)}
    if options.run_dir is None:
        return composed_config(options, settings=settings)
    return run_config(options.run_dir, overrides=options.overrides, settings=settings)


def _run_benchmarks(options: argparse.Namespace) -> None:
    from nemo_axpo.config.checks import check_benchmarks
    from nemo_axpo.errors import ConfigError, rule_message
    from nemo_axpo.eval.benchmarks.definition import load_benchmarks

    if options.output_dir is None or options.output is not None:
        cure = "give --output-dir DIR; the result is its results.json"
        raise ConfigError(rule_message("--benchmark needs --output-dir, and no --output", got="otherwise", cure=cure))
    benchmarks = load_benchmarks(options.benchmark)
    config = _config(options)
    verifiers = {benchmark.name: benchmark.verifiers for benchmark in benchmarks}
    sources = verifiers | {name: names for name, names in config.rewards.sources.items() if name in verifiers}
    config = config.model_copy(update={"rewards": config.rewards.model_copy(update={"sources": sources})})
    check(config, needs_policy=True)
    check_benchmarks(config)
    from nemo_axpo.eval.benchmarks.command import EvaluationPlan, run_benchmarks

    plan = EvaluationPlan(
        benchmarks,
        options.output_dir,
        options.label or options.checkpoint.resolve().name,
        paper_row=options.paper_row,
        limit=options.limit,
        shard=options.shard,
    )
    run_benchmarks(config, plan=plan)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def _shard(text: str) -> tuple[int, int]:
    match = _SHARD.fullmatch(text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be I/N with 1 <= I <= N, got {text!r}")
    return int(match[1]), int(match[2])
