"""Engines by name: the only place that turns the word in a config into a class."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from transformers import Qwen3VLConfig

from nemo_axpo.engines.base import Engine
from nemo_axpo.engines.fleet.build import ServerOptions
from nemo_axpo.engines.names import SERVER_ENGINES
from nemo_axpo.engines.vllm.settings import VllmSettings
from nemo_axpo.extras import require_extra

IN_PROCESS_ENGINES = ("hf", "vllm")
_VLLM_DEFAULTS = VllmSettings()


def create_engine(
    name: str,
    *,
    hf_config: Qwen3VLConfig,
    checkpoint: str | Path,
    image_store: object,
    stop_token_ids: Collection[int],
    banned_token_ids: Collection[int],
    max_num_seqs: int,
    max_model_len: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    servers: ServerOptions | None = None,
    vllm: VllmSettings = _VLLM_DEFAULTS,
) -> Engine:
    """The engine ``name``, without weights yet. ValueError for an unknown name, MissingExtraError without its package.

    ``checkpoint``: where vLLM finds tokenizer and image processor. ``servers``: of the engines that have some, which are
    checked here: ConfigError where one cannot be used.
    """
    policy = {
        "hf_config": hf_config,
        "image_store": image_store,
        "stop_token_ids": stop_token_ids,
        "banned_token_ids": banned_token_ids,
        "max_model_len": max_model_len,
    }
    if name == "trtllm":
        from nemo_axpo.engines.trtllm.build import build_trtllm  # each engine's imports load with the engine alone

        return build_trtllm(servers=servers, **policy)
    if name == "vllm_server":
        from nemo_axpo.engines.vllm_server.build import build_vllm_server

        return build_vllm_server(servers=servers, device=torch.device(device).type, **policy)
    if name not in IN_PROCESS_ENGINES:
        raise ValueError(f"engine must be one of {', '.join((*IN_PROCESS_ENGINES, *SERVER_ENGINES))}; got {name!r}")
    if name == "vllm":
        require_extra("vllm")
        from nemo_axpo.engines.vllm.engine import VllmEngine

        return VllmEngine(
            checkpoint=checkpoint,
            max_num_seqs=max_num_seqs,
            device=torch.device(device).type,
            dtype=str(dtype).removeprefix("torch."),
            settings=vllm,
            **policy,
        )
    from nemo_axpo.engines.hf.engine import HfEngine

    return HfEngine(max_num_seqs=max_num_seqs, device=device, dtype=dtype, **policy)
