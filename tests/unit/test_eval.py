"""Pass@k by hand and by enumeration, and the reduction of rollouts to one result."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from scripted_agent import ZOOM, ScriptedEngine, answer, image_store, make_agent, make_producer, make_question

from nemo_axpo.engines.base import EngineError
from nemo_axpo.eval.evaluate import evaluate
from nemo_axpo.eval.pass_at_k import any_of, pass_at_k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 0, 4, 0.0),
        (4, 1, 4, 1.0),
        (4, 1, 1, 0.25),
        (4, 1, 2, 0.5),  # 1 − C(3,2)/C(4,2) = 1 − 3/6
        (5, 2, 3, 0.9),  # 1 − C(3,3)/C(5,3) = 1 − 1/10
        (8, 3, 2, 9 / 14),  # 1 − C(5,2)/C(8,2) = 1 − 10/28
        (4, 4, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(n, c, k, expected):
    assert pass_at_k(n, c, k=k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_is_the_mean_of_any_of_over_all_subsets():
    for n, c in itertools.product(range(1, 7), range(7)):
        rewards = [1.0] * min(c, n) + [0.0] * (n - min(c, n))
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(rewards, k))
            mean = sum(any_of(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(n, min(c, n), k=k) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_what_it_cannot_estimate(n, c, k):
    with pytest.raises(ValueError, match="1 <= k <= n"):
        pass_at_k(n, c, k=k)


TABLE = {
    # question: (uses tool, correct) of its rollouts
    "q1": ("tool wrong", "tool wrong", "direct right", "direct wrong"),  # all-wrong
    "q2": ("tool right", "tool wrong", "direct wrong", "direct wrong"),
    "q3": ("direct right", "direct wrong", "direct wrong", "direct wrong"),  # no tool call
    "q4": ("lost", "lost", "lost", "lost"),
    "q5": ("tool wrong", "lost", "lost", "direct wrong"),  # all-wrong
}


def script(request):
    question, n, turn = request.request_id.split("/")
    kind = TABLE[question][int(n)]
    if kind == "lost":
        return EngineError("down")
    if kind.startswith("tool") and turn == "t0":
        return ZOOM
    return answer("red" if kind.endswith("right") else "blue")


def run(questions=tuple(TABLE), **options):
    store = image_store()
    producer = make_producer(make_agent(ScriptedEngine(script), store), max_retries=0)
    return asyncio.run(
        evaluate(producer, [make_question(store, q) for q in questions], num_rollouts=4, seed=0, **options)
    )


def test_evaluation_by_hand():
    result = run()
    assert result.pass_at_1 == pytest.approx((1 / 4 + 1 / 4 + 1 / 4 + 0) / 4)
    assert (result.k, result.pass_at_k) == (4, 3 / 4)
    assert result.num_rollouts == 14 and [q.question_id for q in result.questions] == ["q1", "q2", "q3", "q5"]
    assert result.tool_use == pytest.approx(5 / 14)
    assert result.tool_accuracy == pytest.approx(1 / 5) and result.direct_accuracy == pytest.approx(2 / 9)
    assert result.all_wrong == pytest.approx(2 / 3)
    assert result.truncated == 0.0
    engine = ScriptedEngine(script)
    call, final = len(engine.complete(ZOOM).token_ids), len(engine.complete(answer("red")).token_ids)
    assert result.tokens == pytest.approx((5 * call + 14 * final) / 14, abs=1.0)
    assert result.questions[1].rewards == (1.0, 0.0, 0.0, 0.0)
    assert result.questions[1].uses_tool == (True, True, False, False)
    assert result.questions[3].answers == ("blue", "blue")


def test_smaller_k_uses_the_estimator():
    # c = 1 of 4 gives 1/2 at k = 2; q5 has two rollouts, none correct
    assert run(k=2).pass_at_k == pytest.approx((3 * 1 / 2 + 0) / 4)


def test_rates_without_denominator_are_none_and_everything_is_json():
    result = run(("q3",))
    assert (result.tool_use, result.tool_accuracy, result.all_wrong) == (0.0, None, None)
    record = json.loads(json.dumps(result.as_dict()))
    assert record["pass@1"] == 0.25 and record["pass@4"] == 1.0 and record["num_questions"] == 1
    assert set(result.metrics()) >= {"pass@1", "pass@4", "tool_use", "tool_accuracy", "direct_accuracy", "all_wrong"}


def test_k_is_at_most_n():
    with pytest.raises(ValueError, match=r"k must be between 1 and num_rollouts \(4\), got 5"):
        run(k=5)
