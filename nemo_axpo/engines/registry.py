"""Engines by name: the only place that turns the word in a config into a class."""

from __future__ import annotations

from collections.abc import Collection

import torch
from transformers import Qwen3VLConfig

from nemo_axpo.engines.base import Engine

PLANNED_EXTRAS = {"vllm": "vllm", "trtllm": "trtllm"}
"""Engines of the protocol that do not exist yet, with the extra that will bring them."""


def create_engine(
    name: str,
    *,
    hf_config: Qwen3VLConfig,
    image_store: object,
    stop_token_ids: Collection[int],
    banned_token_ids: Collection[int],
    max_num_seqs: int,
    max_model_len: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Engine:
    """The engine ``name``, without weights yet. ValueError for an unknown or unavailable name."""
    if name in PLANNED_EXTRAS:
        raise ValueError(
            f"engine {name!r} is not available yet; it will come with pip install 'nemo_axpo[{PLANNED_EXTRAS[name]}]'; "
            "use engine 'hf'"
        )
    if name != "hf":
        raise ValueError(f"engine must be one of hf, {', '.join(PLANNED_EXTRAS)}; got {name!r}")
    from nemo_axpo.engines.hf.engine import HfEngine  # each engine's imports load with the engine alone

    return HfEngine(
        hf_config,
        image_store=image_store,
        stop_token_ids=stop_token_ids,
        banned_token_ids=banned_token_ids,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        device=device,
        dtype=dtype,
    )
