"""K continuations of a thinking prefix, from its token ids (ALGORITHM §4).

The engine is asked to continue prompt + prefix; nothing is re-tokenised. The fork lies before any tool ran, so a fresh
tool state is the right state. The turn already begun is turn 1 of the continuation, and its tokens count against the
turn's bound.
"""

from __future__ import annotations

from nemo_axpo.rollouts.agent import RolloutJob
from nemo_axpo.types import Question, RenderedTokens, ThinkingPrefix


def continuation_jobs(
    prefix: ThinkingPrefix, *, question: Question, num_continuations: int, seed: int
) -> tuple[RolloutJob, ...]:
    """The K jobs of one prefix, ``<source>/k0`` to ``<source>/k<K-1>``, each with a seed branch of its own."""
    assert prefix.question_id == question.question_id, f"prefix of {prefix.question_id} with {question.question_id}"
    opening = prefix.prompt + RenderedTokens(prefix.completion.token_ids)
    index = int(prefix.source_rollout_id.rpartition("/")[2])
    return tuple(
        RolloutJob(
            f"{prefix.source_rollout_id}/k{k}", question, prefix.prompt, opening, seed, index, branch=k, prefix=prefix
        )
        for k in range(num_continuations)
    )
