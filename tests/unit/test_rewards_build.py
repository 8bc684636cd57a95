"""Verifiers as the config combines them; the canary before a run; rollouts whose reward cannot be known."""

from __future__ import annotations

import asyncio
import io

import pytest
from local_services import Reply, running
from rich.console import Console
from scripted_agent import ScriptedEngine, answer, by_turn, image_store, make_agent
from scripted_agent import make_question as make_picture_question
from small_runs import small_config
from test_rewards_judge import completion, sensible
from verifier_cases import make_question

from nemo_axpo.canaries.doctor import run_doctor
from nemo_axpo.config.checks import check_config
from nemo_axpo.config.load import load_config
from nemo_axpo.engines.base import EngineError
from nemo_axpo.errors import CanaryError, ConfigError
from nemo_axpo.rewards.base import VerifierRegistry, VerifierUnavailableError
from nemo_axpo.rewards.build import build_verifiers
from nemo_axpo.rollouts.producer import Producer
from nemo_axpo.train import run_training


def config_of(*overrides):
    return load_config(overrides)


def rewards(config, *cases):
    async def run():
        registry = build_verifiers(config.rewards)
        try:
            return [await registry.reward(question, given) for question, given in cases]
        finally:
            await registry.close()

    return asyncio.run(run())


def test_a_source_may_have_several_verifiers_of_which_one_says_right():
    config = config_of("+rewards.sources.mixed=[multiple_choice,math]", "+rewards.sources.search=token_f1",
                       "rewards.f1_threshold=0.8", "rewards.math.num_workers=1")  # fmt: skip
    mixed = [("B", "(b)"), ("\\frac{1}{2}", "0.5"), ("B", "C"), ("2", "3")]
    search = [("the blue whale", "blue whale shark"), ("the blue whale", "blue shark")]
    cases = [(make_question(right, source="mixed"), given) for right, given in mixed]
    cases += [(make_question(right, source="search"), given) for right, given in search]
    assert rewards(config, *cases) == [1, 1, 0, 0, 1, 0]


def test_one_that_is_unavailable_only_matters_where_no_other_says_right():
    with running(lambda asked: Reply({}, 400)) as service:
        config = config_of("+rewards.sources.s=[exact_match,judge]", f"rewards.judge.url={service.url}",
                           "rewards.judge.model=m", "rewards.judge.cache_dir=null")  # fmt: skip
        assert rewards(config, (make_question("red"), "Red")) == [1.0]
        with pytest.raises(VerifierUnavailableError):
            rewards(config, (make_question("red"), "blue"))


# -------------------------------------------------------------------------------------------------------------- config
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+rewards.sources.s=judge"], r"a judge needs rewards.judge.url; got null: name the endpoint"),
        (["rewards.math.stall_s=2"], r"stall_s \(wall\) must be above rewards.math.cpu_s; got 2.0 <= 3.0"),
        (
            ["+rewards.sources.s=[judge]", "rewards.judge.url=http://x/v1", "rewards.judge.model=m",
             "rewards.judge.key_variable=NO_SUCH_KEY"],
            "the judge's key is read from NO_SUCH_KEY; got it is not set: export NO_SUCH_KEY=",
        ),
    ],
)  # fmt: skip
def test_what_a_config_lacks(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_config(config_of(*overrides))


def test_a_verifier_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"rewards.sources.s.*'exact_match', 'multiple_choice', .* got 'exact'"):
        config_of("+rewards.sources.s=exact")


# -------------------------------------------------------------------------------------------------------------- canary
def judged(service, *, output_dir, checkpoint):
    overrides = ["rewards.sources.world=judge", f"rewards.judge.url={service.url}", "rewards.judge.model=m",
                 "rewards.judge.key_variable=null", "rewards.judge.cache_dir=null", "rewards.judge.max_retries=0",
                 "train.num_steps=1"]  # fmt: skip
    return small_config(*overrides, output_dir=output_dir, checkpoint=checkpoint)


def test_doctor_shows_the_known_answers(tmp_path, tiny_checkpoint):
    text = io.StringIO()
    with running(sensible) as service:
        config = judged(service, output_dir=tmp_path / "run", checkpoint=tiny_checkpoint)
        run_doctor(config, console=Console(file=text, width=200))
    assert "the answer is a dozen" in text.getvalue() and "FAILED" not in text.getvalue()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (lambda asked: completion("verdict: correct"), "gives 'London' the reward 1 instead of 0"),
        (lambda asked: completion("verdict: incorrect"), "the reward 0 instead of 1"),
        (lambda asked: Reply({}, 503), "the verifier of 'world' is not available: the judge: .* answered 503"),
    ],
)
def test_a_run_does_not_start_with_a_judge_that_fails_its_canary(script, message, tmp_path, tiny_checkpoint):
    with running(script) as service, pytest.raises(CanaryError, match=message):
        run_training(judged(service, output_dir=tmp_path / "run", checkpoint=tiny_checkpoint))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# ------------------------------------------------------------------------------------------------------------ rollouts
class Flaky:
    """A verifier that is unavailable the first ``times`` it is asked about an answer."""

    def __init__(self, times):
        self.times, self.asked = times, {}

    async def __call__(self, question, given):
        self.asked[given] = self.asked.get(given, 0) + 1
        if self.asked[given] <= self.times.get(given, 0):
            raise VerifierUnavailableError("down")
        return float(given == question.answer)


def roll_out(verifier, *, num_rollouts=3, **options):
    store = image_store()
    texts = ["red", "blue", "green"]
    engine = ScriptedEngine(lambda request: answer(texts[int(request.request_id.split("/")[1])]))
    producer = Producer(make_agent(engine, store), verifiers=VerifierRegistry({"world": verifier}), retry_delay_s=0.0,
                        **options)  # fmt: skip
    rollouts = asyncio.run(producer.run_rollouts([make_picture_question(store)], num_rollouts=num_rollouts, seed=1))
    return {rollout.answer: rollout.reward for rollout in rollouts}, engine


def test_a_verifier_that_recovers_costs_no_rollout():
    verifier = Flaky({"red": 2, "blue": 1})
    rewards_by_answer, engine = roll_out(verifier)
    assert rewards_by_answer == {"red": 1.0, "blue": 0.0, "green": 0.0}
    assert verifier.asked == {"red": 3, "blue": 2, "green": 1}
    assert len(engine.requests) == 3  # nothing was sampled again


def test_an_answer_that_cannot_be_verified_is_left_out_and_not_wrong(caplog):
    assert roll_out(Flaky({"blue": 99}))[0] == {"red": 1.0, "green": 0.0}
    assert "has no reward after 3 attempts" in caplog.text
    assert roll_out(Flaky({"blue": 1}), max_verifier_retries=0)[0] == {"red": 1.0, "green": 0.0}


def test_where_many_answers_stay_unverified_the_rest_would_mislead():
    assert roll_out(Flaky({"blue": 99}), max_lost=0.34)[0] == {"red": 1.0, "green": 0.0}
    with pytest.raises(EngineError, match=r"at most 33% .*rollout.max_lost.*; got 1 of 3: see the warnings"):
        roll_out(Flaky({"blue": 99}), max_lost=0.33)
    with pytest.raises(ValueError, match="share from 0 to 1"):
        roll_out(Flaky({}), max_lost=2)


def test_where_no_answer_can_be_verified_the_run_stops():
    with pytest.raises(EngineError, match="verifiers are down"):
        roll_out(Flaky({"red": 99, "blue": 99, "green": 99}))


def test_the_answer_block_may_be_waived():
    store = image_store()
    engine = ScriptedEngine(by_turn("so\n</think>\n\nit is \\boxed{red}<|im_end|>"))
    agent = make_agent(engine, store)
    producer = Producer(agent, verifiers=build_verifiers(load_config([]).rewards))
    assert asyncio.run(producer.run_rollouts([make_picture_question(store)], num_rollouts=1, seed=1))[0].answer is None
    agent._needs_answer_block = False
    assert asyncio.run(producer.run_rollouts([make_picture_question(store)], num_rollouts=1, seed=1))[0].reward == 1.0
