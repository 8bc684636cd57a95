"""Megatron's transformer block with DeepStack: vision features of several depths are added after the first layers.

The features are an argument of the forward, so recomputation sees them and their gradient; a hook would hide them.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from nemo_axpo.models.qwen3_vl.inputs import PackedRows


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
        for number, layer in enumerate(self.layers):
            hidden_states = self._run_layer(layer, hidden_states, rows=rows, rotary=rotary)
            if number < len(deepstack):
                hidden_states = hidden_states + deepstack[number]
        return hidden_states if self.final_layernorm is None else self.final_layernorm(hidden_states)

    def _run_layer(
        self, layer: object, hidden_states: Tensor, *, rows: PackedRows, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        def run(states: Tensor) -> Tensor:
            return layer(states, attention_mask=None, rotary_pos_emb=rotary, packed_seq_params=rows)[0]

        if self.config.recompute_granularity == "full" and self.training:
            return tensor_parallel.checkpoint(run, self.config.distribute_saved_activations, hidden_states)
        return run(hidden_states)
