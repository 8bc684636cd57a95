"""From the records of a benchmark to its scores, and from the benchmarks of a model to its row of the table.

* Pass@1: mean over questions of the mean reward of its rollouts; Pass@k: the share of questions that any of k rollouts solved.
* ± is the standard deviation (ddof = 1) over the k evaluations that rollouts 0, 1, … each make by themselves.
* Tool use: rollouts with a tool call ÷ rollouts; beside it the share of questions with such a rollout.
* Search benchmarks: exact match and token F1 of every rollout beside the reward.

Questions without all their rollouts and rewards are left out, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

from nemo_axpo.eval.benchmarks.definition import Benchmark
from nemo_axpo.eval.benchmarks.records import AnsweredQuestion, AnsweredRollout
from nemo_axpo.eval.bootstrap import BootstrapSettings, Estimate, average_estimate, mean_estimate
from nemo_axpo.eval.pass_at_k import any_of
from nemo_axpo.rewards.exact_match import matches
from nemo_axpo.rewards.token_f1 import token_f1
from nemo_axpo.types import Question, RolloutStatus


@dataclass(frozen=True)
class KindScore:
    """Questions of one kind."""

    num_questions: int
    pass_at_1: float
    pass_at_k: float


@dataclass(frozen=True)
class BenchmarkScore:
    """One benchmark of one model; rates in [0, 1], None where a rate has no denominator."""

    name: str
    title: str
    group: str
    paper_name: str | None
    num_questions: int
    """Complete ones, which the scores are of."""
    num_open: int
    """Questions without all their rollouts and rewards."""
    num_published: int | None
    """Questions that the benchmark has, as published."""
    k: int
    pass_at_1: Estimate
    pass_at_k: Estimate
    std: float | None
    """Of Pass@1 over k evaluations."""
    tool_use: Estimate
    """Rollouts with a tool call ÷ rollouts."""
    questions_with_tool: float
    """Questions with at least one such rollout ÷ questions."""
    tool_accuracy: float | None
    """Right among the rollouts with a tool call."""
    direct_accuracy: float | None
    truncated: float
    """Rollouts that a limit ended ÷ rollouts."""
    tokens: float
    """Model tokens per rollout."""
    turns: float
    calls: Mapping[str, float]
    """Calls per rollout, by tool."""
    measures: Mapping[str, float]
    """Further means over rollouts, by name."""
    kinds: Mapping[str, KindScore]


def score(
    benchmark: Benchmark,
    questions: Sequence[AnsweredQuestion],
    *,
    num_asked: int,
    k: int,
    settings: BootstrapSettings,
) -> BenchmarkScore | None:
    """The scores of the complete ``questions``; None without one. ``num_asked``: questions there should be."""
    done = [question for question in questions if question.is_complete(k)]
    if not done:
        return None
    rollouts = [rollout for question in done for rollout in question.rollouts]
    with_tool = [rollout for rollout in rollouts if rollout.uses_tool]
    direct = [rollout for rollout in rollouts if not rollout.uses_tool]
    return BenchmarkScore(
        name=benchmark.name,
        title=benchmark.shown_title,
        group=benchmark.group,
        paper_name=benchmark.paper_name,
        num_questions=len(done),
        num_open=num_asked - len(done),
        num_published=benchmark.num_questions,
        k=k,
        pass_at_1=mean_estimate(mean_rewards(done), settings=settings),
        pass_at_k=mean_estimate(solved(done), settings=settings),
        std=_std(done, k=k),
        tool_use=mean_estimate([_mean(r.uses_tool for r in one.rollouts) for one in done], settings=settings),
        questions_with_tool=_mean(any(r.uses_tool for r in one.rollouts) for one in done),
        tool_accuracy=_mean(r.reward for r in with_tool) if with_tool else None,
        direct_accuracy=_mean(r.reward for r in direct) if direct else None,
        truncated=_mean(r.status != RolloutStatus.ANSWERED for r in rollouts),
        tokens=_mean(r.num_tokens for r in rollouts),
        turns=_mean(r.num_turns for r in rollouts),
        calls=_calls(rollouts),
        measures={name: _mean(_measured(_MEASURES[name], done)) for name in benchmark.measures},
        kinds=_kinds(done),
    )


def averages(
    answered: Sequence[Sequence[AnsweredQuestion]], *, settings: BootstrapSettings
) -> tuple[Estimate | None, Estimate | None]:
    """Pass@1 and Pass@k as plain means over benchmarks, of the complete questions of each."""
    pass_at_1 = average_estimate([mean_rewards(questions) for questions in answered], settings=settings)
    return pass_at_1, average_estimate([solved(questions) for questions in answered], settings=settings)


def mean_rewards(questions: Sequence[AnsweredQuestion]) -> list[float]:
    """Pass@1 of every question."""
    return [_mean(rollout.reward for rollout in question.rollouts) for question in questions]


def solved(questions: Sequence[AnsweredQuestion]) -> list[float]:
    """1.0 for every question that any rollout solved, else 0.0: Pass@k with k rollouts."""
    return [any_of([rollout.reward for rollout in question.rollouts]) for question in questions]


def _std(questions: Sequence[AnsweredQuestion], *, k: int) -> float | None:
    if k < 2:
        return None
    return stdev(_mean(question.rollouts[number].reward for question in questions) for number in range(k))


def _calls(rollouts: Sequence[AnsweredRollout]) -> dict[str, float]:
    counts = Counter(tool or "malformed" for rollout in rollouts for tool in rollout.tools)
    return {tool: count / len(rollouts) for tool, count in sorted(counts.items())}


def _kinds(questions: Sequence[AnsweredQuestion]) -> dict[str, KindScore]:
    by_kind: dict[str, list[AnsweredQuestion]] = {}
    for question in questions:
        by_kind.setdefault(question.kind, []).append(question)
    return {
        kind: KindScore(len(group), _mean(mean_rewards(group)), _mean(solved(group)))
        for kind, group in sorted(by_kind.items())
        if kind
    }


def _measured(
    measure: Callable[[str, tuple[str, ...]], float], questions: Sequence[AnsweredQuestion]
) -> Iterable[float]:
    """Of every rollout; 0 for one without an answer."""
    for question in questions:
        for rollout in question.rollouts:
            yield measure(rollout.answer, question.answers) if rollout.answer is not None else 0.0


def _exact_match(answer: str, references: tuple[str, ...]) -> float:
    return float(matches(Question("", (), references[0], "", references[1:]), answer))


def _best_f1(answer: str, references: tuple[str, ...]) -> float:
    return max(token_f1(answer, reference) for reference in references)


_MEASURES: Mapping[str, Callable[[str, tuple[str, ...]], float]] = {
    "exact_match": _exact_match,
    "token_f1": _best_f1,
}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
