"""Evaluation of a policy: n rollouts per question through the producer, reduced to one frozen result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nemo_axpo.algorithms.confidence import rollout_scores
from nemo_axpo.algorithms.metrics import rollout_metrics
from nemo_axpo.distributed.replicas import OneProcess, Replicas
from nemo_axpo.eval.pass_at_k import any_of, pass_at_k
from nemo_axpo.rollouts.metrics import RowCosts, mean_costs, row_costs
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.types import Question, RolloutGroup, RolloutScore, group_rollouts

_ONE_PROCESS = OneProcess()


@dataclass(frozen=True)
class Answer:
    """What is kept of one evaluated rollout besides its score and cost."""

    rollout_id: str
    position: int
    """Of its question among those asked."""
    text: str | None


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
    producer: Producer | None,
    questions: Sequence[Question],
    *,
    num_rollouts: int,
    seed: int,
    k: int | None = None,
    on_finished: Callable[[], None] | None = None,
    replicas: Replicas = _ONE_PROCESS,
) -> EvalResult:
    """Runs n rollouts per question at once; ``on_finished`` is called after every one of this rank.

    Replicas share the questions; the result is that of all of them, on every rank. ``producer`` is None on ranks that
    do not sample. ``k`` defaults to n (any of n); ValueError for k outside 1 … n.
    """
    k = num_rollouts if k is None else k
    if not 1 <= k <= num_rollouts:
        raise ValueError(f"k must be between 1 and num_rollouts ({num_rollouts}), got {k}: draw more rollouts")
    own, groups = questions[replicas.index :: replicas.count], ()
    if producer is not None:
        each = (lambda question, rollout: on_finished()) if on_finished else None
        rollouts = await producer.run_rollouts(own, num_rollouts=num_rollouts, seed=seed, on_finished=each)
        groups = group_rollouts(own, rollouts)
    positions = {question.question_id: position for position, question in enumerate(questions)}
    return summarize(groups, k=k, positions=positions, replicas=replicas)


def summarize(
    groups: Sequence[RolloutGroup],
    *,
    k: int,
    positions: Mapping[str, int] | None = None,
    replicas: Replicas = _ONE_PROCESS,
) -> EvalResult:
    """Reduces the rewarded groups of all replicas to the result; groups without a rollout are left out.

    ``positions``: order of the questions in the result, by id; default: as ``groups``, for one process.
    """
    positions = positions or {group.question.question_id: number for number, group in enumerate(groups)}
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    own = [Answer(row.rollout_id, positions[row.question_id], row.answer) for row in rollouts]
    scores = replicas.gather(rollout_scores(rollouts), kind=RolloutScore)
    answers = replicas.gather(own, kind=Answer)
    cost = mean_costs(replicas.gather([row_costs(row) for row in rollouts], kind=RowCosts))
    questions, rates = _question_results(scores, answers), rollout_metrics(scores)
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
        num_rollouts=len(scores),
        questions=questions,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pass_at_k(rewards: Sequence[float], *, k: int) -> float:
    """The estimator; plain any-of where lost rollouts left fewer than k."""
    if len(rewards) < k:
        return any_of(rewards)
    return pass_at_k(len(rewards), sum(reward > 0 for reward in rewards), k=k)


def _question_results(scores: Sequence[RolloutScore], answers: Sequence[Answer]) -> tuple[QuestionResult, ...]:
    """Questions in the order in which they were asked; ``answers`` belong to ``scores`` one by one."""
    rows: dict[int, list[tuple[RolloutScore, str | None]]] = {}
    for score, answer in zip(scores, answers, strict=True):
        assert score.rollout_id == answer.rollout_id, "every rank tells scores and answers in the same order"
        rows.setdefault(answer.position, []).append((score, answer.text))
    return tuple(
        QuestionResult(
            group[0][0].question_id,
            tuple(score.reward for score, _ in group),
            tuple(score.uses_tool for score, _ in group),
            tuple(text for _, text in group),
        )
        for _, group in sorted(rows.items())
    )
