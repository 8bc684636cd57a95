"""Megatron's transformer block with DeepStack: vision features of several depths are added after the first layers.

The features are an argument of the forward, so recomputation sees them and their gradient; a hook would hide them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from nemo_axpo.models.qwen3_vl.inputs import PackedRows
from nemo_axpo.models.qwen3_vl.quantization import block_context, layer_context


class DeepStackBlock(TransformerBlock):
    """The decoder layers of one pipeline stage."""

    def forward(
        self,
        hidden_states: Tensor | None,
        *,
        rows: PackedRows,
        rotary: tuple[Tensor, Tensor],
        deepstack: Sequence[Tensor] = (),
    ) -> Tensor:
        """``[T, 1, H]`` to ``[T, 1, H]``, normalised on the last stage.

        ``deepstack``: per level ``[T, 1, H]``, zero but at image tokens, added after layers 0, 1, …; first stage only.
        """
        if not self.pre_process:
            hidden_states = self.input_tensor
        with block_context(self.config):
            for start, end, is_recomputed in recompute_units(self.config, num_layers=len(self.layers)):
                run = functools.partial(self._run_layers, start=start, end=end, rows=rows, rotary=rotary)
                levels = deepstack[start:end]
                if is_recomputed and self.training:
                    hidden_states = _checkpointed(run, hidden_states, *levels, config=self.config)
                else:
                    hidden_states = run(hidden_states, *levels)
        return hidden_states if self.final_layernorm is None else self.final_layernorm(hidden_states)

    def _run_layers(
        self, states: Tensor, *levels: Tensor, start: int, end: int, rows: PackedRows, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Layers ``start`` to ``end``, the first of them followed by ``levels``."""
        for layer, level in itertools.zip_longest(self.layers[start:end], levels):
            with layer_context(self.config, layer.layer_number):
                states = layer(states, attention_mask=None, rotary_pos_emb=rotary, packed_seq_params=rows)[0]
            if level is not None:
                states = states + level
        return states


def recompute_units(config: TransformerConfig, *, num_layers: int) -> list[tuple[int, int, bool]]:
    """(first layer, one past the last, whether recomputed) of runs of layers, as megatron's ``TransformerBlock`` cuts them.

    ``uniform`` keeps the input of every ``recompute_num_layers`` layers; ``block`` recomputes the first
    ``recompute_num_layers`` layers one by one.
    """
    if config.recompute_granularity != "full":
        return [(0, num_layers, False)]
    size = config.recompute_num_layers
    if config.recompute_method == "uniform":
        return [(start, min(start + size, num_layers), True) for start in range(0, num_layers, size)]
    cut = min(size, num_layers)
    return [(layer, layer + 1, True) for layer in range(cut)] + [(cut, num_layers, False)]


def _checkpointed(run: Callable[..., Tensor], *states: Tensor, config: TransformerConfig) -> Tensor:
    """``run(*states)``, computed again in the backward pass; what has a gradient must be among ``states``."""
    if config.fp8:
        # Transformer Engine's own checkpoint keeps the amax history of a layer from counting its forward pass twice.
        from megatron.core.extensions.transformer_engine import te_checkpoint

        group = parallel_state.get_tensor_model_parallel_group()
        tracker = tensor_parallel.random.get_cuda_rng_tracker
        return te_checkpoint(run, config.distribute_saved_activations, tracker, group, *states)
    return tensor_parallel.checkpoint(run, config.distribute_saved_activations, *states)
