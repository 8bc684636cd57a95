"""What the probes must show before a policy is trained on what an engine samples. A failed check stops the run.

    parity     mean |log-prob of the trainer - of the engine| over the sampled tokens, per modality, at most a tolerance
    sight      painting the picture gray changes the trainer's log-probs, where a picture is shown

A policy that never sees its pictures trains on: rewards fall a little, and nothing else tells. Engines that expand image
placeholders twice, keep caches over a weight update or renormalise top-p differently all fail parity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_axpo.canaries.probes import MODALITIES, Probes
from nemo_axpo.errors import CanaryError

PARITY_TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 0.1}
"""By the less exact dtype of trainer and engine. Equal models differ by 5e-6 and 5e-2; a stale cache by 2 and more."""
SIGHT_MINIMUM: Mapping[str, float] = {"float32": 1e-5, "bfloat16": 1e-3}
"""A picture that matters changes log-probs by 1e-3 and more even in an untrained model; rounding by less than this."""


@dataclass(frozen=True)
class Check:
    """One measurement of one replica."""

    name: str
    replica: int
    value: float
    limit: float
    passed: bool


def run_checks(
    probes: Probes, logprobs: Mapping[str, Sequence[float]], *, dtype: str, replica: int
) -> tuple[Check, ...]:
    """``logprobs``: the trainer's, ``[T]`` per row by rollout id; ``dtype``: the less exact of trainer and engine."""
    tolerance, minimum = PARITY_TOLERANCE[dtype], SIGHT_MINIMUM[dtype]
    checks = []
    for modality in MODALITIES:
        row = probes.rows[modality]
        pairs = zip(logprobs[row.rollout_id], row.engine_logprobs, row.loss_mask, strict=True)
        differences = [abs(ours - theirs) for ours, theirs, is_sampled in pairs if is_sampled]
        value = sum(differences) / len(differences)
        checks.append(Check(f"parity, {modality}", replica, value, tolerance, value <= tolerance))
    for modality, blank in probes.blanked.items():
        row = probes.rows[modality]
        pairs = zip(logprobs[row.rollout_id], logprobs[blank.rollout_id], row.loss_mask, strict=True)
        value = max(abs(seen - unseen) for seen, unseen, is_sampled in pairs if is_sampled)
        checks.append(Check(f"sight, {modality}", replica, value, minimum, value > minimum))
    return tuple(checks)


def require(checks: Sequence[Check]) -> None:
    """CanaryError that names every failed check and what usually causes it."""
    failed = [check for check in checks if not check.passed]
    if failed:
        lines = "\n  ".join(describe(check) for check in failed)
        raise CanaryError(f"engine and trainer must see and sample the same before a run; these checks failed:\n  {lines}")


def describe(check: Check) -> str:
    """Rule, value and cure in a line."""
    if check.name.startswith("sight"):
        rule = f"{check.name}: a gray picture must change log-probs by more than {check.limit:g}"
        cure = "the picture does not reach the model: check the processor, the image ids and the vision weights"
    else:
        rule = f"{check.name}: engine and trainer may differ by {check.limit:g} nats per token on average"
        cure = (
            "check that the engine has the trainer's weights (caches reset), banned ids, temperature and dtype; with "
            "pictures also that it expands each placeholder once"
        )
    return f"{rule}; got {check.value:.3g} on replica {check.replica}: {cure}"


def canary_dtype(trainer: str, engine: str) -> str:
    """The less exact of two dtype names."""
    return "bfloat16" if "bfloat16" in (trainer, engine) else "float32"
