"""Numbers of a study: ``summary.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_axpo.report.outcome import median_of, outcome
from nemo_axpo.report.runs import EVALUATION_NAMES, RunRecord, arms_of, warm_starts
from nemo_axpo.report.verdict import verdict
from nemo_axpo.world.window import WarmStartWindow


def run_summary(run: RunRecord) -> dict[str, Any]:
    """One entry of ``runs`` in summary.json; None where something was not measured."""
    standing = outcome(run)
    seconds = run.series("time/step_s")[1]
    memory = run.series("memory/peak_gib")[1]
    return {
        "name": run.name,
        "algorithm": run.algorithm,
        "num_rollouts": run.num_rollouts,
        "seed": run.seed,
        **{name: standing.values.get(name) for name in EVALUATION_NAMES},
        "recovered": recovered_share(run),
        "wall_s": math.fsum(seconds) if seconds else None,
        "peak_memory_gib": max(memory, default=None),
        "steps": run.last_step,
        "planned_steps": run.num_steps,
        "finished": run.is_finished,
        "measured_by": standing.source,
    }


def recovered_share(run: RunRecord) -> float | None:
    """Recovered ÷ resampled subgroups over all of training; steps weigh by their number of resamples."""
    rows = [row for row in run.metrics if "rollout/recovery" in row and row.get("rollout/num_resamples", 0) > 0]
    total = math.fsum(row["rollout/num_resamples"] for row in rows)
    return math.fsum(row["rollout/recovery"] * row["rollout/num_resamples"] for row in rows) / total if rows else None


def study_summary(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """The content of summary.json."""
    window = WarmStartWindow()
    starts = [
        {"seed": run.seed, **run.start, "in_window": all(window.checks(run.start).values())}
        for run in warm_starts(runs)
    ]
    arms = {arm.label: {name: median_of(arm, name) for name in EVALUATION_NAMES} for arm in arms_of(runs)}
    return {
        "verdict": verdict(runs),
        "runs": [run_summary(run) for run in runs],
        "medians": arms,
        "warm_start": starts[0] if len(starts) == 1 else starts,
    }


def write_summary(path: Path, *, runs: Sequence[RunRecord]) -> None:
    """Writes summary.json."""
    path.write_text(json.dumps(study_summary(runs), indent=2, allow_nan=False) + "\n", encoding="utf-8")
