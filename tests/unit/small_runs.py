"""The smallest real runs: the tiny model with random weights, two questions, answers of four tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemo_axpo.config.load import load_config
from nemo_axpo.config.schema import Config

SETTINGS = (
    "algorithm=grpo",
    "algorithm.num_rollouts=2",
    "data.num_questions_per_step=2",
    "actor.num_minibatches=1",
    "rollout.max_new_tokens=4",
    "rollout.max_time_s=600",
    "eval.num_questions=2",
    "eval.num_rollouts=2",
    "logging.tensorboard=false",
)


def small_config(*overrides: str, output_dir: Path, checkpoint: Path | None = None) -> Config:
    """The settings above, and those given."""
    paths = {"output_dir": str(output_dir)} | ({"model.path": str(checkpoint)} if checkpoint else {})
    return load_config([*SETTINGS, *overrides], settings=paths)


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
