"""Checkpoints in Megatron-Bridge's names, made of a Hugging Face model by explicit loops, and written by torch itself."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

TEXT_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Transformer Engine's name and that of the local layers."""


def megatron_tensors(
    model: Qwen3VLForConditionalGeneration,
    *,
    megatron_tower: bool = True,
    is_stacked: bool = True,
    local_norms: bool = False,
    has_halves: bool = False,
    num_padding: int = 0,
) -> dict[str, Tensor]:
    """The model as Megatron-Bridge stores it. ``has_halves``: gate and up apart; ``num_padding``: rows of vocabulary."""
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    config, found = model.config.text_config, {}
    padding = torch.full((num_padding, config.hidden_size), 7.0)
    embedding = weights["model.language_model.embed_tokens.weight"]
    found["language_model.embedding.word_embeddings.weight"] = torch.cat([embedding, padding.to(embedding)])
    if not model.config.tie_word_embeddings:
        output = torch.cat([weights["lm_head.weight"], padding.to(embedding)])
        found["language_model.output_layer.weight"] = output
    found["language_model.decoder.final_layernorm.weight"] = weights["model.language_model.norm.weight"]
    for number in range(config.num_hidden_layers):
        layer = _text_layer(weights, config, number, has_halves=has_halves)
        for name, tensor in layer.items():
            name = TEXT_NORMS.get(name, name) if local_norms else name
            found[f"language_model.decoder.layers.{number}.{name}"] = tensor
    visual = {name.removeprefix("model.visual."): tensor for name, tensor in weights.items() if "visual." in name}
    tower = _megatron_tower(visual, model.config.vision_config) if megatron_tower else visual
    found |= {f"vision_model.{name}": tensor for name, tensor in tower.items()}
    return _stacked(found) if is_stacked else found


def _text_layer(weights: dict[str, Tensor], config, number: int, *, has_halves: bool) -> dict[str, Tensor]:
    layer = {
        name.removeprefix(f"model.language_model.layers.{number}."): tensor
        for name, tensor in weights.items()
        if name.startswith(f"model.language_model.layers.{number}.")
    }
    queries_per_group, channels = config.num_attention_heads // config.num_key_value_heads, config.head_dim
    rows = []
    for group in range(config.num_key_value_heads):
        for query in range(queries_per_group):
            head = group * queries_per_group + query
            rows.append(layer["self_attn.q_proj.weight"][head * channels : (head + 1) * channels])
        rows.append(layer["self_attn.k_proj.weight"][group * channels : (group + 1) * channels])
        rows.append(layer["self_attn.v_proj.weight"][group * channels : (group + 1) * channels])
    gate, up = layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"]
    halves = {"mlp.linear_fc1.weight_w": gate, "mlp.linear_fc1.weight_v": up}
    return {
        "self_attention.linear_qkv.weight": torch.cat(rows),
        "self_attention.linear_qkv.layer_norm_weight": layer["input_layernorm.weight"],
        "self_attention.q_layernorm.weight": layer["self_attn.q_norm.weight"],
        "self_attention.k_layernorm.weight": layer["self_attn.k_norm.weight"],
        "self_attention.linear_proj.weight": layer["self_attn.o_proj.weight"],
        "mlp.linear_fc1.layer_norm_weight": layer["post_attention_layernorm.weight"],
        "mlp.linear_fc2.weight": layer["mlp.down_proj.weight"],
        **(halves if has_halves else {"mlp.linear_fc1.weight": torch.cat([gate, up])}),
    }


def _megatron_tower(visual: dict[str, Tensor], config) -> dict[str, Tensor]:
    found = {name: tensor for name, tensor in visual.items() if name.startswith(("patch_embed.", "pos_embed."))}
    for kind in ("weight", "bias"):
        for number in range(config.depth):
            theirs, ours = f"blocks.{number}.", f"decoder.layers.{number}."
            channels, rows = config.hidden_size // config.num_heads, []
            for head in range(config.num_heads):
                for part in range(3):
                    first = (part * config.num_heads + head) * channels
                    rows.append(visual[f"{theirs}attn.qkv.{kind}"][first : first + channels])
            found[f"{ours}self_attention.linear_qkv.{kind}"] = torch.cat(rows)
            found[f"{ours}self_attention.linear_qkv.layer_norm_{kind}"] = visual[f"{theirs}norm1.{kind}"]
            found[f"{ours}self_attention.linear_proj.{kind}"] = visual[f"{theirs}attn.proj.{kind}"]
            found[f"{ours}mlp.linear_fc1.layer_norm_{kind}"] = visual[f"{theirs}norm2.{kind}"]
            for product in ("linear_fc1", "linear_fc2"):
                found[f"{ours}mlp.{product}.{kind}"] = visual[f"{theirs}mlp.{product}.{kind}"]
        mergers = ["merger.", *(f"deepstack_merger_list.{level}." for level in range(len(config.deepstack_visual_indexes)))]
        for merger in mergers:
            ours = merger if merger == "merger." else f"decoder.{merger}"
            for theirs, name in (("norm", "patch_norm"), ("linear_fc1", "linear_fc1"), ("linear_fc2", "linear_fc2")):
                found[f"{ours}{name}.{kind}"] = visual[f"{merger}{theirs}.{kind}"]
    return found


def _stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What has a layer's number below ``decoder``, along a new first dimension under a name without it."""
    found: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        words = name.split(".")
        is_layer = "decoder" in words and any(word.isdecimal() for word in words)
        key = ".".join(word for word in words if not (is_layer and word.isdecimal()))
        found.setdefault(key, []).append(tensor if not is_layer else tensor[None])
    return {name: torch.cat(parts) if len(parts) > 1 or "decoder.layers" in name or "deepstack" in name else parts[0]
            for name, parts in found.items()}  # fmt: skip


def write_torch_dist(directory: Path, tensors: dict[str, Tensor]) -> Path:
    """As megatron writes it, on one process: an index, a file of shards, and the name of the format."""
    directory.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({name: tensor.contiguous() for name, tensor in tensors.items()}, checkpoint_id=directory, no_dist=True)
    (directory / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    return directory
