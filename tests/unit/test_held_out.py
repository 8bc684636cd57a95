"""Held-out questions: every run of one ``eval`` section answers the same test, whatever else its config says."""

from __future__ import annotations

import asyncio

import pytest
from small_runs import small_config

from nemo_axpo import assembly
from nemo_axpo.eval.held_out import evaluate_held_out
from nemo_axpo.models.qwen3_vl.loading import read_checkpoint

SECTION = ("eval.num_questions=3", "eval.num_rollouts=2", "eval.seed=7")


@pytest.fixture(name="evaluate")
def evaluate_fixture(tmp_path, tiny_checkpoint):
    """The result under these overrides, and how often a rollout was reported."""

    def run(*overrides):
        config = small_config(*SECTION, *overrides, output_dir=tmp_path, checkpoint=tiny_checkpoint)
        finished = []
        return asyncio.run(evaluated(config, on_finished=lambda: finished.append(1))), len(finished)

    async def evaluated(config, *, on_finished):
        bench = assembly.build_workbench(config, checkpoint=tiny_checkpoint)
        engine = assembly.build_engine(config, bench=bench)
        engine.load_weights(read_checkpoint(bench.checkpoint), policy_version=0)
        try:
            return await evaluate_held_out(config, bench=bench, engine=engine, on_finished=on_finished)
        finally:
            await engine.close()

    return run


def test_size_and_progress(evaluate):
    result, num_finished = evaluate()
    assert num_finished == result.num_rollouts == 6 and result.k == 2
    assert [question.question_id for question in result.questions] == ["eval-7-0", "eval-7-1", "eval-7-2"]
    assert all(len(question.rewards) == 2 for question in result.questions)


def test_nothing_but_its_section_chooses_questions_and_seeds(evaluate):
    expected, _ = evaluate("eval.temperature=1.0")
    other = ("seed=5", "data.num_questions_per_step=3", "algorithm.num_rollouts=3", "rollout.temperature=0.5")
    assert evaluate("eval.temperature=1.0", *other)[0] == expected
    questions = [question.question_id for question in evaluate("eval.seed=8")[0].questions]
    assert questions == ["eval-8-0", "eval-8-1", "eval-8-2"]


def test_its_own_temperature_is_used(evaluate, monkeypatch):
    """Greedy rollouts of one question are equal; sampled ones of random weights are not."""
    from nemo_axpo.engines.hf.engine import HfEngine

    sampled, generate = [], HfEngine.generate

    async def note(self, request):
        completion = await generate(self, request)
        sampled.append((request.prompt, completion.token_ids))
        return completion

    monkeypatch.setattr(HfEngine, "generate", note)
    evaluate("eval.temperature=0")
    assert len(sampled) == 6 and len(set(sampled)) == 3
    sampled.clear()
    evaluate("eval.temperature=1", "rollout.temperature=1e-3")
    assert len(set(sampled)) == 6
