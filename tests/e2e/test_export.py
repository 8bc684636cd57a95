"""Any training checkpoint as a checkpoint that transformers loads, and that evaluates as the run did."""

from __future__ import annotations

import asyncio
import filecmp
import inspect
import json
import os
import shutil

import pytest
import torch
from tiny_runs import NUM_STEPS, evaluation, metrics, nemo_axpo, succeed
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from nemo_axpo import assembly
from nemo_axpo.config.load import load_saved_config
from nemo_axpo.models.qwen3_vl.loading import read_checkpoint


@pytest.fixture(scope="module")
def exported(axpo, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "policy"
    succeed("export", axpo, "--output", path)
    return path


def evaluate(checkpoint, *, run, output):
    result = succeed("eval", "--checkpoint", checkpoint, "--run", run, "--output", output)
    assert "Pass@1" in result.out and "Tool use" in result.out
    return json.loads(output.read_text())


def test_it_is_the_policy_the_run_ended_with(axpo, exported):
    names = sorted(path.name for path in exported.iterdir())
    assert names == sorted(path.name for path in (axpo / "hf").iterdir())
    assert filecmp.cmpfiles(exported, axpo / "hf", names, shallow=False) == (names, [], [])


def test_it_evaluates_as_the_run_did(axpo, exported, tmp_path):
    result = evaluate(exported, run=axpo, output=tmp_path / "new" / "result.json")
    final = evaluation(axpo)["final"]
    assert {name: result[name] for name in final} == final
    assert result["checkpoint"] == str(exported)


def test_an_earlier_step_evaluates_as_the_run_did_then(axpo, tmp_path):
    succeed("export", axpo, "--output", tmp_path / "policy", "--step", 2)
    result = evaluate(tmp_path / "policy", run=axpo, output=tmp_path / "result.json")
    then = {name: value for name, value in metrics(axpo)[1].items() if name.startswith("eval/")}
    assert then and {name: result[name.removeprefix("eval/")] for name in then} == then


def test_transformers_agrees_with_what_the_engine_sampled(axpo, exported):
    """Rollouts with tool calls, their crops included, scored by transformers' own forward pass."""
    config = load_saved_config(axpo / "config.yaml")
    bench = assembly.build_workbench(config, checkpoint=exported)
    engine = assembly.build_engine(config, bench=bench)
    engine.load_weights(read_checkpoint(exported), policy_version=0)
    producer = assembly.build_producer(config, bench=bench, engine=engine, temperature=1.0)
    questions = assembly.build_questions(config, stream="test", seed=0, images=bench.images).take(0, 2)

    async def sample():
        rollouts = await producer.run_rollouts(questions, num_rollouts=4, seed=0)
        await engine.close()
        return rollouts

    rollouts = asyncio.run(sample())
    assert any(len(rollout.turns) > 1 for rollout in rollouts)
    model = Qwen3VLForConditionalGeneration.from_pretrained(exported).eval()
    for rollout in rollouts:
        logprobs_T = transformers_logprobs(model, rollout, bench=bench)
        start = 0
        for turn in rollout.turns:
            start += len(turn.prompt_delta.token_ids)
            stop = start + len(turn.completion.token_ids)
            assert torch.allclose(logprobs_T[start:stop], torch.tensor(turn.completion.logprobs), atol=2e-5)
            start = stop


@torch.no_grad()
def transformers_logprobs(model, rollout, *, bench):
    """Log-probs ``[T]`` of the tokens of a row; banned ids have none."""
    ids = torch.tensor([rollout.token_ids])
    images = [image for turn in rollout.turns for image in turn.prompt_delta.image_ids]
    features = [bench.images.features(image) for image in images]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),  # transformers 4.57 counts positions by it
        "pixel_values": torch.cat([image.pixel_values_PD for image in features]),
        "image_grid_thw": torch.tensor([image.grid_thw for image in features]),
    }
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    model.model.rope_deltas = None
    logits_TV = model(**inputs, use_cache=False).logits[0]
    logits_TV[:, list(bench.banned_token_ids)] = float("-inf")
    chosen = logits_TV[:-1].log_softmax(-1).gather(1, ids[0, 1:].unsqueeze(1)).squeeze(1)
    return torch.cat([torch.zeros(1), chosen])


def test_the_tokenizer_comes_along(checkpoint, exported):
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (exported, checkpoint))
    text = "<|im_start|>user\nwhere?<|im_end|>\n<think>\n<tool_call>"
    assert ours.encode(text) == theirs.encode(text) and ours.chat_template == theirs.chat_template
    assert len(ours.encode("<tool_call>", add_special_tokens=False)) == 1


def refusal(*arguments):
    result = nemo_axpo("export", *arguments)
    assert result.status == 2 and "Traceback" not in result.err
    return result.err


def test_what_cannot_be_exported(axpo, checkpoint, tmp_path):
    output = tmp_path / "policy"
    assert "an export needs a training checkpoint; got none" in refusal(checkpoint.parent, "--output", output)
    assert f"--step must be one of 1, 2, {NUM_STEPS}; got 7" in refusal(axpo, "--output", output, "--step", 7)
    assert "a run directory holds a config.yaml; got" in refusal(tmp_path / "nowhere", "--output", output)
    assert not output.exists()
    output.mkdir()
    (output / "thesis.tex").write_text("x")
    assert "--output must be new or an empty directory" in refusal(axpo, "--output", output)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_damaged_checkpoint_is_not_exported(axpo, tmp_path):
    run = shutil.copytree(axpo, tmp_path / "run")
    tensors = run / "checkpoints" / f"step_{NUM_STEPS:05d}" / "__0_0.distcp"
    os.truncate(tensors, tensors.stat().st_size // 2)
    message = refusal(run, "--output", tmp_path / "policy")
    assert "a checkpoint must be what was written" in message and str(tensors) in message
    assert not (tmp_path / "policy").exists()
