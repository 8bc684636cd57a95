"""The quickstart's model: a real Qwen3-VL of the promised size, saved as any checkpoint is, the same from a seed."""

from __future__ import annotations

import json

import pytest
import torch
from scripted_agent import image_store, make_question, tokenizer
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from nemo_axpo.data.chat import ChatRenderer
from nemo_axpo.data.images import ImageStore, load_image_processor
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.world.tokenizer import VOCAB_SIZE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), tokenizer=tokenizer(), vocab_size=VOCAB_SIZE, seed=0)


def test_it_has_every_mechanism_of_the_large_ones_in_half_a_million_parameters(checkpoint):
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint)
    assert 300_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 500_000
    names = [name for name, _ in model.named_parameters()]
    assert any("deepstack" in name for name in names) and any("q_norm" in name for name in names)
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    assert text["num_key_value_heads"] < text["num_attention_heads"]
    rope = text.get("rope_parameters") or text["rope_scaling"]
    assert rope["mrope_interleaved"] and 2 * sum(rope["mrope_section"]) == text["head_dim"]


def test_what_is_loaded_renders_as_what_was_saved(checkpoint):
    store, loaded = image_store(), ImageStore(load_image_processor(checkpoint))
    expected = ChatRenderer(tokenizer(), store).prompt(make_question(store))
    got = ChatRenderer(AutoTokenizer.from_pretrained(checkpoint), loaded).prompt(make_question(loaded))
    assert got == expected
    features = [s.features(got.image_ids[0]).pixel_values_PD for s in (store, loaded)]
    assert torch.equal(*features)


def test_the_vocabulary_is_padded_as_in_real_checkpoints(checkpoint):
    rows = json.loads((checkpoint / "config.json").read_text())["text_config"]["vocab_size"]
    assert len(AutoTokenizer.from_pretrained(checkpoint)) < rows == VOCAB_SIZE


def test_a_seed_gives_these_weights_and_leaves_the_global_generator_alone(checkpoint, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = save_tiny_checkpoint(tmp_path / "again", tokenizer=tokenizer(), vocab_size=VOCAB_SIZE, seed=0)
    assert torch.equal(torch.rand(1), expected)
    other = save_tiny_checkpoint(tmp_path / "other", tokenizer=tokenizer(), vocab_size=VOCAB_SIZE, seed=1)
    weights = [(path / "model.safetensors").read_bytes() for path in (checkpoint, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_a_layer_keeps_the_scale_of_its_input(checkpoint):
    """Fan-in initialisation: a projection of unit inputs has unit outputs, not 0.02 · sqrt(width) of them."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint)
    layer = model.model.language_model.layers[0]
    for projection in (layer.self_attn.q_proj, layer.mlp.up_proj, layer.mlp.down_proj):
        inputs = torch.randn(500, projection.in_features, generator=torch.Generator().manual_seed(0))
        assert projection(inputs).std().item() == pytest.approx(1.0, abs=0.1)
