"""Evaluation of a policy: n rollouts per question through the producer, reduced to one frozen result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nemo_axpo.algorithms.confidence import rollout_scores
from nemo_axpo.algorithms.metrics import rollout_metrics
from nemo_axpo.eval.pass_at_k import any_of, pass_at_k
from nemo_axpo.rollouts.metrics import rollout_cost
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.types import Question, RolloutGroup, group_rollouts


@dataclass(frozen=True)
class QuestionResult:
    """One evaluated question; the tuples have one entry per rollout."""

    question_id: str
    rewards: tuple[float, ...]
    uses_tool: tuple[bool, ...]
    answers: tuple[str | None, ...]


@dataclass(frozen=True)
class EvalResult:
    """Rates in [0, 1] over all questions; None where a rate has no denominator (no rollout called a tool, say)."""

    k: int
    pass_at_1: float | None
    """Mean over questions of the mean reward."""
    pass_at_k: float | None
    tool_use: float | None
    """Rollouts with a tool call ÷ rollouts."""
    tool_accuracy: float | None
    direct_accuracy: float | None
    all_wrong: float | None
    """All-wrong tool-using subgroups ÷ questions with a tool call."""
    tokens: float | None
    """Model tokens per rollout."""
    truncated: float | None
    """Rollouts that a limit ended ÷ rollouts."""
    num_rollouts: int
    questions: tuple[QuestionResult, ...] = ()
    """Questions of which every rollout was lost are left out."""

    def metrics(self) -> dict[str, float | None]:
        """Scalars under the names of metrics.jsonl and evaluation.json; Pass@k carries its k."""
        return {
            "pass@1": self.pass_at_1,
            f"pass@{self.k}": self.pass_at_k,
            "tool_use": self.tool_use,
            "tool_accuracy": self.tool_accuracy,
            "direct_accuracy": self.direct_accuracy,
            "all_wrong": self.all_wrong,
            "tokens": self.tokens,
            "truncated": self.truncated,
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON: the metrics, the counts and one record per question."""
        records = [asdict(question) for question in self.questions]
        counts = {"k": self.k, "num_questions": len(self.questions), "num_rollouts": self.num_rollouts}
        return {**self.metrics(), **counts, "questions": records}


async def evaluate(
    producer: Producer,
    questions: Sequence[Question],
    *,
    num_rollouts: int,
    seed: int,
    k: int | None = None,
    on_finished: Callable[[], None] | None = None,
) -> EvalResult:
    """Runs n rollouts per question at once; ``on_finished`` is called after every one of them.

    ``k`` defaults to n (any of n); ValueError for k outside 1 … n.
    """
    k = num_rollouts if k is None else k
    if not 1 <= k <= num_rollouts:
        raise ValueError(f"k must be between 1 and num_rollouts ({num_rollouts}), got {k}: draw more rollouts")
    rollouts = await producer.run_rollouts(questions, num_rollouts=num_rollouts, seed=seed, on_finished=on_finished)
    return summarize(group_rollouts(questions, rollouts), k=k)


def summarize(groups: Sequence[RolloutGroup], *, k: int) -> EvalResult:
    """Reduces rewarded groups to the result; groups without a rollout are left out."""
    groups = [group for group in groups if group.rollouts]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    questions = tuple(_question_result(group) for group in groups)
    rates, cost = rollout_metrics(rollout_scores(rollouts)), rollout_cost(rollouts)
    return EvalResult(
        k=k,
        pass_at_1=_mean([_pass_at_k(question.rewards, k=1) for question in questions]),
        pass_at_k=_mean([_pass_at_k(question.rewards, k=k) for question in questions]),
        tool_use=rates.tool_use,
        tool_accuracy=rates.tool_accuracy,
        direct_accuracy=rates.direct_accuracy,
        all_wrong=rates.all_wrong,
        tokens=cost.tokens,
        truncated=cost.truncated,
        num_rollouts=len(rollouts),
        questions=questions,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pass_at_k(rewards: Sequence[float], *, k: int) -> float:
    """The estimator; plain any-of where lost rollouts left fewer than k."""
    if len(rewards) < k:
        return any_of(rewards)
    return pass_at_k(len(rewards), sum(reward > 0 for reward in rewards), k=k)


def _question_result(group: RolloutGroup) -> QuestionResult:
    return QuestionResult(
        group.question.question_id,
        tuple(rollout.reward for rollout in group.rollouts),
        tuple(rollout.uses_tool for rollout in group.rollouts),
        tuple(rollout.answer for rollout in group.rollouts),
    )
