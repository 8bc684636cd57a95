"""Whether the parts of a checkpoint directory fit each other, judged before a model is built.

Only the headers of the weight files are read, so a wrong one of many gigabytes is refused within a moment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen3VLConfig

from nemo_axpo.data.vocabulary import SpecialTokens
from nemo_axpo.errors import CheckpointError, rule_message
from nemo_axpo.models.qwen3_vl.checkpoint_reader import CheckpointReader
from nemo_axpo.models.qwen3_vl.hf_model import LM_HEAD, is_tied, parameter_shapes


def check_weights(path: str | Path, *, hf_config: Qwen3VLConfig) -> None:
    """CheckpointError unless the weight files hold exactly the tensors of ``hf_config``; their values are not read.

    A tied output projection may be absent.
    """
    expected, found = _expected_shapes(path, hf_config=hf_config), CheckpointReader(path).shapes
    optional = {LM_HEAD} if is_tied(hf_config) else set()
    missing, unknown = sorted(expected.keys() - found.keys() - optional), sorted(found.keys() - expected.keys())
    cure = "check that the checkpoint is complete and of the model its config.json describes"
    if missing or unknown:
        got = f"{len(missing)} missing (first {missing[:1]}), {len(unknown)} unknown (first {unknown[:1]}) in {path}"
        raise CheckpointError(rule_message("a checkpoint holds exactly the tensors of its model", got=got, cure=cure))
    for name, shape in found.items():
        if shape != expected[name]:
            rule = f"tensor {name!r} must have shape {expected[name]} by config.json"
            raise CheckpointError(rule_message(rule, got=f"{shape} in {path}", cure=cure))


def _expected_shapes(path: str | Path, *, hf_config: Qwen3VLConfig) -> dict[str, tuple[int, ...]]:
    try:
        return parameter_shapes(hf_config)
    except Exception as error:  # sizes that exclude each other surface as whatever layer meets them first
        rule = "config.json must describe a Qwen3-VL that can be built"
        cure = "copy config.json from the model's original checkpoint"
        raise CheckpointError(rule_message(rule, got=f"{error!r} for {path}", cure=cure)) from error


def check_processor(image_processor: Any, *, hf_config: Qwen3VLConfig) -> None:
    """CheckpointError unless the image processor cuts the patches that the vision tower takes."""
    vision = hf_config.vision_config
    expected = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    got = (image_processor.patch_size, image_processor.merge_size, image_processor.temporal_patch_size)
    if got != expected:
        rule = f"the image processor's patch_size, merge_size, temporal_patch_size must be config.json's {expected}"
        cure = "copy preprocessor_config.json from the model's original checkpoint"
        raise CheckpointError(rule_message(rule, got=got, cure=cure))


def check_tokenizer(tokenizer: Any, *, hf_config: Qwen3VLConfig) -> None:
    """CheckpointError unless every token has an embedding, and the vision tokens are those the model looks for.

    ValueError for a special token that is not a single token.
    """
    special, vocab_size = SpecialTokens.from_tokenizer(tokenizer), hf_config.text_config.vocab_size
    cure = "use the tokenizer of the model's original checkpoint"
    if len(tokenizer) > vocab_size:
        rule = f"the tokenizer must not have more tokens than config.json's vocab_size, {vocab_size}"
        raise CheckpointError(rule_message(rule, got=len(tokenizer), cure=cure))
    expected = (hf_config.image_token_id, hf_config.video_token_id)
    if (special.image_pad, special.video_pad) != expected:
        rule = f"<|image_pad|> and <|video_pad|> must be config.json's image_token_id and video_token_id, {expected}"
        raise CheckpointError(rule_message(rule, got=(special.image_pad, special.video_pad), cure=cure))
