"""Rollouts and credits become training samples; a source rollout becomes a thinking prefix.

    credit part      tokens with loss (model tokens only; prompt and observations never)
    ALL              the whole row
    PREFIX           up to and including the opening ``<tool_call>`` of the first call
    CONTINUATION     after the frozen prefix

With a prefix of 5 tokens (3 of them prompt), a source row of 8 and a continuation of 7 tokens::

    source         p p p t [ c c .      PREFIX        mask 0 0 0 1 1 0 0 0
    continuation   p p p t [ c .        CONTINUATION  mask 0 0 0 0 0 1 1

so the shared ``t [`` is trained once, with the source's advantage, and the failed call ``c c .`` not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nemo_axpo.types import (
    Completion,
    Credit,
    Rollout,
    RolloutStatus,
    RowPart,
    ThinkingPrefix,
    TrainBatch,
    TrainingSample,
)


def prefix_length(rollout: Rollout) -> int:
    """Row index one past the opening ``<tool_call>`` token of the first call."""
    first = rollout.turns[0]
    # A turn without a call ends a rollout, hence a rollout that calls a tool at all does so in turn 1.
    assert first.tool_call is not None, f"{rollout.rollout_id} has no tool call in turn 1, so it has no thinking prefix"
    assert first.tool_call.start >= 1, f"{rollout.rollout_id}: a call starts after its <tool_call> token"
    return len(first.prompt_delta.token_ids) + first.tool_call.start


def cut_prefix(source: Rollout, *, confidence: float) -> ThinkingPrefix:
    """The thinking prefix of a selected source, cut by token id; the fork lies before any tool ran.

    ``confidence`` is the source's score, in [0, 1]. What follows the ``<tool_call>`` token, a newline say, belongs to
    the continuation.
    """
    assert source.prefix is None, f"{source.rollout_id} is a continuation; only ordinary rollouts are sources"
    first = source.turns[0]
    num_frozen = prefix_length(source) - len(first.prompt_delta.token_ids)
    completion = Completion(
        first.completion.token_ids[:num_frozen],
        first.completion.logprobs[:num_frozen],
        "prefix",
        first.completion.policy_version,
    )
    return ThinkingPrefix(source.rollout_id, source.question_id, first.prompt_delta, completion, confidence)


def trained_span(rollout: Rollout, *, part: RowPart) -> tuple[int, int]:
    """Half-open row range that ``part`` names; the model tokens inside it are trained."""
    num_tokens = len(rollout.token_ids)
    is_continuation = rollout.prefix is not None
    assert is_continuation == (part is RowPart.CONTINUATION), f"{rollout.rollout_id} cannot be credited as {part.value}"
    if part is RowPart.PREFIX:
        return 0, prefix_length(rollout)
    if part is RowPart.CONTINUATION:
        return rollout.prefix.num_tokens, num_tokens
    return 0, num_tokens


def build_sample(rollout: Rollout, *, credit: Credit, temperature: float) -> TrainingSample:
    """One row with its loss mask, its one advantage on every trained token, and the engine's log-probs."""
    start, stop = trained_span(rollout, part=credit.part)
    model_mask = rollout.model_mask
    mask = tuple(is_model and start <= t < stop for t, is_model in enumerate(model_mask))
    assert not mask[0], f"{rollout.rollout_id}: a row starts with its prompt"
    return TrainingSample(
        rollout_id=rollout.rollout_id,
        question_id=rollout.question_id,
        token_ids=rollout.token_ids,
        loss_mask=mask,
        advantages=tuple(credit.advantage if trained else 0.0 for trained in mask),
        engine_logprobs=rollout.logprobs,
        image_ids=rollout.image_ids,
        # The oldest weights that sampled any of it bound how far off-policy the row is.
        policy_version=min(turn.completion.policy_version for turn in rollout.turns),
        temperature=temperature,
    )


def build_samples(
    rollouts: Sequence[Rollout], credits: Sequence[Credit], *, temperature: float
) -> tuple[TrainingSample, ...]:
    """One sample per arrived row, ordinary or continuation, in the order of ``rollouts``.

    Lost rows and rows without a trained token are left out. ``credits`` may speak of rows held elsewhere (each rank
    builds its own rows); a row without its credit is a bug. Rows with advantage 0 stay: KL acts on them, and they count
    in ``token_mean`` (see :func:`drop_without_advantage`).
    """
    credit_of = {credit.rollout_id: credit for credit in credits}
    assert len(credit_of) == len(credits), "a row has two credits: its tokens would be updated from two sources"
    arrived = [rollout for rollout in rollouts if rollout.status is not RolloutStatus.LOST]
    assert len({rollout.rollout_id for rollout in arrived}) == len(arrived), "two rows share a rollout id"
    uncredited = [rollout.rollout_id for rollout in arrived if rollout.rollout_id not in credit_of]
    assert not uncredited, f"rows without a credit: {uncredited}"
    samples = [build_sample(row, credit=credit_of[row.rollout_id], temperature=temperature) for row in arrived]
    return tuple(sample for sample in samples if any(sample.loss_mask))


def drop_without_advantage(batch: TrainBatch) -> TrainBatch:
    """The batch without rows whose advantage is 0, for a step without KL: they would have no gradient at all.

    Their unmasked tokens stay in the batch's ``num_loss_tokens``: the loss of the step is the same number as with them.
    """
    kept = tuple(sample for sample in batch.samples if any(sample.advantages))
    dropped = sum(sum(sample.loss_mask) for sample in batch.samples if not any(sample.advantages))
    return replace(batch, samples=kept, num_other_tokens=batch.num_other_tokens + dropped)
