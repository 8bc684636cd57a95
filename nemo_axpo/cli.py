"""The ``nemo-axpo`` command. Each subcommand loads its implementation only when it runs, so ``--help`` is immediate.

What the user can cure (a value, a path, a missing extra) ends as one message and exit status 2; a bug keeps its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from nemo_axpo.errors import MissingExtraError, RunFailedError

if TYPE_CHECKING:
    from nemo_axpo.config.schema import Config

USER_ERROR, INTERRUPTED = 2, 130
"""Exit statuses; 130 is what a shell reports for Ctrl-C."""
_OVERRIDES = (
    "settings as section.key=value or group=option, e.g. algorithm=grpo train.num_steps=10 (the keys are in "
    "nemo_axpo/config/schema.py, the groups in conf/)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        with _log_on_stderr():
            options.run(options)
    except KeyboardInterrupt:
        print("nemo-axpo: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.traceback or not is_user_error(error):
            raise
        print(f"nemo-axpo: error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of one subcommand; settings may stand before, between and after the options."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def is_user_error(error: Exception) -> bool:
    """Whether the message is the whole answer: a missing file or extra, a run that failed in a process of its own, or a
    ValueError that this package raised itself.

    A ValueError from inside a library is a bug of ours, and its traceback is needed.
    """
    if isinstance(error, FileNotFoundError | MissingExtraError | RunFailedError):
        return True
    return isinstance(error, ValueError) and _raising_module(error.__traceback__).split(".")[0] == "nemo_axpo"


def build_parser() -> argparse.ArgumentParser:
    """The command line of every subcommand."""
    parser = argparse.ArgumentParser(prog="nemo-axpo", description="AXPO for Qwen3-VL agents.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_train(subparsers)
    _add_sft(subparsers)
    _add_eval(subparsers)
    _add_doctor(subparsers)
    _add_export(subparsers)
    _add_journal(subparsers)
    _add_report(subparsers)
    _add_plan(subparsers)
    _add_tool_server(subparsers)
    _add_quickstart(subparsers)
    for subparser in subparsers.choices.values():
        subparser.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def _add_train(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "train",
        help="reinforcement learning with AXPO or GRPO",
        description="Trains a policy with reinforcement learning and writes a run directory.",
        epilog="example: nemo-axpo train algorithm=grpo model.path=outputs/sft/hf --output-dir outputs/grpo",
    )
    _add_config_options(parser)
    _add_output_dir(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in the output directory from its last checkpoint (start it where there is none); "
        "without settings the run's own config is used",
    )
    parser.set_defaults(run=_train)


def _add_sft(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "sft",
        help="supervised warm start",
        description="Trains the policy to imitate trajectories, so that reinforcement learning starts from one that acts.",
    )
    _add_config_options(parser)
    _add_output_dir(parser)
    parser.set_defaults(run=_sft)


def _add_eval(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="evaluate a checkpoint",
        description="Evaluates a Hugging Face checkpoint: Pass@1, Pass@k, tool use, tool and direct accuracy.",
        epilog="example: nemo-axpo eval --checkpoint exported/ eval.num_questions=500",
    )
    _add_config_options(parser)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", required=True, help="what to evaluate (model.path)")
    parser.add_argument("--run", dest="run_dir", type=Path, metavar="DIR", help="take the settings of this run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON too")
    parser.set_defaults(run=_eval)


def _add_doctor(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="check that engine and trainer agree before a run",
        description="Compares engine and trainer on text, a picture and a tool's picture; training starts with the same.",
        epilog="example: nemo-axpo doctor model.path=outputs/sft/hf",
    )
    _add_config_options(parser)
    parser.set_defaults(run=_doctor)


def _add_tool_server(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "tool-server",
        help="run tools for trainers on other machines",
        description="Serves the tools of tools.names over HTTP to clients that know the token (NEMO_AXPO_TOOL_TOKEN).",
        epilog="example: NEMO_AXPO_TOOL_TOKEN=… nemo-axpo tool-server tools.names=[python] --host 0.0.0.0 --port 8900",
    )
    _add_config_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8900, help="0 takes a free one and prints it (default: %(default)s)")
    parser.add_argument("--max-concurrent-calls", type=int, default=16, metavar="N", help="further ones wait (default: 16)")
    parser.set_defaults(run=_tool_server)


def _add_export(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a run's policy as a Hugging Face checkpoint",
        description="Writes the policy of a run's training checkpoint as a checkpoint that transformers loads.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="directory to write")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint after N steps (default: the newest)")
    parser.set_defaults(run=_export)


def _add_journal(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "journal",
        help="verify that a run lost no question and trained none twice",
        description="Replays a run's journal.jsonl, resumes included, and says whether every question was trained once.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    parser.set_defaults(run=_journal)


def _add_report(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "report",
        help="report.html, pictures and a table from runs",
        description="Reads every run in or below the directories, finished or not, and writes report.html and pictures.",
    )
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="run or study directory")
    parser.add_argument("--output", type=Path, metavar="DIR", help="directory to write (default: the first DIR)")
    parser.set_defaults(run=_report)


def _add_plan(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="what a job needs, before it is queued",
        description="Prints ranks, parameters, memory per rank and the arithmetic of a step for a config and a number of "
        "GPUs; exit status 2 and the cure where the job cannot run. Needs no GPU.",
        epilog="example: nemo-axpo plan --world-size 8 --gpu-memory h100 --model-size 8b actor.dtype=bfloat16",
    )
    _add_config_options(parser)
    parser.add_argument("--world-size", type=int, metavar="N", default=1, help="ranks of the job (default: %(default)s)")
    parser.add_argument("--gpus-per-node", type=int, metavar="N", default=8, help="default: %(default)s")
    parser.add_argument("--gpu-memory", metavar="GIB", default="80", help="GiB, or h100, h200, a100 (default: %(default)s)")
    parser.add_argument("--reserve", type=float, metavar="GIB", default=3.0,
                        help="left to CUDA, NCCL and fragmentation (default: %(default)s)")  # fmt: skip
    parser.add_argument("--image-share", type=float, metavar="SHARE", default=0.5,
                        help="assumed share of image tokens in a micro-batch (default: %(default)s)")  # fmt: skip
    parser.add_argument("--model-size", choices=("2b", "4b", "8b", "32b"),
                        help="a published Qwen3-VL, where no checkpoint is at hand (instead of model.path)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables; memory in bytes")
    parser.set_defaults(run=_plan)


def _add_quickstart(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "quickstart",
        help="teach a tiny model to use a tool: GRPO beside AXPO",
        description="Warm start, GRPO and AXPO on the embedded world, evaluation, report.html.",
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR",
                        help="where everything goes (default: outputs/quickstart, or outputs/smoke)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="root of all randomness (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="the whole path in about a minute; shows that it works")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--tp", type=int, default=1, metavar="N",
                        help="tensor-parallel ranks of each run (default: %(default)s)")  # fmt: skip
    parser.set_defaults(run=_quickstart)


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="SETTING", help=_OVERRIDES)
    parser.add_argument("--config-name", metavar="NAME", help="recipe: a file of conf/ (default: config)")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="directory of your own recipes")


def _add_output_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="run directory (sets output_dir)")


def _train(options: argparse.Namespace) -> None:
    config = _train_config(options)
    _check(config, needs_policy=True)
    from nemo_axpo.train import run_training

    run_training(config, resume=options.resume)


def _sft(options: argparse.Namespace) -> None:
    config = _composed_config(options, settings=_output_setting(options))
    _check(config, needs_policy=False)
    from nemo_axpo.sft import run_sft

    run_sft(config)


def _eval(options: argparse.Namespace) -> None:
    settings = {"model.path": str(options.checkpoint)}
    if options.run_dir is None:
        config = _composed_config(options, settings=settings)
    else:
        config = _run_config(options.run_dir, overrides=options.overrides, settings=settings)
    _check(config, needs_policy=True)
    from nemo_axpo.eval.command import run_eval

    run_eval(config, output=options.output)


def _doctor(options: argparse.Namespace) -> None:
    config = _composed_config(options, settings={})
    _check(config, needs_policy=True)
    from nemo_axpo.canaries.doctor import run_doctor

    run_doctor(config)


def _tool_server(options: argparse.Namespace) -> None:
    from nemo_axpo.tools.server.command import serve

    config = _composed_config(options, settings={})
    _check(config, needs_policy=False)
    serve(config, host=options.host, port=options.port, max_concurrent_calls=options.max_concurrent_calls)


def _export(options: argparse.Namespace) -> None:
    from nemo_axpo.export import export_checkpoint

    export_checkpoint(options.run_dir, output=options.output, step=options.step)


def _journal(options: argparse.Namespace) -> None:
    from nemo_axpo.journal import print_verdict

    print_verdict(options.run_dir)


def _report(options: argparse.Namespace) -> None:
    from rich.console import Console

    from nemo_axpo.report.command import build_report

    report = build_report(options.directories, output=options.output, console=Console())
    print(f"report: {report.html}")


def _plan(options: argparse.Namespace) -> None:
    from nemo_axpo.plan.command import gpu_memory_gib, run_plan
    from nemo_axpo.plan.plan import Machine

    memory = gpu_memory_gib(options.gpu_memory)
    machine = Machine(options.world_size, options.gpus_per_node, gpu_memory_gib=memory, reserve_gib=options.reserve)
    config = _composed_config(options, settings={})
    run_plan(config, machine=machine, image_share=options.image_share, model_size=options.model_size, as_json=options.json)


def _quickstart(options: argparse.Namespace) -> None:
    from nemo_axpo.quickstart import run_quickstart

    output_dir = options.output_dir or Path("outputs/smoke" if options.smoke else "outputs/quickstart")
    run_quickstart(
        output_dir=output_dir,
        seed=options.seed,
        smoke=options.smoke,
        device=options.device,
        tensor_parallel=options.tp,
    )


def _train_config(options: argparse.Namespace) -> Config:
    """The composed config; resuming with nothing but a directory takes the run's own."""
    said_more = options.overrides or options.config_name or options.config_dir
    if options.resume and options.output_dir and not said_more and (options.output_dir / "config.yaml").exists():
        return _run_config(options.output_dir, settings=_output_setting(options))
    return _composed_config(options, settings=_output_setting(options))


def _output_setting(options: argparse.Namespace) -> dict[str, str]:
    return {} if options.output_dir is None else {"output_dir": str(options.output_dir)}


def _composed_config(options: argparse.Namespace, *, settings: dict[str, str]) -> Config:
    from nemo_axpo.config.load import load_config

    name = options.config_name or "config"
    return load_config(options.overrides, config_name=name, config_dir=options.config_dir, settings=settings)


def _run_config(run_dir: Path, *, overrides: Sequence[str] = (), settings: dict[str, str]) -> Config:
    """The config a run was started with, changed by value overrides and ``settings``."""
    from nemo_axpo.config.load import load_config
    from nemo_axpo.run_directory import check_is_run

    check_is_run(run_dir)
    return load_config(overrides, config_dir=run_dir, settings=settings)


def _check(config: Config, *, needs_policy: bool) -> None:
    from nemo_axpo.config.checks import check_config, check_model_path

    # torchrun and srun wrappers tell the size of the job here.
    check_config(config, world_size=int(os.environ.get("WORLD_SIZE", "1")))
    if needs_policy:
        check_model_path(config)


@contextlib.contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Shows what the package logs: all of it on the first rank, warnings on the others."""
    package, handler = logging.getLogger("nemo_axpo"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("nemo-axpo: %(message)s"))
    before = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(before)
        package.removeHandler(handler)


def _raising_module(traceback: TracebackType | None) -> str:
    """Name of the module whose frame raised."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_globals.get("__name__", "") if traceback else ""


if __name__ == "__main__":
    sys.exit(main())
