"""Runs of the command line at the smallest size at which everything happens: tool calls, resamples, several minibatches."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import forked

from nemo_axpo.cli import main
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer

WARM_START = (
    "sft.num_steps=40",
    "sft.batch_size=32",
    "sft.lr=6e-3",
    "sft.warmup_steps=5",
    "world.tool_rate=0.6",
    "world.aim_rate=0.6",
    "eval.window_questions=16",
    "logging.tensorboard=false",
)
NUM_STEPS = 3
RUN = (
    "data.num_questions_per_step=4",
    "algorithm.num_rollouts=4",
    f"train.num_steps={NUM_STEPS}",
    "train.checkpoint_every=1",
    "train.keep_checkpoints=9",
    "train.record_every=1",
    "train.eval_every=2",
    "eval.num_questions=6",
    "eval.num_rollouts=2",
    "actor.micro_batch_tokens=600",
    "actor.num_minibatches=2",
    "rollout.max_time_s=600",
    "logging.tensorboard=false",
)
AXPO = ("algorithm.num_continuations=2", "algorithm.resample_ratio=0.5")


@dataclass(frozen=True)
class CommandResult:
    """What a user of the command sees."""

    status: int
    out: str
    err: str


def nemo_axpo(*arguments: str | Path) -> CommandResult:
    """Runs the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return CommandResult(status, out.getvalue(), err.getvalue())


def succeed(*arguments: str | Path) -> CommandResult:
    """Runs the command, which must succeed."""
    result = nemo_axpo(*arguments)
    assert result.status == 0, result.err
    return result


def warm_start(directory: Path, **shape: int) -> Path:
    """Checkpoint of a policy that calls the tool in about every second rollout and is sometimes right.

    ``shape``: of :func:`save_tiny_checkpoint`, for a model of another depth or width than the tiny one.
    """
    settings = list(WARM_START)
    if shape:
        tiny = save_tiny_checkpoint(
            directory / "tiny", tokenizer=build_tokenizer(), vocab_size=VOCAB_SIZE, seed=0, **shape
        )
        settings.append(f"model.path={tiny}")
    succeed("sft", "--output-dir", directory / "warm_start", *settings)
    return directory / "warm_start" / "hf"


def train(output_dir: Path, *settings: str, checkpoint: Path, resume: bool = False) -> Path:
    """One training run; returns its directory."""
    options = ["--resume"] if resume else []
    succeed("train", *options, "--output-dir", output_dir, f"model.path={checkpoint}", *RUN, *settings)
    return output_dir


def run_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own."""
    return _run([sys.executable, "-m", "nemo_axpo.cli", *map(str, arguments)])


def run_ranks(num_ranks: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the command in several ranks under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    return _run([sys.executable, *torchrun, "-m", "nemo_axpo.cli", *map(str, arguments)])


def fork_ranks(num_ranks: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The same without torchrun, and without its seconds; what the ranks say is stdout and stderr alike."""
    return forked.run_ranks(num_ranks, forked.COMMAND, *arguments)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=600)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def reproducible(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what depends on the machine: times and memory."""
    timed = ("time/", "memory/", "sync/seconds", "sync/bytes_per_s", "sync/proof_s")
    return [{name: row[name] for name in row if not name.startswith(timed)} for row in rows]


def evaluation(run_dir: Path) -> dict[str, Any]:
    """Evaluations before and after training."""
    return json.loads((run_dir / "evaluation.json").read_text())


def trees(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """Recorded groups of a step, by question."""
    lines = (run_dir / "rollouts" / f"step_{step:05d}.jsonl").read_text().split("\n")
    return sorted((json.loads(line) for line in lines if line), key=lambda tree: tree["question_id"])
