"""The interleaved multimodal rotary embedding. Source: transformers ``Qwen3VLTextRotaryEmbedding``; tests compare."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class InterleavedRope(torch.nn.Module):
    """Cosines and sines of the rotary angles, whose frequencies take turns: time, height, width, time, height, …"""

    def __init__(self, *, head_dim: int, theta: float, sections: tuple[int, int, int]) -> None:
        """``sections``: frequency pairs of (time, height, width); they sum to ``head_dim / 2``."""
        super().__init__()
        self._inverse_frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        self._axis = axis_of_frequency(head_dim // 2, sections=sections)

    @torch.no_grad()
    def forward(self, positions_3T: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[T, 1, 1, head_dim]`` in ``dtype``, computed in float32."""
        device = positions_3T.device
        positions_TF = positions_3T.float()[self._axis.to(device)].T
        angles_TF = positions_TF * self._inverse_frequency.to(device)
        angles_TD = torch.cat((angles_TF, angles_TF), dim=-1)[:, None, None]
        return angles_TD.cos().to(dtype), angles_TD.sin().to(dtype)


def rotate(states: Tensor, *, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates ``[T, 1, heads, head_dim]`` by the angles of :class:`InterleavedRope`; channel i pairs with i + D/2."""
    cos, sin = rotary
    low, high = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-high, low), dim=-1) * sin


def axis_of_frequency(num_frequencies: int, *, sections: Sequence[int]) -> Tensor:
    """Which of (time 0, height 1, width 2) each frequency turns with, int64 ``[F]``.

    Frequency i reads the height axis where i = 1, 4, 7, … below 3 · sections[1], the width axis where i = 2, 5, 8, … below
    3 · sections[2], and the time axis elsewhere (transformers ``recomposition_frequencies``).
    """
    axis = torch.zeros(num_frequencies, dtype=torch.int64)
    for number in (1, 2):
        axis[number : 3 * sections[number] : 3] = number
    return axis
