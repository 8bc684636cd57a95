"""What the probes must show before a policy is trained on what an engine samples. A failed check stops the run.

    parity         mean |log-prob of the trainer - of the engine| over the sampled tokens, per modality, at most a tolerance
    sight          painting the picture gray changes the trainer's log-probs, where a picture is shown
    placeholders   a prompt has as many image placeholders as the vision tower makes tokens of its pictures
    renormalised   log-probs are of the distribution sampled from: 0 where top-k or top-p leave a single token
    moved          after an update the engine does not answer exactly as before (only asked in a proof)
    version        completions carry the version of the trainer's weights
    tool tokens    ``<tool_call>`` and ``</tool_call>`` are one token each: a thinking prefix is cut at an id

A policy that never sees its pictures trains on: rewards fall a little, and nothing else tells. Engines that expand image
placeholders twice, keep caches over a weight update or cut the distribution (servers that apply the checkpoint's
generation_config.json do) all fail parity, provided that their log-probs are renormalised, which is why that is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_axpo.canaries.probes import MODALITIES, Probes
from nemo_axpo.data.vocabulary import TOKEN_TEXT
from nemo_axpo.errors import CanaryError, rule_message
from nemo_axpo.types import TrainingSample

PARITY_TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 0.1}
"""By the less exact dtype of trainer and engine. Equal models differ by 5e-6 and 5e-2; a stale cache by 2 and more."""
SIGHT_MINIMUM: Mapping[str, float] = {"float32": 1e-5, "bfloat16": 1e-3}
"""A picture that matters changes log-probs by 1e-3 and more even in an untrained model; rounding by less than this."""
RENORMALISED_TOLERANCE = 1e-4
"""Nats; the log of a softmax over one token is 0 in any dtype."""


@dataclass(frozen=True)
class Check:
    """One measurement of one replica. Its kind is the first part of its name: ``parity, text``."""

    name: str
    replica: int
    value: float
    limit: float
    passed: bool

    @property
    def kind(self) -> str:
        """Key of :data:`RULES`."""
        return self.name.partition(",")[0]


@dataclass(frozen=True)
class Rule:
    """What a kind of check demands, and what to do where it fails."""

    text: str
    """``{limit}`` stands for the check's limit."""
    cure: str
    sign: str = "≤"
    """How the measured value must compare with the limit."""


RULES: Mapping[str, Rule] = {
    "parity": Rule(
        "engine and trainer may differ by {limit:g} nats per token on average",
        "check that the engine has the trainer's weights (caches reset), banned ids, temperature and dtype, and samples from "
        "the whole distribution (vLLM: --generation-config vllm); with pictures also that it expands each placeholder once",
    ),
    "sight": Rule(
        "a gray picture must change log-probs by more than {limit:g}",
        "the picture does not reach the model: check the processor, the image ids and the vision weights",
        sign=">",
    ),
    "placeholders": Rule(
        "a prompt has one placeholder per image token: they may differ by {limit:g}",
        "the chat template or the image processor is not this model's: take both from one checkpoint",
    ),
    "renormalised": Rule(
        "where one token is left to choose, its log-prob is 0 within {limit:g}",
        "the engine must report the log-probs of the distribution it samples from (vLLM: logprobs_mode=processed_logprobs) and "
        "obey top_k and top_p",
    ),
    "moved": Rule(
        "where the trainer's log-probs moved by more than {limit:g} the engine must not answer exactly as before",
        "the engine did not take the new weights",
    ),
    "version": Rule(
        "completions carry the trainer's policy version: {limit:g} may carry another",
        "a server has other weights than it was pushed: restart it",
    ),
    "tool tokens": Rule(
        "<tool_call> and </tool_call> must be {limit:g} token each",
        "use a Qwen3-VL tokenizer, or add them as special tokens and resize the embeddings",
    ),
}


def run_checks(
    probes: Probes,
    logprobs: Mapping[str, Sequence[float]],
    *,
    dtype: str,
    replica: int,
    policy_version: int,
    tokenizer: Any,
) -> tuple[Check, ...]:
    """``logprobs``: the trainer's, ``[T]`` per row by rollout id; ``dtype``: the less exact of trainer and engine.

    ``policy_version``: the trainer's.
    """
    measured = [
        *_parities(probes, logprobs, tolerance=PARITY_TOLERANCE[dtype]),
        *_sights(probes, logprobs, minimum=SIGHT_MINIMUM[dtype]),
        *((f"placeholders, {name}", abs(have - need), 0) for name, (have, need) in probes.num_placeholders.items()),
        *(
            (f"renormalised, {name}", max(abs(value) for value in values), RENORMALISED_TOLERANCE)
            for name, values in probes.narrowed.items()
        ),
        ("version", sum(row.policy_version != policy_version for row in probes.rows.values()), 0),
        ("tool tokens", max(len(_ids(tokenizer, text)) for text in ("tool_call", "tool_call_end")), 1),
    ]
    return tuple(make_check(name, replica=replica, value=value, limit=limit) for name, value, limit in measured)


def make_check(name: str, *, replica: int, value: float, limit: float) -> Check:
    """A check of a kind that :data:`RULES` has."""
    kind = name.partition(",")[0]
    passed = value > limit if RULES[kind].sign == ">" else value <= limit
    return Check(name, replica, float(value), float(limit), passed)


def mean_difference(row: TrainingSample, logprobs: Sequence[float]) -> float:
    """Mean |trainer - engine| over the sampled tokens of a row, in nats. ``logprobs``: the trainer's, ``[T]``."""
    pairs = zip(logprobs, row.engine_logprobs, row.loss_mask, strict=True)
    differences = [abs(ours - theirs) for ours, theirs, is_sampled in pairs if is_sampled]
    return sum(differences) / len(differences)


def require(checks: Sequence[Check]) -> None:
    """CanaryError that names every failed check and what usually causes it."""
    failed = [check for check in checks if not check.passed]
    if failed:
        lines = "\n  ".join(describe(check) for check in failed)
        raise CanaryError(
            f"engine and trainer must see and sample the same before a run; these checks failed:\n  {lines}"
        )


def describe(check: Check) -> str:
    """Rule, value and cure in a line."""
    rule = RULES[check.kind]
    text = f"{check.name}: {rule.text.format(limit=check.limit)}"
    return rule_message(text, got=f"{check.value:.3g} on replica {check.replica}", cure=rule.cure)


def canary_dtype(trainer: str, engine: str) -> str:
    """The less exact of two dtype names."""
    return "bfloat16" if "bfloat16" in (trainer, engine) else "float32"


def _parities(
    probes: Probes, logprobs: Mapping[str, Sequence[float]], *, tolerance: float
) -> Iterator[tuple[str, float, float]]:
    for modality in MODALITIES:
        row = probes.rows[modality]
        yield f"parity, {modality}", mean_difference(row, logprobs[row.rollout_id]), tolerance


def _sights(
    probes: Probes, logprobs: Mapping[str, Sequence[float]], *, minimum: float
) -> Iterator[tuple[str, float, float]]:
    for modality, blank in probes.blanked.items():
        row = probes.rows[modality]
        pairs = zip(logprobs[row.rollout_id], logprobs[blank.rollout_id], row.loss_mask, strict=True)
        yield (
            f"sight, {modality}",
            max(abs(seen - unseen) for seen, unseen, is_sampled in pairs if is_sampled),
            minimum,
        )


def _ids(tokenizer: Any, name: str) -> list[int]:
    return tokenizer.encode(TOKEN_TEXT[name], add_special_tokens=False)
