"""``nemo-axpo check-data``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_axpo.commands.options import add_config_options, composed_config
from nemo_axpo.errors import ConfigError, rule_message

if TYPE_CHECKING:
    from nemo_axpo.config.schema import Config
    from nemo_axpo.data.audit import DataAudit, FileAudit
    from nemo_axpo.rollouts.prompt_meter import PromptMeter

_SHOWN = 5
"""Problems and pairs that are printed; the report holds all."""


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``check-data`` and its options."""
    parser = subparsers.add_parser(
        "check-data",
        help="look at every row and image of the data files",
        description="Reads every row of data.files and data.eval_files, decodes and compares every image, measures every "
        "prompt where model.path is given, and writes data_report.json and kept.jsonl (for data.files[].keep). Exit status 2 "
        "where a row cannot be used.",
        epilog="example: nemo-axpo check-data data=files 'data.files=[{path: questions.jsonl}]' --output outputs/data",
    )
    add_config_options(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="directory of the report")
    parser.add_argument("--threads", type=int, metavar="N", default=4, help="that decode images (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    config = composed_config(options, settings={})
    if not config.data.files:
        cure = "name them: data=files 'data.files=[{path: questions.jsonl}]'"
        raise ConfigError(rule_message("check-data reads the files of data.files", got="none", cure=cure))
    from nemo_axpo.data.audit import audit, write_audit
    from nemo_axpo.progress import ProgressDisplay

    meter = _prompt_meter(config)
    with ProgressDisplay(shown={}, unit="row") as progress:

        def on_rows(name: str, done: int, total: int) -> None:
            if done:
                progress.update(name, step=done)
            else:
                progress.start(name, total=total)

        data = config.data
        result = audit(
            data.files,
            data.eval_files,
            cache_dir=data.cache_dir,
            meter=meter,
            num_threads=options.threads,
            on_rows=on_rows,
        )
    write_audit(result, options.output)
    print(describe(result))
    print(f"written to {options.output}")
    if result.train.problems or result.evaluation.problems:
        count = len(result.train.problems) + len(result.evaluation.problems)
        cure = f"correct them, or train on the others with keep: {options.output / 'kept.jsonl'}"
        raise ConfigError(
            rule_message("every row of the data files must be usable", got=f"{count} that are not", cure=cure)
        )


def _prompt_meter(config: Config) -> PromptMeter | None:
    if config.model.path is None:
        return None
    from nemo_axpo.assembly import build_prompt_meter
    from nemo_axpo.config.checks import check_model_path

    check_model_path(config)
    return build_prompt_meter(config, checkpoint=config.model.path)


def describe(result: DataAudit) -> str:
    """The audit in some lines."""
    lines = []
    for name, part in (("training", result.train), ("evaluation", result.evaluation)):
        if part.num_rows:
            lines.append(
                f"{name}: {part.num_rows} rows, {len(part.ids)} questions with {len(part.images)} images, "
                f"{part.num_left_out} left out by the reader, {len(part.problems)} bad"
            )
            lines += [*_some(part.problems), *_prompts(part, max_row_tokens=result.max_row_tokens)]
    if result.max_row_tokens is None:
        lines.append(
            "prompts: not measured; give model.path=DIR with the tools and the rollout.max_row_tokens of the run"
        )
    for name, pairs in (("similar pairs of training images", result.duplicates), ("leaked images", result.leaks)):
        lines.append(f"{name}: {len(pairs)}, {sum(pair.distance == 0 for pair in pairs)} with equal hashes")
        lines += _some([f"{p.first.question_id} and {p.second.question_id}, {p.distance} bits" for p in pairs])
    return "\n".join([*lines, f"kept: {len(result.kept)} questions"])


def _prompts(part: FileAudit, *, max_row_tokens: int | None) -> Iterator[str]:
    from nemo_axpo.data.audit import spread

    tokens = spread(part.prompt_tokens)
    if tokens is not None:
        yield (
            f"  prompts: {tokens['min']} to {tokens['max']} tokens, median {tokens['median']:g}; "
            f"rollout.max_row_tokens is {max_row_tokens}"
        )


def _some(items: list[str]) -> list[str]:
    more = [f"  … {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return [f"  {item}" for item in items[:_SHOWN]] + more
