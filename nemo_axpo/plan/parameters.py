"""How many parameters a rank holds, exactly; tests compare with the real modules and with the placements of their shards."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_axpo.plan.sizes import ModelSizes, VisionSizes


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by part; zero where the pipeline stage does not hold the part."""

    vision: int = 0
    embedding: int = 0
    language: int = 0
    """Decoder layers and the norm after the last one."""
    output: int = 0
    """Output projection; with tied embeddings only a pipeline's last stage has one, a copy of the embedding."""

    @property
    def total(self) -> int:
        """All parts."""
        return self.vision + self.embedding + self.language + self.output


def whole_model(sizes: ModelSizes) -> ParameterCount:
    """The model itself, undivided."""
    return rank_parameters(sizes, stage=0)


def rank_parameters(
    sizes: ModelSizes, *, stage: int, tensor_parallel: int = 1, pipeline_parallel: int = 1
) -> ParameterCount:
    """One rank's share on pipeline stage ``stage``; the sizes must divide (see :mod:`nemo_axpo.plan.checks`)."""
    is_first, is_last = stage == 0, stage == pipeline_parallel - 1
    layers = sizes.num_layers // pipeline_parallel
    vocabulary = sizes.vocab * sizes.hidden // tensor_parallel
    has_output = is_last and not (sizes.is_tied and is_first)
    return ParameterCount(
        vision=vision_parameters(sizes.vision, out_hidden=sizes.hidden) if is_first else 0,
        embedding=vocabulary if is_first else 0,
        language=layers * layer_parameters(sizes, tensor_parallel=tensor_parallel) + (sizes.hidden if is_last else 0),
        output=vocabulary if has_output else 0,
    )


def layer_parameters(sizes: ModelSizes, *, tensor_parallel: int) -> int:
    """One decoder layer: projections are shared by the tensor-parallel ranks, norms are replicated."""
    norms = 2 * sizes.hidden + 2 * sizes.head_dim
    attention = (2 * sizes.query_width + 2 * sizes.group_width) * sizes.hidden
    mlp = 3 * sizes.intermediate * sizes.hidden
    return norms + (attention + mlp) // tensor_parallel


def vision_parameters(vision: VisionSizes, *, out_hidden: int) -> int:
    """The tower with its mergers; every tensor-parallel rank of the first stage holds all of it."""
    patch = (vision.patch_values + 1) * vision.hidden
    positions = vision.num_positions * vision.hidden
    blocks = vision.depth * _block_parameters(vision)
    merged = vision.hidden * vision.patches_per_token
    norms = 2 * vision.hidden + vision.num_deepstack * 2 * merged
    linears = (merged + 1) * merged + (merged + 1) * out_hidden
    return patch + positions + blocks + norms + (1 + vision.num_deepstack) * linears


def _block_parameters(vision: VisionSizes) -> int:
    """Two norms, query-key-value and output projection, two MLP projections, all with a bias."""
    hidden, width = vision.hidden, vision.intermediate
    return 4 * hidden + (hidden + 1) * 4 * hidden + (hidden + 1) * width + (width + 1) * hidden
