"""Engines by name: the only place that turns the word in a config into a class."""

from __future__ import annotations

from collections.abc import Collection

import torch
from transformers import Qwen3VLConfig

from nemo_axpo.engines.base import Engine
from nemo_axpo.engines.fleet.build import ServerOptions
from nemo_axpo.engines.names import SERVER_ENGINES

PLANNED_EXTRAS = {"vllm": "vllm"}
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
    servers: ServerOptions | None = None,
) -> Engine:
    """The engine ``name``, without weights yet. ValueError for an unknown or unavailable name.

    ``servers``: of the engines that have some, which are checked here: ConfigError where one cannot be used.
    """
    if name in PLANNED_EXTRAS:
        raise ValueError(
            f"engine {name!r} is not available yet; it will come with pip install 'nemo_axpo[{PLANNED_EXTRAS[name]}]'; "
            "use engine 'hf'"
        )
    if name == "trtllm":
        from nemo_axpo.engines.trtllm.build import build_trtllm  # each engine's imports load with the engine alone

        return build_trtllm(
            hf_config,
            image_store=image_store,
            stop_token_ids=stop_token_ids,
            banned_token_ids=banned_token_ids,
            max_model_len=max_model_len,
            servers=servers,
        )
    if name != "hf":
        raise ValueError(f"engine must be one of hf, {', '.join((*SERVER_ENGINES, *PLANNED_EXTRAS))}; got {name!r}")
    from nemo_axpo.engines.hf.engine import HfEngine

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
