"""Where every Hugging Face tensor lives in the Megatron model, both ways, one tensor at a time.

A :class:`Placement` names one Megatron parameter (with its layer number in the whole model), the Hugging Face tensors
it is made of, how they merge into a global tensor, and along which dimension tensor-parallel ranks share that::

    linear_qkv   per key-value group: its query heads, key, value   [groups · (q + 2) · D, H]   dim 0
    linear_fc1   gate and up, stacked                               [2, I, H]                   dim 1
    linear_proj, linear_fc2                                         as they are                 dim 1
    embedding, output layer                                         as they are                 dim 0
    norms, vision tower                                             as they are                 replicated
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_axpo.models.qwen3_vl.config import head_dim
from nemo_axpo.models.qwen3_vl.hf_model import LM_HEAD, is_tied
from nemo_axpo.models.qwen3_vl.vision import VisionTower

TEXT, VISION = "model.language_model.", "model.visual."

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Placement:
    """One Megatron parameter and the Hugging Face tensors it holds."""

    name: str
    """Parameter name of :class:`Qwen3VLModel`; ``decoder.layers.<n>`` counts layers over the whole model."""
    hf_shapes: Mapping[str, Shape]
    """Hugging Face names, in merge order, with their shapes."""
    merge: Callable[[list[Tensor]], Tensor] = lambda tensors: tensors[0]
    """Hugging Face tensors to the global tensor."""
    split: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]
    """The inverse of ``merge``."""
    global_shape: Shape = ()
    """Shape of the global tensor; empty where it is that of the one Hugging Face tensor."""
    shard_dim: int | None = None
    """Dimension of the global tensor that tensor-parallel ranks share; None for replicated."""

    def local_shard(self, tensors: list[Tensor], *, rank: int, size: int) -> Tensor:
        """This rank's parameter from whole Hugging Face tensors, in the global tensor's number of dimensions."""
        merged = self.merge(tensors)
        return merged if self.shard_dim is None else merged.chunk(size, self.shard_dim)[rank]

    def local_shape(self, *, size: int) -> Shape:
        """Shape of a rank's share of the global tensor."""
        shape = list(self.global_shape or next(iter(self.hf_shapes.values())))
        if self.shard_dim is not None:
            shape[self.shard_dim] //= size
        return tuple(shape)


def placements(hf_config: Any) -> list[Placement]:
    """Every parameter of the whole model; each Hugging Face tensor appears once (a tied output layer not at all)."""
    text = hf_config.text_config
    vocabulary: Shape = (text.vocab_size, text.hidden_size)
    found = [_plain("embedding.word_embeddings.weight", TEXT + "embed_tokens.weight", vocabulary, shard_dim=0)]
    for number in range(text.num_hidden_layers):
        found += _layer_placements(text, number)
    found.append(_plain("decoder.final_layernorm.weight", TEXT + "norm.weight", (text.hidden_size,)))
    if not is_tied(hf_config):
        found.append(_plain("output_layer.weight", LM_HEAD, vocabulary, shard_dim=0))
    return found + _vision_placements(hf_config)


def load_weights(model: Any, named_tensors: Iterable[tuple[str, Tensor]], *, hf_config: Any) -> None:
    """Copies a stream of whole Hugging Face tensors into this rank's shards, holding no more than one layer's parts.

    ValueError names a tensor that is missing, unknown or misshapen, what was expected, and the cure.
    """
    waiting = {hf_name: placement for placement in placements(hf_config) for hf_name in placement.hf_shapes}
    parameters, arrived = global_parameters(model), {}
    for hf_name, tensor in named_tensors:
        if hf_name == LM_HEAD and hf_name not in waiting:
            continue  # tied: some checkpoints write the embedding a second time
        placement = waiting.pop(hf_name, None)
        _check(hf_name, tensor, placement)
        arrived[hf_name] = tensor
        if all(name in arrived for name in placement.hf_shapes):
            parts = [arrived.pop(name) for name in placement.hf_shapes]
            _copy_shard(parameters.get(placement.name), placement, parts)
    if waiting:
        first = min(waiting)
        raise ValueError(
            f"every tensor of the model must be in the checkpoint; {len(waiting)} are missing, first {first!r} with "
            f"shape {tuple(waiting[first].hf_shapes[first])}: use a complete checkpoint of this config.json"
        )
    _copy_tied_output(model)


def hf_tensors(model: Any, *, hf_config: Any) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors under their Hugging Face names, one parameter at a time; every rank takes part, and gets all."""
    parameters = global_parameters(model)
    for placement in placements(hf_config):
        parameter = parameters.get(placement.name)
        whole = _gather(None if parameter is None else parameter.detach(), placement, model=model)
        yield from zip(placement.hf_shapes, placement.split(whole), strict=True)


def global_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """This rank's parameters by name, with the layer numbers of the whole model."""
    first_layer = model.decoder.layers[0].layer_number - 1 if len(model.decoder.layers) else 0
    return {_shift_layer(name, first_layer): parameter for name, parameter in model.named_parameters()}


def _plain(name: str, hf_name: str, shape: Shape, *, shard_dim: int | None = None) -> Placement:
    return Placement(name, {hf_name: shape}, shard_dim=shard_dim)


def _layer_placements(text: Any, number: int) -> list[Placement]:
    ours, theirs = f"decoder.layers.{number}.", f"{TEXT}layers.{number}."
    hidden, width, channels = text.hidden_size, text.intermediate_size, head_dim(text)
    rows = text.num_attention_heads * channels
    norms = {
        "input_layernorm": ("input_layernorm", hidden),
        "pre_mlp_layernorm": ("post_attention_layernorm", hidden),
        "self_attention.q_layernorm": ("self_attn.q_norm", channels),
        "self_attention.k_layernorm": ("self_attn.k_norm", channels),
    }
    found = [_plain(f"{ours}{a}.weight", f"{theirs}{b}.weight", (size,)) for a, (b, size) in norms.items()]
    found.append(_qkv_placement(text, ours=ours, theirs=theirs))
    projection, down = theirs + "self_attn.o_proj.weight", theirs + "mlp.down_proj.weight"
    found.append(_plain(ours + "self_attention.linear_proj.weight", projection, (hidden, rows), shard_dim=1))
    gate_up = {f"{theirs}mlp.{part}_proj.weight": (width, hidden) for part in ("gate", "up")}
    found.append(
        Placement(
            ours + "mlp.linear_fc1.weight", gate_up, torch.stack, lambda whole: list(whole), (2, width, hidden), 1
        )
    )
    found.append(_plain(ours + "mlp.linear_fc2.weight", down, (hidden, width), shard_dim=1))
    return found


def _qkv_placement(text: Any, *, ours: str, theirs: str) -> Placement:
    groups, channels, hidden = text.num_key_value_heads, head_dim(text), text.hidden_size
    queries = text.num_attention_heads // groups
    rows = {"q": text.num_attention_heads, "k": groups, "v": groups}
    shapes = {f"{theirs}self_attn.{part}_proj.weight": (heads * channels, hidden) for part, heads in rows.items()}

    def merge(tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensor.view(groups, -1, hidden) for tensor in tensors], dim=1).view(-1, hidden)

    def split(whole: Tensor) -> list[Tensor]:
        parts = whole.view(groups, -1, hidden).split([queries * channels, channels, channels], dim=1)
        return [part.reshape(-1, hidden) for part in parts]

    num_rows = groups * (queries + 2) * channels
    return Placement(ours + "self_attention.linear_qkv.weight", shapes, merge, split, (num_rows, hidden), 0)


def _vision_placements(hf_config: Any) -> list[Placement]:
    with torch.device("meta"):
        tower = VisionTower(hf_config.vision_config)
    return [_plain("visual." + name, VISION + name, tuple(p.shape)) for name, p in tower.named_parameters()]


def _check(hf_name: str, tensor: Tensor, placement: Placement | None) -> None:
    if placement is None:
        raise ValueError(
            f"tensor {hf_name!r} does not belong to this Qwen3-VL, or came twice; its shape is {tuple(tensor.shape)}: "
            "check that the checkpoint and its config.json are of one model"
        )
    expected = tuple(placement.hf_shapes[hf_name])
    if tuple(tensor.shape) != expected:
        raise ValueError(
            f"tensor {hf_name!r} must have shape {expected} by config.json; got {tuple(tensor.shape)}: check that the "
            "checkpoint and its config.json are of one model"
        )


@torch.no_grad()
def _copy_shard(parameter: torch.nn.Parameter | None, placement: Placement, tensors: list[Tensor]) -> None:
    if parameter is not None:  # another pipeline stage holds it otherwise
        rank, size = _tensor_parallel()
        parameter.copy_(placement.local_shard(tensors, rank=rank, size=size).reshape(parameter.shape))


def _tensor_parallel() -> tuple[int, int]:
    return (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )


@torch.no_grad()
def _copy_tied_output(model: Any) -> None:
    """With tied embeddings the last pipeline stage holds a copy of the first one's embedding."""
    if model.share_embeddings_and_output_weights and model.config.pipeline_model_parallel_size > 1:
        if model.post_process:
            model.output_layer.weight.zero_()
        if model.pre_process or model.post_process:
            dist.all_reduce(model.shared_embedding_or_output_weight().data, group=parallel_state.get_embedding_group())


def _gather(local: Tensor | None, placement: Placement, *, model: Any) -> Tensor:
    """The global tensor, on every rank."""
    _, size = _tensor_parallel()
    shape, config = placement.local_shape(size=size), model.config
    stage = _stage_of(placement.name, model=model)
    if local is None:
        device = next(model.parameters()).device
        local = torch.empty(shape, dtype=config.params_dtype, device=device)
    local = local.reshape(shape).contiguous()
    if config.pipeline_model_parallel_size > 1:
        group = parallel_state.get_pipeline_model_parallel_group()
        dist.broadcast(local, src=dist.get_process_group_ranks(group)[stage], group=group)
    if placement.shard_dim is None or size == 1:
        return local
    shards = [torch.empty_like(local) for _ in range(size)]
    dist.all_gather(shards, local, group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(shards, dim=placement.shard_dim)


def _stage_of(name: str, *, model: Any) -> int:
    """Pipeline stage that holds a parameter (stages hold equally many layers)."""
    last = model.config.pipeline_model_parallel_size - 1
    if name.startswith("decoder.layers."):
        return int(name.split(".")[2]) * (last + 1) // model.config.num_layers
    return last if name.startswith(("output_layer.", "decoder.final_layernorm.")) else 0


def _shift_layer(name: str, offset: int) -> str:
    parts = name.split(".")
    if name.startswith("decoder.layers."):
        parts[2] = str(int(parts[2]) + offset)
    return ".".join(parts)
