"""AXPO's trigger, ranking, budget and credit: the paper's golden values, and one test per mistake seen elsewhere."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_axpo.algorithms.axpo import Axpo, is_triggered, rank_candidates, select_breadth_first
from nemo_axpo.algorithms.base import get_algorithm
from nemo_axpo.algorithms.group_statistics import group_scores
from nemo_axpo.algorithms.grpo import Grpo
from nemo_axpo.types import Credit, ResamplePlan, ResampleScore, RolloutScore, RowPart


def direct(question: str, index: int, reward: float = 0.0) -> RolloutScore:
    return RolloutScore(question, f"{question}/{index}", reward, uses_tool=False)


def tool(question: str, index: int, confidence: float = 0.5, reward: float = 0.0) -> RolloutScore:
    return RolloutScore(question, f"{question}/{index}", reward, uses_tool=True, confidence=confidence)


def resamples_of(source: RolloutScore, *rewards: float) -> list[ResampleScore]:
    return [ResampleScore(source.rollout_id, f"{source.rollout_id}/k{k}", reward) for k, reward in enumerate(rewards)]


def axpo(*, questions: int = 4, rollouts: int = 8, k: int = 4, ratio: float = 0.25) -> Axpo:
    return Axpo(num_questions=questions, num_rollouts=rollouts, num_continuations=k, resample_ratio=ratio)


def golden_group(num_correct: int) -> tuple[list[RolloutScore], RolloutScore]:
    """N = 8: one all-wrong tool-using source and ``num_correct`` correct rollouts without a tool."""
    source = tool("q", 7)
    return [direct("q", i, float(i < num_correct)) for i in range(7)] + [source], source


def credit_by_id(algorithm: Axpo, scores, sources, resamples) -> dict[str, Credit]:
    credits = algorithm.credit(scores, ResamplePlan(tuple(sources), algorithm.num_continuations), resamples)
    return {credit.rollout_id: credit for credit in credits}


# ------------------------------------------------------------------------------------------------------ golden values
@pytest.mark.parametrize(
    ("num_correct", "prefix", "plain"),
    [(0, 2.4749, 0.0), (1, 1.6202, -0.3536), (2, 1.2076, -0.5401), (3, 0.9354, -0.7246), (4, 0.7246, -0.9354)],
)
def test_golden_prefix_advantage_and_the_plain_one_it_replaces(num_correct, prefix, plain):
    scores, source = golden_group(num_correct)
    credits = credit_by_id(axpo(), scores, [source], resamples_of(source, 0, 1, 0, 0))
    assert credits["q/7"].part is RowPart.PREFIX
    assert credits["q/7"].advantage == pytest.approx(prefix, abs=5e-5)
    unselected = credit_by_id(axpo(), scores, [], [])
    assert unselected["q/7"] == Credit("q/7", RowPart.ALL, pytest.approx(plain, abs=5e-5))


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ((0, 1, 0, 0), (-0.5, 1.5, -0.5, -0.5)),
        ((1, 0, 0, 1), (0.8660, -0.8660, -0.8660, 0.8660)),
        ((1, 1, 0, 1), (0.5, 0.5, -1.5, 0.5)),
        ((1, 1, 1, 1), (0.0, 0.0, 0.0, 0.0)),
        ((0, 0, 0, 0), (0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_golden_continuation_advantages(rewards, expected):
    scores, source = golden_group(2)
    credits = credit_by_id(axpo(), scores, [source], resamples_of(source, *rewards))
    continuations = [credits[f"q/7/k{k}"] for k in range(4)]
    assert all(credit.part is RowPart.CONTINUATION for credit in continuations)
    assert [credit.advantage for credit in continuations] == pytest.approx(expected, abs=5e-5)


def test_unrecovered_prefix_keeps_its_plain_advantage():
    scores, source = golden_group(3)
    plain = credit_by_id(axpo(), scores, [], [])["q/7"].advantage
    credit = credit_by_id(axpo(), scores, [source], resamples_of(source, 0, 0, 0, 0))["q/7"]
    assert credit == Credit("q/7", RowPart.PREFIX, plain)
    assert plain < 0


def test_two_sources_of_one_group_each_replace_only_their_own_entry():
    scores = [tool("q", 0), tool("q", 1), direct("q", 2), direct("q", 3)]
    resamples = resamples_of(scores[0], 1, 0) + resamples_of(scores[1], 0, 1)
    credits = credit_by_id(axpo(rollouts=4, k=2), scores, scores[:2], resamples)
    # r̃ = (1, 0, 0, 0): mean 1/4, std 1/2; with both replaced it would be (1, 1, 0, 0) and 0.866.
    assert [credits[f"q/{i}"].advantage for i in (0, 1)] == pytest.approx([1.5, 1.5], abs=5e-6)
    assert [credits[f"q/{i}"].advantage for i in (2, 3)] == [0.0, 0.0]


# ------------------------------------------------------------------------------------------- mistakes seen elsewhere
def test_replaced_rewards_do_not_leak_into_unselected_rollouts():
    scores, source = golden_group(2)
    with_resamples = credit_by_id(axpo(), scores, [source], resamples_of(source, 1, 1, 0, 0))
    plain = {c.rollout_id: c for c in Grpo(num_questions=1, num_rollouts=8).credit(scores, ResamplePlan(), ())}
    for index in range(7):
        assert with_resamples[f"q/{index}"] == plain[f"q/{index}"]


def test_prefix_statistics_run_over_n_rewards_not_n_plus_k():
    scores, source = golden_group(0)
    advantage = credit_by_id(axpo(), scores, [source], resamples_of(source, 1, 1, 1, 1))["q/7"].advantage
    assert advantage == pytest.approx(2.4749, abs=5e-5)  # over the 12 rows it would be (1 - 5/12) / 0.5149 = 1.133


def test_continuation_statistics_leave_the_source_out():
    scores, source = golden_group(0)
    credits = credit_by_id(axpo(), scores, [source], resamples_of(source, 1, 1, 1, 1))
    assert credits["q/7/k0"].advantage == 0.0  # with the source's 0 among them it would be 0.447


def test_budget_is_shared_by_the_batch_not_granted_per_question():
    scores = [tool(f"q{q}", i, confidence=0.1 * q + 0.01 * i) for q in range(4) for i in range(8)]
    assert axpo(questions=4).quota == 2
    assert [source.rollout_id for source in axpo(questions=4).plan(scores).sources] == ["q0/0", "q1/0"]
    lonely = [tool("q0", 0, 0.2), tool("q0", 1, 0.1)] + [direct("q1", i) for i in range(8)]
    assert [source.rollout_id for source in axpo(questions=4).plan(lonely).sources] == ["q0/1", "q0/0"]


def test_trigger_looks_at_the_tool_using_subgroup_alone():
    assert is_triggered([tool("q", 0), direct("q", 1, reward=1.0)])
    assert is_triggered([tool("q", 0), direct("q", 1)])
    assert not is_triggered([direct("q", 0), direct("q", 1)])
    assert not is_triggered([tool("q", 0), tool("q", 1, reward=1.0)])
    assert not is_triggered([])


# ------------------------------------------------------------------------------------------------- ranking and budget
def test_least_confident_source_goes_first_and_ties_go_by_id():
    scores = [tool("q", 0, 0.6), tool("q", 1, 0.3), tool("q", 2, 0.3), direct("q", 3, 1.0)]
    plan = axpo(questions=8).plan(scores)
    assert [source.rollout_id for source in plan.sources] == ["q/1", "q/2", "q/0"]
    assert plan.num_continuations == 4


def test_ties_do_not_go_by_the_order_of_the_input():
    tied = [tool("b", 1), tool("b", 0)]
    assert rank_candidates(tied) == tied[::-1]
    assert select_breadth_first([tied[:1], tied[1:]], quota=1) == (tied[1],)


def test_every_question_gets_its_best_prefix_before_any_gets_a_second():
    scores = [tool("a", 0, 0.01), tool("a", 1, 0.02), tool("a", 2, 0.03), tool("b", 0, 0.9), tool("c", 0, 0.8)]
    order = [source.rollout_id for source in axpo(questions=8).plan(scores).sources]
    assert order == ["a/0", "c/0", "b/0", "a/1"]


def test_budget_uses_planned_rollouts_and_floors_to_whole_prefixes():
    assert axpo(questions=256).quota == 128
    assert axpo(questions=3).quota == 1
    assert axpo(questions=100, rollouts=29, k=29, ratio=0.29).quota == 29  # in binary floats 0.29 · 2900 / 29 < 29
    assert len(axpo(questions=4).plan([tool("q", 0), tool("q", 1)]).sources) == 2  # six of eight rollouts were lost


def test_source_whose_continuations_were_all_lost_counts_as_not_selected():
    scores, source = golden_group(1)
    credits = credit_by_id(axpo(), scores, [source], [])
    assert credits["q/7"] == Credit("q/7", RowPart.ALL, pytest.approx(-0.3536, abs=5e-5))


def test_lost_continuations_leave_the_statistics_to_the_rest():
    scores, source = golden_group(0)
    credits = credit_by_id(axpo(), scores, [source], resamples_of(source, 1, 0)[:2])
    assert credits["q/7/k0"].advantage == pytest.approx(math.sqrt(0.5), abs=5e-6)
    alone = credit_by_id(axpo(), scores, [source], resamples_of(source, 1))
    assert (alone["q/7/k0"].advantage, alone["q/7"].advantage) == (0.0, pytest.approx(2.4749, abs=5e-5))


# ----------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollouts": 1}, "N >= 2 rollouts per question; got N=1"),
        ({"questions": 0}, "got B=0"),
        ({"k": 1}, "K >= 2; got K=1"),
        ({"ratio": 0.0}, "got r=0.0.*choose the algorithm grpo"),
        ({"ratio": math.nan}, "got r=nan"),
        ({"ratio": -0.25}, "got r=-0.25"),
        ({"questions": 1, "k": 4}, r"K <= r·B·N; got K=4, r=0.25, B=1, N=8 \(r·B·N=2\): raise r"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        axpo(**settings)


def test_smallest_settings_that_make_sense():
    assert get_algorithm("axpo") is Axpo
    assert axpo(questions=2, k=4).quota == 1


def test_broken_records_are_refused():
    algorithm, source = axpo(), tool("q", 0)
    with pytest.raises(AssertionError, match="its confidence is nan"):
        algorithm.plan([tool("q", 0, math.nan)])
    with pytest.raises(AssertionError, match="the plan does not have"):
        algorithm.credit([source], ResamplePlan((), 4), resamples_of(source, 1))
    with pytest.raises(AssertionError, match="more continuations than planned"):
        algorithm.credit([source], ResamplePlan((source,), 4), resamples_of(source, 0, 0, 0, 0, 0))
    with pytest.raises(AssertionError, match="credited twice"):
        algorithm.credit([source], ResamplePlan((source,), 4), resamples_of(source, 1) * 2)


# ---------------------------------------------------------------------------------------------------------- properties
@st.composite
def steps(draw) -> tuple[Axpo, list[RolloutScore]]:
    """A random step: groups of any mixture, few distinct confidences so that ties occur, some rollouts missing."""
    num_questions, num_rollouts = draw(st.integers(1, 6)), draw(st.integers(2, 6))
    num_continuations = draw(st.integers(2, 5))
    least = num_continuations / (num_questions * num_rollouts)
    algorithm = axpo(
        questions=num_questions,
        rollouts=num_rollouts,
        k=num_continuations,
        ratio=draw(st.floats(least * 1.01, least * 8)),
    )
    scores = []
    for q in range(num_questions):
        for i in range(draw(st.integers(0, num_rollouts))):
            reward = float(draw(st.integers(0, 5)) == 0)
            confidence = draw(st.sampled_from([0.1, 0.5, 0.9]))
            uses_tool = draw(st.booleans())
            scores.append(tool(f"q{q}", i, confidence, reward) if uses_tool else direct(f"q{q}", i, reward))
    return algorithm, scores


@given(steps())
def test_budget_is_never_exceeded_and_never_wasted(step):
    algorithm, scores = step
    plan = algorithm.plan(scores)
    budget = algorithm.resample_ratio * algorithm.num_questions * algorithm.num_rollouts
    assert len(plan.sources) * plan.num_continuations <= budget + 1e-9
    triggered = {q for q, group in group_scores(scores).items() if is_triggered(group)}
    candidates = [score for score in scores if score.uses_tool and score.question_id in triggered]
    assert len(plan.sources) == min(algorithm.quota, len(candidates))
    assert set(plan.sources) <= set(candidates)


@given(steps())
def test_breadth_comes_before_depth(step):
    algorithm, scores = step
    sources = algorithm.plan(scores).sources
    chosen = {q: sum(s.question_id == q for s in sources) for q in {score.question_id for score in scores}}
    for question, num_chosen in chosen.items():
        group = [score for score in scores if score.question_id == question]
        has_more = is_triggered(group) and sum(s.uses_tool for s in group) > num_chosen
        assert not has_more or max(chosen.values()) <= num_chosen + 1
        taken = {s.rollout_id for s in sources if s.question_id == question}
        left = [s.confidence for s in group if s.uses_tool and s.rollout_id not in taken]
        assert not (taken and left) or max(s.confidence for s in group if s.rollout_id in taken) <= min(left)


@given(steps(), st.randoms(use_true_random=False))
def test_nothing_depends_on_the_order_of_arrival(step, rng: random.Random):
    algorithm, scores = step
    plan = algorithm.plan(scores)
    resamples = [r for s in plan.sources for r in resamples_of(s, *(rng.choice((0, 1)) for _ in range(2)))]
    credits = algorithm.credit(scores, plan, resamples)
    rng.shuffle(scores)
    rng.shuffle(resamples)
    assert algorithm.plan(scores) == plan
    assert algorithm.credit(scores, plan, resamples) == credits


@given(steps(), st.randoms(use_true_random=False))
def test_every_row_gets_exactly_one_credit(step, rng: random.Random):
    algorithm, scores = step
    plan = algorithm.plan(scores)
    rewards = [[rng.choice((0, 1)) for _ in range(rng.randrange(3))] for _ in plan.sources]
    resamples = [r for source, given in zip(plan.sources, rewards) for r in resamples_of(source, *given)]
    ids = [credit.rollout_id for credit in algorithm.credit(scores, plan, resamples)]
    assert ids == sorted([score.rollout_id for score in scores] + [resample.rollout_id for resample in resamples])


# ------------------------------------------------------------------------------------------------------ certain sources
def test_a_first_choice_is_certain_once_the_open_questions_cannot_use_up_the_budget():
    """floor(0.25 · 8 · 8 / 4) = 4 prefixes; two triggered questions are complete."""
    algorithm = axpo(questions=8)
    finished = [tool("a", 0, 0.2), tool("a", 1, 0.4), direct("a", 2), tool("b", 0, 0.3)]

    def certain(num_open):
        plan = algorithm.certain_plan(finished, num_running={}, num_unknown=num_open)
        assert plan == algorithm.certain_plan(finished, num_running={f"open{q}": 8 for q in range(num_open)})
        return [source.rollout_id for source in plan.sources]

    assert certain(6) == certain(4) == []  # four first choices may all be less confident than a/0
    assert certain(3) == ["a/0"]  # at worst it is the fourth
    assert certain(2) == ["a/0", "b/0"]
    assert certain(1) == ["a/0", "b/0"]  # the open question may have two choices before a/1: 2 + 2 = 4
    assert certain(0) == ["a/0", "b/0", "a/1"]
    assert algorithm.certain_plan(finished, num_running={}) == algorithm.plan(finished)


def test_an_open_question_competes_with_what_it_can_still_have():
    """Quota 4, two questions complete, five unknown: a/0 has its place unless another question may overtake it too."""
    algorithm = axpo(questions=8)
    finished = [tool("a", 0, 0.2), tool("a", 1, 0.4), direct("a", 2), tool("b", 0, 0.3)]

    def certain(*of_c, running, unknown=3):
        plan = algorithm.certain_plan([*finished, *of_c], num_running={"c": running}, num_unknown=unknown)
        return [source.rollout_id for source in plan.sources]

    assert certain(running=8) == []
    assert certain(tool("c", 0, 0.1), running=7) == []
    assert certain(tool("c", 0, 0.1, reward=1), running=7) == ["a/0"]  # a right tool call: c is never triggered
    assert certain(direct("c", 0), running=0) == ["a/0"]  # complete, and no tool was used
    assert certain(tool("c", 0, 0.1), running=1, unknown=1) == ["a/0", "b/0"]  # a/1: 2 + (c: 2) + (unknown: 2) is 6
    assert certain(direct("c", 0), running=1, unknown=0) == ["a/0", "b/0", "a/1"]  # c has at most one choice


@given(steps(), st.randoms(use_true_random=False))
def test_a_certain_source_is_in_the_plan_of_the_whole_step(step, rng: random.Random):
    algorithm, scores = step
    complete = {f"q{q}" for q in range(algorithm.num_questions) if rng.random() < 0.7}
    finished = [score for score in scores if score.question_id in complete or rng.random() < 0.5]
    late = Counter(score.question_id for score in scores) - Counter(score.question_id for score in finished)
    is_known = rng.random() < 0.5  # of the questions that are open; else they are on other replicas
    if not is_known:
        finished = [score for score in finished if score.question_id not in late]
    running, unknown = (late, 0) if is_known else ({}, len(late))
    certain = algorithm.certain_plan(finished, num_running=running, num_unknown=unknown)
    assert set(certain.sources) <= set(algorithm.plan(scores).sources)
    assert algorithm.certain_plan(scores, num_running={}) == algorithm.plan(scores)


# -------------------------------------------------------------------------------------------------------- proposition 1
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(1, 64))
def test_proposition_1_forking_removes_the_factor_q(q, p_tool, p_prefix, n):
    if p_prefix >= q * p_tool:
        assert 1 - (1 - p_prefix) ** n >= 1 - (1 - q * p_tool) ** n - 1e-12


def test_proposition_1_by_simulation():
    """Prefixes with success 0.05, 0.1, 0.3 (equally likely), tool use 0.3: every one beats N fresh rollouts."""
    rng, q, prefixes, n, trials = random.Random(0), 0.3, (0.05, 0.1, 0.3), 4, 20_000
    p_tool = sum(prefixes) / len(prefixes)

    def solved_fresh() -> bool:
        return any(rng.random() < q and rng.random() < rng.choice(prefixes) for _ in range(n))

    fresh = sum(solved_fresh() for _ in range(trials)) / trials
    assert fresh == pytest.approx(1 - (1 - q * p_tool) ** n, abs=0.01)
    for success in prefixes:
        forked = sum(any(rng.random() < success for _ in range(n)) for _ in range(trials)) / trials
        assert forked == pytest.approx(1 - (1 - success) ** n, abs=0.01)
        assert (forked > fresh) == (success >= q * p_tool)
