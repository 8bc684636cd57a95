"""``nemo-axpo plan``."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_axpo.commands.options import add_config_options, add_nemo_config, composed_config

_STAGES = ("train", "sft", "eval")


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``plan`` and its options."""
    parser = subparsers.add_parser(
        "plan",
        help="what a job needs, before it is queued",
        description="Prints ranks, parameters, memory per rank and the arithmetic of a step for a config and a number of "
        "GPUs; exit status 2 and the cure where the job cannot run. Needs no GPU.",
        epilog="example: nemo-axpo plan --world-size 8 --gpu-memory h100 --model-size 8b actor.dtype=bfloat16",
    )
    add_config_options(parser)
    add_nemo_config(parser)
    parser.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="ranks of the trainer (default: job.num_nodes x job.gpus_per_node, or 1)",
    )
    parser.add_argument("--stage", choices=_STAGES, help="default: by the name of the recipe (sft_…, eval_…), else train")
    parser.add_argument("--gpus-per-node", type=int, metavar="N", default=8, help="default: %(default)s")
    parser.add_argument(
        "--gpu-memory", metavar="GIB", default="80", help="GiB, or h100, h200, a100 (default: %(default)s)"
    )
    parser.add_argument("--reserve", type=float, metavar="GIB", default=3.0,
                        help="left to CUDA, NCCL and fragmentation (default: %(default)s)")  # fmt: skip
    parser.add_argument("--image-share", type=float, metavar="SHARE", default=0.5,
                        help="assumed share of image tokens in a micro-batch (default: %(default)s)")  # fmt: skip
    parser.add_argument("--model-size", choices=("2b", "4b", "8b", "32b"),
                        help="a published Qwen3-VL, where no checkpoint is at hand (instead of model.path)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables; memory in bytes")
    parser.set_defaults(run=_run)


def _stage(options: argparse.Namespace) -> str:
    word = Path(options.config_name or "").name.partition("_")[0]
    return options.stage or (word if word in _STAGES else "train")


def _run(options: argparse.Namespace) -> None:
    from nemo_axpo.plan.command import gpu_memory_gib, run_evaluation_plan, run_plan
    from nemo_axpo.plan.plan import Machine

    memory = gpu_memory_gib(options.gpu_memory)
    # Another number of ranks than the config's is what the user wants to know about.
    settings = {} if options.world_size is None else {"job.num_nodes": None}
    config = composed_config(options, settings=settings)
    world_size = options.world_size if options.world_size is not None else config.job.world_size or 1
    machine = Machine(world_size, options.gpus_per_node, gpu_memory_gib=memory, reserve_gib=options.reserve)
    stage = _stage(options)
    if stage == "eval":
        return run_evaluation_plan(config, machine=machine, model_size=options.model_size, as_json=options.json)
    run_plan(
        config,
        machine=machine,
        image_share=options.image_share,
        model_size=options.model_size,
        is_warm_start=stage == "sft",
        as_json=options.json,
    )
