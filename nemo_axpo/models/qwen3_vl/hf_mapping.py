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

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_axpo.models.qwen3_vl.config import head_dim
from nemo_axpo.models.qwen3_vl.hf_model import LM_HEAD, is_tied
from nemo_axpo.models.qwen3_vl.quantization import high_precision
from nemo_axpo.models.qwen3_vl.te_specs import plain_name
from nemo_axpo.models.qwen3_vl.vision import VisionTower

TEXT, VISION = "model.language_model.", "model.visual."

Shape = tuple[int, ...]


class TensorSource(Protocol):
    """Named tensors that are read when asked for, whole or in part (a :class:`CheckpointReader`)."""

    shapes: Mapping[str, Shape]
    """Every tensor there is."""

    def read(self, name: str, *, part: tuple[slice, ...] = ()) -> Tensor:
        """One tensor; ``part`` has a slice for each of its first dimensions."""


@dataclass(frozen=True)
class Placement:
    """One Megatron parameter and the Hugging Face tensors it holds.

    A tensor-parallel rank's share of the parameter is made of its share of each Hugging Face tensor: ``merge`` and
    ``split`` work on shares of any size, so no rank ever needs the whole.
    """

    name: str
    """Parameter name of :class:`Qwen3VLModel`; ``decoder.layers.<n>`` counts layers over the whole model."""
    hf_shapes: Mapping[str, Shape]
    """Hugging Face names, in merge order, with their shapes."""
    merge: Callable[[list[Tensor]], Tensor] = lambda tensors: tensors[0]
    """Hugging Face tensors, or a rank's share of each, to the parameter, or the rank's share of it."""
    split: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]
    """The inverse of ``merge``."""
    global_shape: Shape = ()
    """Shape of the global tensor; empty where it is that of the one Hugging Face tensor."""
    shard_dim: int | None = None
    """Dimension of the global tensor that tensor-parallel ranks share; None for replicated."""

    @property
    def hf_shard_dim(self) -> int | None:
        """Dimension of each Hugging Face tensor that tensor-parallel ranks share; None for replicated."""
        if self.shard_dim is None or not self.global_shape:
            return self.shard_dim
        return self.shard_dim - (len(self.global_shape) - len(next(iter(self.hf_shapes.values()))))

    def hf_part(self, hf_name: str, *, rank: int, size: int) -> tuple[slice, ...]:
        """What rank ``rank`` of ``size`` holds of a Hugging Face tensor: a slice for each of its first dimensions."""
        if self.hf_shard_dim is None or size == 1:
            return ()
        width = self.hf_shapes[hf_name][self.hf_shard_dim] // size
        return (*[slice(None)] * self.hf_shard_dim, slice(rank * width, (rank + 1) * width))

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


def load_weights(model: Any, source: TensorSource, *, hf_config: Any) -> None:
    """Copies what this rank holds out of ``source``, one parameter at a time; the rest is not read.

    ValueError names a tensor that is missing, unknown or misshapen, what was expected, and the cure; the model is then
    as it was.
    """
    wanted = placements(hf_config)
    _check_tensors(source.shapes, wanted)
    parameters = global_parameters(model)
    for placement in wanted:
        if placement.name in parameters:  # another pipeline stage holds it otherwise
            _fill(parameters[placement.name], placement, source)
    _copy_tied_output(model)


def hf_tensors(model: Any, *, hf_config: Any) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors under their Hugging Face names, one at a time; every rank takes part, and gets all."""
    parameters = global_parameters(model)
    _, size = _tensor_parallel()
    for placement in placements(hf_config):
        local = _staged(parameters.get(placement.name), placement, model=model)
        shares = placement.split(local.view(placement.local_shape(size=size)))
        for hf_name, share in zip(placement.hf_shapes, shares, strict=True):
            yield hf_name, _gather(share, placement.hf_shard_dim, size=size)


def global_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """This rank's parameters by name, with the layer numbers of the whole model and the names of the local layers."""
    first_layer = model.decoder.layers[0].layer_number - 1 if len(model.decoder.layers) else 0
    return {plain_name(_shift_layer(name, first_layer)): parameter for name, parameter in model.named_parameters()}


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

    sections = [queries * channels, channels, channels]

    def merge(tensors: list[Tensor]) -> Tensor:
        parts = [tensor.view(-1, section, hidden) for tensor, section in zip(tensors, sections, strict=True)]
        return torch.cat(parts, dim=1).view(-1, hidden)

    def split(tensor: Tensor) -> list[Tensor]:
        parts = tensor.view(-1, sum(sections), hidden).split(sections, dim=1)
        return [part.reshape(-1, hidden) for part in parts]

    num_rows = groups * (queries + 2) * channels
    return Placement(ours + "self_attention.linear_qkv.weight", shapes, merge, split, (num_rows, hidden), 0)


def _vision_placements(hf_config: Any) -> list[Placement]:
    tower = VisionTower.on_meta(hf_config.vision_config)
    return [_plain("visual." + name, VISION + name, tuple(p.shape)) for name, p in tower.named_parameters()]


def _check_tensors(found: Mapping[str, Shape], wanted: list[Placement]) -> None:
    expected = {name: tuple(shape) for placement in wanted for name, shape in placement.hf_shapes.items()}
    cure = "check that the checkpoint and its config.json are of one model"
    for name, shape in found.items():
        if name == LM_HEAD and name not in expected:
            continue  # tied: some checkpoints write the embedding a second time
        if name not in expected:
            raise ValueError(f"tensor {name!r} does not belong to this Qwen3-VL; its shape is {tuple(shape)}: {cure}")
        if tuple(shape) != expected[name]:
            raise ValueError(
                f"tensor {name!r} must have shape {expected[name]} by config.json; got {tuple(shape)}: {cure}"
            )
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise ValueError(
            f"every tensor of the model must be in the checkpoint; {len(missing)} are missing, first {missing[0]!r} with "
            f"shape {expected[missing[0]]}: use a complete checkpoint of this config.json"
        )


@torch.no_grad()
def _fill(parameter: torch.nn.Parameter, placement: Placement, source: TensorSource) -> None:
    rank, size = _tensor_parallel()
    parts = [source.read(name, part=placement.hf_part(name, rank=rank, size=size)) for name in placement.hf_shapes]
    parameter.copy_(placement.merge(parts).reshape(parameter.shape))


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


def _staged(parameter: Tensor | None, placement: Placement, *, model: Any) -> Tensor:
    """This rank's share of a parameter, on every pipeline stage."""
    config = model.config
    if parameter is None:
        _, size = _tensor_parallel()
        shape, device = placement.local_shape(size=size), next(model.parameters()).device
        local = torch.empty(shape, dtype=config.params_dtype, device=device)
    else:
        local = high_precision(parameter).contiguous()
    if config.pipeline_model_parallel_size > 1:
        group = parallel_state.get_pipeline_model_parallel_group()
        stage = dist.get_process_group_ranks(group)[_stage_of(placement.name, model=model)]
        dist.broadcast(local, src=stage, group=group)
    return local


def _gather(share: Tensor, dim: int | None, *, size: int) -> Tensor:
    """The whole tensor, on every rank, from its shares along ``dim``."""
    if dim is None or size == 1:
        return share
    group = parallel_state.get_tensor_model_parallel_group()
    if dim == 0:  # shares lie one after another in memory: they arrive in place
        whole = torch.empty(size * share.shape[0], *share.shape[1:], dtype=share.dtype, device=share.device)
        dist.all_gather(list(whole.chunk(size)), share.contiguous(), group=group)
        return whole
    shares = [torch.empty_like(share, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(shares, share.contiguous(), group=group)
    return torch.cat(shares, dim=dim)


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
