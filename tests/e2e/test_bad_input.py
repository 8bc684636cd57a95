"""What a user can get wrong: one message that says the rule, the value and the cure, before anything is sampled."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import AXPO, RUN, nemo_axpo, train

from nemo_axpo.cli import is_user_error
from nemo_axpo.data.images import decode_image

TENSOR = "model.language_model.layers.0.self_attn.k_proj.weight"


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy of the warm start to damage."""
    return shutil.copytree(checkpoint, tmp_path / "broken")


def refusal(output_dir, *settings, checkpoint, resume=False):
    """The message with which a training is refused; nothing was sampled."""
    options = ["--resume"] if resume else []
    arguments = ["train", *options, "--output-dir", output_dir, f"model.path={checkpoint}", *RUN, *AXPO, *settings]
    result = nemo_axpo(*arguments)
    assert result.status == 2 and "Traceback" not in result.err + result.out
    message = result.err[result.err.index("nemo-axpo: error: ") :]
    assert result.err.count("nemo-axpo: error: ") == 1
    return message


def refusals(output_dir, *, checkpoint):
    """As :func:`refusal`; evaluation refuses the checkpoint in the same words, and the directory stays free."""
    message = refusal(output_dir, checkpoint=checkpoint)
    assert [path.name for path in output_dir.iterdir()] == [".lock"]
    assert nemo_axpo("eval", "--checkpoint", checkpoint).err.endswith(message)
    return message


def edit_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_weights(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "absent"])
def test_image_that_does_not_decode(axpo, tmp_path, damage):
    whole = next((axpo / "images").glob("*.png")).read_bytes()
    contents = {"truncated": whole[: len(whole) // 2], "text": b"<html>404</html>", "empty": b""}
    path = tmp_path / "picture.png"
    if damage in contents:
        path.write_bytes(contents[damage])
        with pytest.raises(ValueError, match=f"image {len(contents[damage])} bytes cannot be decoded"):
            decode_image(contents[damage])
    with pytest.raises(ValueError, match=f"image {path} .*: (replace it with a whole PNG|correct its path)") as caught:
        decode_image(path)
    assert is_user_error(caught.value)


def test_unknown_key(checkpoint, tmp_path):
    message = refusal(tmp_path / "run", "train.num_stepz=3", checkpoint=checkpoint)
    assert "unknown config key train.num_stepz; got 3: did you mean train.num_steps?" in message
    assert not (tmp_path / "run").exists()


def test_budget_too_small_for_one_prefix(checkpoint, tmp_path):
    message = refusal(tmp_path / "run", "algorithm.num_continuations=9", checkpoint=checkpoint)
    assert "K <= r·B·N; got K=9, r=0.5, B=4, N=4 (r·B·N=8): raise r or the number of questions, or lower K" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("token", ["<tool_call>", "</tool_call>", "<think>", "</think>"])
def test_special_token_that_is_not_one_token(broken, tmp_path, token):
    for path in broken.glob("*.json"):  # transformers 4.57 repeats special tokens in other files
        path.write_text(path.read_text().replace(f'"{token}"', '"<something_else>"'))
    message = refusals(tmp_path / "run", checkpoint=broken)
    assert f"{token} must be a single token, but this tokenizer encodes it as [" in message
    assert "use a Qwen3-VL tokenizer, or add it with tokenizer.add_tokens" in message


def test_missing_tensor(broken, tmp_path):
    edit_weights(broken, lambda tensors: tensors.pop(TENSOR))
    message = refusals(tmp_path / "run", checkpoint=broken)
    assert f"a checkpoint holds exactly the tensors of its model; got 1 missing (first ['{TENSOR}'])" in message
    assert "check that the checkpoint is complete" in message


def test_tensor_of_another_model(broken, tmp_path):
    edit_weights(broken, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(2)}))
    assert "1 unknown (first ['model.extra.weight'])" in refusals(tmp_path / "run", checkpoint=broken)


def test_misshapen_tensor(broken, tmp_path):
    edit_weights(broken, lambda tensors: tensors.update({TENSOR: tensors[TENSOR].repeat(2, 1)}))
    message = refusals(tmp_path / "run", checkpoint=broken)
    assert f"tensor '{TENSOR}' must have shape (48, 96) by config.json; got (96, 96)" in message
    assert "check that the checkpoint is complete and of the model its config.json describes" in message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_truncated_weights(broken, tmp_path, share):
    weights = broken / "model.safetensors"
    os.truncate(weights, int(weights.stat().st_size * share))
    message = refusals(tmp_path / "run", checkpoint=broken)
    assert f"{weights} must be a whole safetensors file; got " in message
    assert "truncated or corrupt, download or export it again" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config.json", "config.json must be JSON"),
        ("tokenizer.json", "the tokenizer files in"),
        ("tokenizer_config.json", "the tokenizer files in"),
        ("preprocessor_config.json", "preprocessor_config.json cannot be read"),
        ("chat_template.jinja", "the chat template must be Jinja that renders"),
    ],
)
def test_truncated_companion(broken, tmp_path, name, expected):
    text = (broken / name).read_text()
    cut = text.index("{%") + 4 if name.endswith("jinja") else len(text) // 2
    (broken / name).write_text(text[:cut])
    assert expected in refusals(tmp_path / "run", checkpoint=broken)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.safetensors", "give the directory of a safetensors checkpoint"),
        ("tokenizer.json", "a checkpoint needs its tokenizer (tokenizer.json)"),
        ("preprocessor_config.json", "a checkpoint needs its image processor's preprocessor_config.json"),
        ("chat_template.jinja", "the tokenizer has no chat template"),
    ],
)
def test_absent_file(broken, tmp_path, name, expected):
    (broken / name).unlink()
    assert expected in refusals(tmp_path / "run", checkpoint=broken)


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("config.json", lambda v: v.update(model_type="llama"), "only checkpoints of model_type 'qwen3_vl'"),
        ("config.json", lambda v: v.pop("text_config"), "must have a text_config and a vision_config; got no text_config"),
        ("config.json", lambda v: v["text_config"].update(hidden_size="wide"), "config.json must "),
        ("config.json", lambda v: v["text_config"].update(vocab_size=100), "vocab_size, 100; got 504: use the tokenizer"),
        ("config.json", lambda v: v.update(image_token_id=3), "image_token_id and video_token_id, (3, "),
        ("preprocessor_config.json", lambda v: v.update(patch_size=16), "must be config.json's (8, 2, 2); got (16, 2, 2)"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(broken, tmp_path, file, change, expected):
    edit_json(broken / file, change)
    assert expected in refusals(tmp_path / "run", checkpoint=broken)


def test_no_checkpoint_at_all(tmp_path):
    message = refusal(tmp_path / "run", checkpoint=tmp_path / "nowhere")
    assert "model.path must be a Hugging Face checkpoint directory" in message and "run `nemo-axpo sft` first" in message
    assert not (tmp_path / "run").exists()


def test_a_corrected_start_may_use_the_same_directory(broken, checkpoint, tmp_path):
    weights = broken / "model.safetensors"
    os.truncate(weights, 1000)
    refusal(tmp_path / "run", checkpoint=broken)
    assert "K <= r·B·N" in refusal(tmp_path / "run", "algorithm.num_continuations=9", checkpoint=checkpoint)
    train(tmp_path / "run", *AXPO, "train.num_steps=1", checkpoint=checkpoint)


def test_truncated_training_checkpoint(axpo, checkpoint, tmp_path):
    run = shutil.copytree(axpo, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step_00003")
    before = (run / "metrics.jsonl").read_bytes()
    tensors = run / "checkpoints" / "step_00002" / "__0_0.distcp"
    size = tensors.stat().st_size
    os.truncate(tensors, size // 2)
    message = refusal(run, checkpoint=checkpoint, resume=True)
    assert f"a checkpoint must be what was written; got {tensors} has {size // 2} bytes of {size}" in message
    assert f"remove {tensors.parent} to continue from the good {run / 'checkpoints' / 'step_00001'}" in message
    assert (run / "metrics.jsonl").read_bytes() == before
    shutil.rmtree(tensors.parent)
    train(run, *AXPO, "train.num_steps=2", checkpoint=checkpoint, resume=True)


def test_directory_of_another_run(axpo, checkpoint):
    before = {path: path.read_bytes() for path in axpo.rglob("*") if path.is_file() and path.name != ".lock"}
    for resume in (False, True):
        message = refusal(axpo, "seed=7", checkpoint=checkpoint, resume=resume)
        assert f"output_dir must not hold another run; got {axpo}, whose config differs in seed: 0 -> 7" in message
        assert "choose another --output-dir, or give the settings of that run" in message
    message = refusal(axpo, checkpoint=checkpoint)
    assert f"output_dir already holds this run; got {axpo}: continue it with --resume" in message
    assert {path: path.read_bytes() for path in before} == before


def test_directory_with_other_files(checkpoint, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    message = refusal(tmp_path, checkpoint=checkpoint)
    assert "output_dir must be new, empty, or a run; got" in message and "which holds thesis.tex" in message
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("actor.tensor_parallel=2", "got 1 ranks, 2 x 1: start 2 ranks (torchrun --nproc-per-node 2"),
        ("rollout.max_row_tokens=900", "rollout.max_row_tokens must not exceed engine.max_model_len"),
        ("optimizer.lr=nan", "optimizer.lr: input should be a finite number; got nan"),
        ("tools.names=[search]", "tools.names may hold image_zoom_in, python, tavily-search, module:factory and path/to/file.py:factory; got 'search': correct the name"),
        ("tools.observation='crop {number}'", "the observation of image_zoom_in may hold {index} and no other braces"),
        ("data.name=pictures", "data.name: input should be 'world', 'world_specks' or 'files'; got 'pictures'"),
    ],
)
def test_setting_that_cannot_work(checkpoint, tmp_path, setting, expected):
    assert expected in refusal(tmp_path / "run", setting, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["eval", "--run", "{tmp}/nowhere", "--checkpoint", "{checkpoint}"], "a run directory holds a config.yaml; got"),
        (["eval", "--checkpoint", "{checkpoint}", "--output", "{tmp}"], "--output names the JSON file to write; got"),
        (["eval", "--checkpoint", "{tmp}"], "model.path must be a Hugging Face checkpoint directory"),
        (["report", "{tmp}/nowhere"], "a report is made from run directories"),
        (["sft", "--output-dir", "{tmp}", "sft.num_stepz=1"], "did you mean sft.num_steps"),
    ],
)
def test_the_other_commands(checkpoint, tmp_path, arguments, expected):
    result = nemo_axpo(*(word.format(tmp=tmp_path, checkpoint=checkpoint) for word in arguments))
    assert result.status == 2 and expected in result.err and "Traceback" not in result.err
