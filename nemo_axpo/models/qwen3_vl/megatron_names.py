"""Where a checkpoint of Megatron-Bridge holds the tensors of Qwen3-VL: names and shapes, no files.

Sources: ``qwen3_vl_bridge.py`` of Megatron-Bridge 0.2 to 0.5, and what 0.3.1 and 0.5.0 wrote. The text decoder has megatron's
names behind ``language_model.``, its two norms those of Transformer Engine or of the local layers (``te_specs.py``). The
vision tower is that of transformers until 0.3, and megatron's from 0.4 on::

    model.visual.blocks.3.attn.qkv       vision_model.blocks.3.attn.qkv     vision_model.decoder.layers.3.self_attention.linear_qkv
    model.visual.blocks.3.norm1          vision_model.blocks.3.norm1        …layers.3.self_attention.linear_qkv.layer_norm_…
    model.visual.merger.norm             vision_model.merger.norm           vision_model.merger.patch_norm

In megatron's tower ``linear_qkv`` has query, key and value of a head next to each other. Layers lie one by one, or stacked
along a new first dimension under a name without a number (``decoder.layers.mlp.linear_fc2.weight``); so do the mergers of
DeepStack. Gate and up are one tensor, or two with ``_w`` and ``_v`` behind the name. The vocabulary may be padded at its
end, for sizes that tensor-parallel ranks divide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nemo_axpo.errors import CheckpointError, rule_message
from nemo_axpo.models.qwen3_vl.hf_mapping import VISION, Placement, Shape, TensorSource, placements
from nemo_axpo.models.qwen3_vl.te_specs import fused_name

LANGUAGE_MODEL, VISION_MODEL = "language_model.", "vision_model."
_STACKED = re.compile(r"(\bdecoder\.layers|\bdeepstack_merger_list)\.(\d+)\.")
_NO_WEIGHTS = re.compile(r"(chained_\d+\.)?optimizer\.")
"""What a checkpoint of a training job holds beside the model."""
_TOWER_NAMES = (
    (r"^blocks\.(\d+)\.norm1\.(weight|bias)$", r"decoder.layers.\1.self_attention.linear_qkv.layer_norm_\2"),
    (r"^blocks\.(\d+)\.norm2\.(weight|bias)$", r"decoder.layers.\1.mlp.linear_fc1.layer_norm_\2"),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"decoder.layers.\1.self_attention.linear_qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"decoder.layers.\1.self_attention.linear_proj."),
    (r"^blocks\.(\d+)\.mlp\.", r"decoder.layers.\1.mlp."),
    (r"^(deepstack_merger_list\.\d+)\.norm\.", r"decoder.\1.patch_norm."),
    (r"^(deepstack_merger_list\.\d+)\.", r"decoder.\1."),
    (r"^merger\.norm\.", r"merger.patch_norm."),
)
"""transformers' vision tower to megatron's; the first rule that fits is applied, the other names are the same."""
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_SHOWN = 20
"""Names in an error, at most, of each sort."""


def _as_it_is(tensor: Tensor) -> list[Tensor]:
    return [tensor]


@dataclass(frozen=True)
class Way:
    """One way to store a parameter."""

    names: tuple[str, ...]
    """With the number of its layer; several are pieces along the first dimension."""
    split: Callable[[Tensor], list[Tensor]] = _as_it_is
    """The parameter to its Hugging Face tensors."""


@dataclass(frozen=True)
class MegatronTensor:
    """One parameter of Megatron-Bridge's model, and the Hugging Face tensors it is made of."""

    ways: tuple[Way, ...]
    shape: Shape
    hf_shapes: Mapping[str, Shape]
    """Hugging Face names with their shapes."""
    num_stacked: int
    """Layers there are of its kind."""
    is_vocabulary: bool = False
    """Rows behind the vocabulary's are padding."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a checkpoint holds one parameter."""

    names: tuple[str, ...]
    """In the checkpoint; several are pieces along the first dimension."""
    hf_names: tuple[str, ...]
    split: Callable[[Tensor], list[Tensor]]
    part: tuple[slice, ...] = ()
    """What of each: one layer of many, or the vocabulary without padding. () for all of it."""
    is_stacked: bool = False
    """Whether the first dimension counts layers."""

    def read(self, source: TensorSource) -> Iterator[tuple[str, Tensor]]:
        """Its tensors under their Hugging Face names."""
        pieces = [source.read(name, part=self.part) for name in self.names]
        pieces = [piece.squeeze(0) for piece in pieces] if self.is_stacked else pieces
        whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        yield from zip(self.hf_names, self.split(whole), strict=True)


def locate(shapes: Mapping[str, Shape], *, hf_config: Any) -> list[StoredTensor]:
    """Where each parameter of ``hf_config`` lies among the tensors of a checkpoint, ``shapes``.

    CheckpointError names tensors that are missing, misshapen or unknown: an output layer too, where config.json says that it is
    the embedding. Those of an optimizer are left out.
    """
    found = {tensor.ways[0].names[0]: _find(tensor, shapes) for tensor in megatron_tensors(hf_config)}
    missing = [name for name, place in found.items() if place is None]
    places = [place for place in found.values() if place is not None]
    known = {name for place in places for name in place.names}
    unknown = sorted(name for name in shapes.keys() - known if not _NO_WEIGHTS.match(name))
    if missing or unknown:
        raise CheckpointError(_coverage_message(missing, unknown))
    return places


def megatron_tensors(hf_config: Any) -> list[MegatronTensor]:
    """Every parameter of Megatron-Bridge's model of ``hf_config``; each Hugging Face tensor appears once."""
    text, vision = hf_config.text_config, hf_config.vision_config
    return [
        _vision_tensor(placement, vision) if placement.name.startswith("visual.") else _text_tensor(placement, text)
        for placement in placements(hf_config)
    ]


def _text_tensor(placement: Placement, text: Any) -> MegatronTensor:
    name, shape = LANGUAGE_MODEL + placement.name, placement.local_shape(size=1)

    def split(whole: Tensor) -> list[Tensor]:
        return placement.split(whole.view(shape))

    names = [(fused_name(name),), (name,)]
    if name.endswith("mlp.linear_fc1.weight"):  # ours is [2, I, H]
        names, merged = [(name,), (name + "_w", name + "_v")], (2 * shape[1], shape[2])
    else:
        merged = shape
    return MegatronTensor(
        ways=tuple(Way(way, split) for way in dict.fromkeys(names)),
        shape=merged,
        hf_shapes=placement.hf_shapes,
        num_stacked=text.num_hidden_layers,
        is_vocabulary=placement.name in _VOCABULARY,
    )


def _vision_tensor(placement: Placement, vision: Any) -> MegatronTensor:
    ((hf_name, shape),) = placement.hf_shapes.items()
    name = hf_name.removeprefix(VISION)
    split = partial(_from_heads, num_heads=vision.num_heads) if ".attn.qkv." in name else _as_it_is
    is_level = name.startswith("deepstack_merger_list.")
    return MegatronTensor(
        ways=tuple(
            {
                way.names: way for way in (Way((VISION_MODEL + _tower_name(name),), split), Way((VISION_MODEL + name,)))
            }.values()
        ),
        shape=shape,
        hf_shapes=placement.hf_shapes,
        num_stacked=len(vision.deepstack_visual_indexes) if is_level else vision.depth,
    )


def _from_heads(whole: Tensor, *, num_heads: int) -> list[Tensor]:
    """Query, key and value head by head, to all queries, all keys, all values."""
    heads = whole.view(num_heads, 3, whole.shape[0] // (3 * num_heads), *whole.shape[1:])
    return [heads.transpose(0, 1).reshape(whole.shape)]


def _tower_name(name: str) -> str:
    for pattern, replacement in _TOWER_NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _find(tensor: MegatronTensor, shapes: Mapping[str, Shape]) -> StoredTensor | None:
    """Where it lies, one by one or stacked; None for nowhere."""
    for way in tensor.ways:
        if all(name in shapes for name in way.names):
            return _alone(tensor, way, shapes)
        stacked = tuple(_STACKED.sub(r"\1.", name, count=1) for name in way.names)
        if stacked != way.names and all(name in shapes for name in stacked):
            return _in_stack(tensor, way, stacked, shapes)
    return None


def _alone(tensor: MegatronTensor, way: Way, shapes: Mapping[str, Shape]) -> StoredTensor:
    rows, *rest = _piece_shape(tensor, way)
    for name in way.names:
        found_rows, *found_rest = shapes[name]
        is_padded = tensor.is_vocabulary and found_rows > rows
        if found_rest != rest or (found_rows != rows and not is_padded):
            raise CheckpointError(_shape_message(name, expected=(rows, *rest), got=shapes[name]))
    part = (slice(0, rows),) if is_padded else ()
    return StoredTensor(way.names, tuple(tensor.hf_shapes), way.split, part)


def _in_stack(tensor: MegatronTensor, way: Way, stacked: tuple[str, ...], shapes: Mapping[str, Shape]) -> StoredTensor:
    number = int(_STACKED.search(way.names[0])[2])
    expected = (tensor.num_stacked, *_piece_shape(tensor, way))
    for name in stacked:
        if tuple(shapes[name]) != expected:
            raise CheckpointError(_shape_message(name, expected=expected, got=shapes[name]))
    part = (slice(number, number + 1),)
    return StoredTensor(stacked, tuple(tensor.hf_shapes), way.split, part, is_stacked=True)


def _piece_shape(tensor: MegatronTensor, way: Way) -> Shape:
    return (tensor.shape[0] // len(way.names), *tensor.shape[1:])


def _shape_message(name: str, *, expected: Shape, got: Shape) -> str:
    cure = "check that checkpoint and config.json are of one model"
    return rule_message(f"tensor {name!r} must have shape {tuple(expected)} by config.json", got=tuple(got), cure=cure)


def _coverage_message(missing: list[str], unknown: list[str]) -> str:
    cure = "check that checkpoint and config.json are of one dense Qwen3-VL, written whole by Megatron-Bridge"
    if any(".adapter." in name or ".to_wrap." in name for name in unknown):
        cure = "merge the adapter first (Megatron-Bridge's examples/peft/merge_lora.py)"
    got = f"{len(missing)} missing{_listed(missing)} and {len(unknown)} unknown{_listed(unknown)}"
    return rule_message("a Megatron checkpoint holds exactly the parameters of its model", got=got, cure=cure)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f" ({', '.join(names[:_SHOWN])}{more})" if names else ""
