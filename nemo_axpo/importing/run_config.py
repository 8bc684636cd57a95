"""Whether the model of a Megatron-Bridge checkpoint is that of a config.json, beyond what shapes can tell.

How many heads share a projection, the rotary base, where DeepStack levels are taken from: with other values the same
tensors are another model. ``run_config.yaml`` says them; it is read as plain YAML, so nothing it names is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nemo_axpo.errors import CheckpointError, rule_message
from nemo_axpo.importing.location import RUN_CONFIG
from nemo_axpo.models.qwen3_vl.config import head_dim, rope_settings
from nemo_axpo.models.qwen3_vl.hf_model import is_tied

_VISION_KEYS = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "patch_size", "temporal_patch_size", "spatial_merge_size",
    "out_hidden_size", "num_position_embeddings", "deepstack_visual_indexes",
)  # fmt: skip


def check_run_config(directory: Path, *, hf_config: Any) -> None:
    """CheckpointError where run_config.yaml contradicts ``hf_config``; a checkpoint without that file passes."""
    file = directory / RUN_CONFIG
    if not file.is_file():
        return
    try:
        model = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
        provider = str(model.get("_target_", ""))
        vision = model.get("vision_config") or {}
        differences = [*_differences(model, _text_values(hf_config)), *_differences(
            vision.get("config_dict", vision), _vision_values(hf_config), prefix="vision_config."
        )]  # fmt: skip
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        rule = f"{file} must be the configuration that Megatron-Bridge writes"
        raise CheckpointError(rule_message(rule, got=repr(error), cure="copy the checkpoint again")) from error
    if provider and not provider.endswith(".Qwen3VLModelProvider"):
        cure = "import a checkpoint of a dense Qwen3-VL"
        raise CheckpointError(rule_message(f"{file} must be of Qwen3VLModelProvider", got=provider, cure=cure))
    if differences:
        rule, cure = f"{file} must agree with config.json", "give the model files the checkpoint was trained from"
        raise CheckpointError(rule_message(rule, got="; ".join(differences), cure=cure))


def _text_values(hf_config: Any) -> dict[str, Any]:
    text = hf_config.text_config
    base, sections = rope_settings(text)
    return {
        "num_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "ffn_hidden_size": text.intermediate_size,
        "num_attention_heads": text.num_attention_heads,
        "num_query_groups": text.num_key_value_heads,
        "kv_channels": head_dim(text),
        "layernorm_epsilon": text.rms_norm_eps,
        "rotary_base": base,
        "mrope_section": list(sections),
        "vocab_size": text.vocab_size,
        "share_embeddings_and_output_weights": is_tied(hf_config),
        "image_token_id": hf_config.image_token_id,
    }


def _vision_values(hf_config: Any) -> dict[str, Any]:
    return {key: getattr(hf_config.vision_config, key) for key in _VISION_KEYS}


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any], *, prefix: str = "") -> Iterator[str]:
    """Keys that are there with another value; an absent or empty one says nothing."""
    for key, value in expected.items():
        got = found.get(key)
        if got is not None and got != value and not (isinstance(value, float) and _number(got) == value):
            yield f"{prefix}{key} {got} instead of {value}"


def _number(value: Any) -> float | None:
    """YAML 1.1 reads ``1e-06``, without a point, as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
