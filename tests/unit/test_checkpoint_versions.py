"""Checkpoint files written under transformers 5 are read under 4.57, and the other way round: NeMo limits it to 4.57, servers and
the default environment have 5. The files below are as the two versions write them."""

from __future__ import annotations

import json

import pytest

from nemo_axpo.data.vocabulary import SpecialTokens, load_tokenizer
from nemo_axpo.models.qwen3_vl.config import rope_settings
from nemo_axpo.models.qwen3_vl.hf_model import parameter_shapes
from nemo_axpo.models.qwen3_vl.loading import load_hf_config, read_checkpoint, save_hf_checkpoint
from nemo_axpo.models.qwen3_vl.rope_keys import with_both_names
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer

SECTIONS = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]}
VERSION_4 = {"rope_theta": 10000.0, "rope_scaling": SECTIONS}
VERSION_5 = {"rope_parameters": {**SECTIONS, "rope_theta": 10000.0}}


@pytest.fixture
def checkpoint(tmp_path):
    return save_tiny_checkpoint(
        tmp_path / "tiny", tokenizer=build_tokenizer(), vocab_size=VOCAB_SIZE, seed=0, head_dim=32
    )


def rewrite_text_config(checkpoint, settings):
    file = checkpoint / "config.json"
    values = json.loads(file.read_text())
    text = {name: value for name, value in values["text_config"].items() if not name.startswith("rope_")}
    file.write_text(json.dumps({**values, "text_config": text | settings}))


@pytest.mark.parametrize("written", [VERSION_4, VERSION_5], ids=["4.57", "5"])
def test_both_names_follow_from_either(written):
    found = with_both_names({"model_type": "qwen3_vl", "text_config": {"hidden_size": 8, **written}})
    assert found == {"model_type": "qwen3_vl", "text_config": {"hidden_size": 8, **VERSION_4, **VERSION_5}}
    assert with_both_names(found) == found


def test_a_config_without_rotary_settings_stays_what_it_is():
    assert with_both_names({"text_config": {"hidden_size": 8}}) == {"text_config": {"hidden_size": 8}}


@pytest.mark.parametrize("written", [VERSION_4, VERSION_5], ids=["4.57", "5"])
def test_every_reader_of_the_config_finds_the_rotary_settings(written, checkpoint):
    """The actor by rope_settings; modules of transformers by the names of the version that is installed."""
    rewrite_text_config(checkpoint, written)
    text = load_hf_config(checkpoint).text_config
    assert rope_settings(text) == (10000.0, (6, 5, 5))
    theirs = getattr(text, "rope_parameters", None) if _is_version_5() else {**text.rope_scaling, "rope_theta": text.rope_theta}
    assert (theirs["rope_theta"], theirs["mrope_section"]) == (10000.0, [6, 5, 5])


def _is_version_5():
    import transformers

    return not transformers.__version__.startswith("4.")


def test_an_exported_config_is_for_both(checkpoint, tmp_path):
    config = load_hf_config(checkpoint)
    saved = save_hf_checkpoint(tmp_path / "hf", read_checkpoint(checkpoint), hf_config=config, source=checkpoint)
    text = json.loads((saved / "config.json").read_text())["text_config"]
    assert {name: text[name] for name in (*VERSION_4, *VERSION_5)} == {**VERSION_4, **VERSION_5}
    assert parameter_shapes(load_hf_config(saved)) == parameter_shapes(config)


def test_a_tokenizer_of_version_5_is_read(checkpoint):
    before = load_tokenizer(checkpoint)
    settings = {
        "backend": "tokenizers", "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
        "extra_special_tokens": ["<|image_pad|>"], "model_max_length": 4096, "pad_token": "<|endoftext|>",
        "tokenizer_class": "TokenizersBackend",
    }  # fmt: skip
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    after = load_tokenizer(checkpoint)
    text = "<|im_start|>user\ncolour of the dots in row 2?<|vision_start|><|image_pad|><|vision_end|><|im_end|>"
    assert after.encode(text) == before.encode(text) and after.eos_token == "<|im_end|>"
    assert SpecialTokens.from_tokenizer(after) == SpecialTokens.from_tokenizer(before)
    messages = [{"role": "user", "content": "2 + 2?"}]
    assert after.apply_chat_template(messages, tokenize=False) == before.apply_chat_template(messages, tokenize=False)
