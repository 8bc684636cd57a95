"""One GRPO step end to end against TRL's GRPOTrainer: same tiny Qwen3-VL, rows and settings, one CPU thread.

    launcher_scripts/setup_env.sh --venv .venv-trl --with requirements/trl_peer.txt
    OMP_NUM_THREADS=1 .venv-trl/bin/python benchmarks/trl_step.py --output benchmarks/results/trl_step.json

    text         a question in words
    image        a question about a picture of 6 tokens
    large_image  a question about a picture of 96 tokens
    tool         as image, with a tool's schema in the system turn; every second row calls it in its first turn, reads
                 the picture it returns and goes on

Both sides read one checkpoint (the quickstart's model; Qwen3-VL's chat template as TRL bundles it, the thinking opened),
ask the same questions and run the same optimizer step: token-mean clipped surrogate without KL, float32, AdamW. A random
model neither stops nor calls a tool by itself: stop tokens are never sampled, so every row has --num-new tokens after
its prompt, and calls are forced token by token, at the cost of sampled ones. TRL's second turn is told to sample no more
than the row may keep; by itself it would sample --num-new and throw some away. Rewards alternate, so no row is without
an advantage.

Rollout: questions, generation, tools, rewards. Update: log-probs, backward, optimizer, weights to the engine. Every run of
a side is a process of its own, and the sides take turns. Of every side the step with the least CPU time counts, after one
that warms up; TRL may choose its micro-batch. Fails where the sides did not run the same rows.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import argument_parser, environment, write_json
from grpo_step.setting import MODES, Setting, best_step, save_checkpoint

SIDES = ("ours", "trl")
SAME = ("rows", "prompts", "row_tokens", "sampled_tokens", "trained_tokens", "tool_calls", "images")
TOLERANCE = 0.02
INSTALL = "launcher_scripts/setup_env.sh --venv .venv-trl --with requirements/trl_peer.txt"
PACKAGES = ("torch", "transformers", "trl", "accelerate", "megatron-core")


def measure_side(side: str, setting: Setting, *, checkpoint: Path, micro_batch: int) -> dict[str, Any]:
    """The best step of one side, in this process."""
    import torch

    torch.set_num_threads(1)
    if side == "ours":
        import asyncio

        from grpo_step.ours import Ours

        return best_step(asyncio.run(Ours(setting, checkpoint=checkpoint).run()))
    from grpo_step import peer

    with tempfile.TemporaryDirectory() as output:
        return best_step(peer.run(setting, checkpoint=checkpoint, output=Path(output), micro_batch=micro_batch))


def check_same(mode: str, counts: dict[str, dict[str, Any]]) -> None:
    """RuntimeError where the sides did not do the same work."""
    ours, peer = (counts[side] for side in SIDES)
    for name in SAME:
        same = ours[name] == peer[name]
        if not same and isinstance(ours[name], int):
            same = abs(ours[name] - peer[name]) <= TOLERANCE * peer[name]
        if not same:
            raise RuntimeError(
                f"{mode}: both sides must have the same {name}; got {ours[name]} here and {peer[name]} in TRL: the "
                "comparison would not be fair, look for a change in TRL's chat template or tool loop"
            )


def compare(modes: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Every mode on both sides in turn, once per ``--trl-micro-batch``."""
    from trl import chat_template_utils

    results = {}
    with tempfile.TemporaryDirectory() as directory:
        for mode in modes:
            checkpoint = Path(directory) / mode
            save_checkpoint(checkpoint, template=chat_template_utils.qwen3_vl_chat_template, mode=mode)
            rounds = [
                {side: _run_side(side, mode, checkpoint, arguments, micro_batch=micro_batch) for side in SIDES}
                for micro_batch in arguments.trl_micro_batch
            ]
            for sides in rounds:
                for ours, peer in zip(*(sides[side]["counts"] for side in SIDES), strict=True):
                    check_same(mode, {"ours": ours, "trl": peer})
            best = {side: min((sides[side] for sides in rounds), key=_cpu_s) for side in SIDES}
            for side in SIDES:
                best[side]["counts"] = best[side]["counts"][-1]
            results[mode] = {**best, "ratio": _ratios(best)}
            print(json.dumps({mode: results[mode]}, indent=1), flush=True)
    return results


def _run_side(
    side: str, mode: str, checkpoint: Path, arguments: argparse.Namespace, *, micro_batch: int
) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--modes", mode, "--checkpoint", str(checkpoint)]
    command += ["--trl-micro-batch", str(micro_batch)]
    for name in ("num_questions", "num_rollouts", "num_new", "num_steps"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(command, check=False, env=own, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"{mode}: the {side} side failed:\n{finished.stderr[-4000:]}")
    return {**json.loads(finished.stdout.splitlines()[-1]), **({"micro_batch": micro_batch} if side == "trl" else {})}


def _cpu_s(side: dict[str, Any]) -> float:
    return side["seconds"]["step_cpu_s"]


def _ratios(best: dict[str, dict[str, Any]]) -> dict[str, float]:
    """TRL's time over ours."""
    ours, peer = (best[side]["seconds"] for side in SIDES)
    return {name: peer[name] / ours[name] for name in sorted(ours)}


def _parser() -> argparse.ArgumentParser:
    parser = argument_parser(__doc__)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--num-questions", type=int, default=16)
    parser.add_argument("--num-rollouts", type=int, default=8)
    parser.add_argument("--num-new", type=int, default=64, help="tokens of a row after its prompt")
    parser.add_argument("--num-steps", type=int, default=3, help="measured steps of a process")
    parser.add_argument(
        "--trl-micro-batch",
        type=int,
        nargs="+",
        default=[16, 128],
        help="rows of TRL's forward and backward pass; best wins",
    )
    parser.add_argument("--side", choices=SIDES, help="measure this side alone, in this process (internal)")
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Compares the sides and writes the results; those of other modes stay in the file."""
    arguments = _parser().parse_args()
    if importlib.util.find_spec("trl") is None:
        sys.exit(
            f"this benchmark needs TRL, which is not installed here: run `{INSTALL}` and start it by .venv-trl/bin/python"
        )
    if arguments.side:
        setting = Setting(
            arguments.modes[0], arguments.num_questions, arguments.num_rollouts, arguments.num_new, arguments.num_steps
        )
        best = measure_side(
            arguments.side, setting, checkpoint=arguments.checkpoint, micro_batch=arguments.trl_micro_batch[0]
        )
        print(json.dumps(best))
        return
    results = compare(arguments.modes, arguments)
    if arguments.output:
        known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        origin = environment(PACKAGES)
        write_json(arguments.output, known | {mode: {**origin, **result} for mode, result in results.items()})


if __name__ == "__main__":
    main()
