"""Rotations of the interleaved multimodal rotary embedding, as unit complex numbers from one table."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from nemo_axpo.models.qwen3_vl.mrope import axis_of_frequency


class RotaryTable:
    """Rotation of every position below ``num_positions``; frequencies and sections are the Hugging Face module's."""

    def __init__(self, config: Qwen3VLConfig, *, num_positions: int, device: torch.device) -> None:
        rotary = Qwen3VLTextRotaryEmbedding(config.text_config)
        if rotary.rope_type in ("dynamic", "longrope"):
            raise ValueError(
                f"the hf engine needs fixed rotary frequencies, got rope_type {rotary.rope_type!r}, whose frequencies "
                "move with the length; use rope_type default, linear, yarn or llama3"
            )
        angles = torch.arange(num_positions, dtype=torch.float32).unsqueeze(1) * rotary.inv_freq.float().cpu()
        radii = torch.full_like(angles, rotary.attention_scaling)
        self._table = torch.polar(radii, angles).to(device)
        self._axis = axis_of_frequency(angles.shape[1], sections=rotary.mrope_section).to(device)

    def text(self, positions_N: Tensor) -> Tensor:
        """complex64 ``[N, 1, D/2]`` for tokens whose three axes agree."""
        return self._table.index_select(0, positions_N).unsqueeze(1)

    def multimodal(self, positions_3N: Tensor) -> Tensor:
        """complex64 ``[N, 1, D/2]`` from time, height and width positions."""
        return self._table.gather(0, positions_3N[self._axis].t()).unsqueeze(1)
