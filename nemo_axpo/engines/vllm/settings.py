"""How vLLM is set up for this project: the same in this process and in servers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKER_EXTENSION = "nemo_axpo.engines.vllm.worker_extension.PolicyWeights"
_CPU_CACHE_MIB = 1024
_CPU_BLOCK_SIZE = 32
"""vLLM's attention kernel for CPUs takes multiples of it."""
_MAX_IMAGES = 1024
"""Per prompt; the length of the row is what limits them."""


@dataclass(frozen=True)
class VllmSettings:
    """What a config says of vLLM."""

    gpu_memory_utilization: float = 0.5
    """Share of the GPU's memory for weights, activations and cache; the trainer needs the rest."""
    kv_cache_mib: int | None = None
    """Memory of the KV cache; None: what ``gpu_memory_utilization`` leaves, on a CPU 1024."""
    enforce_eager: bool = False
    """No CUDA graphs and no compilation: starts at once, samples more slowly. Always so on a CPU."""
    max_num_batched_tokens: int | None = None
    """Tokens of one step; longer prompts are computed in pieces, but on a CPU, where a row must fit. None: vLLM's default."""


def engine_arguments(
    settings: VllmSettings, *, checkpoint: str | Path, max_num_seqs: int, max_model_len: int, dtype: str, device: str
) -> dict[str, Any]:
    """Arguments of ``vllm.EngineArgs``; with ``--`` and dashes, those of the server.

    * The weights come from the trainer, so none are read (``load_format=dummy``).
    * ``processed_logprobs``: of the distribution sampled from, after temperature, bans, top-k and top-p.
    * No cache of processed images: a request that fails in it would make later ones fail (vLLM 0.32).
    * The checkpoint's ``generation_config.json`` must not change how a request is sampled.
    * On a CPU every prompt is computed in one piece: vLLM 0.32 cannot rewind a CPU's random generator, which it does for a
      seeded request whose prompt is cut in two, and dies.
    * Steps are not overlapped: when one has returned nothing is under way, so that caches can be dropped.
    """
    on_cpu = device == "cpu"
    cache_mib = settings.kv_cache_mib or (_CPU_CACHE_MIB if on_cpu else None)
    return {
        "model": str(checkpoint),
        "load_format": "dummy",
        "dtype": dtype,
        "max_num_seqs": max_num_seqs,
        "max_model_len": max_model_len,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "kv_cache_memory_bytes": cache_mib and cache_mib * 2**20,
        "block_size": _CPU_BLOCK_SIZE if on_cpu else None,
        "enforce_eager": settings.enforce_eager or on_cpu,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": not on_cpu,
        "async_scheduling": False,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "limit_mm_per_prompt": {"image": _MAX_IMAGES, "video": 0},
        "mm_processor_cache_gb": 0,
        "mm_device_do_normalize": False,
        "worker_extension_cls": WORKER_EXTENSION,
    }


def set_environment(device: str) -> None:
    """What vLLM reads from the environment alone, for an engine in this process; call before importing vLLM."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its worker would be a process of its own on a CPU
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if device == "cpu":
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # the trainer's threads run on the same cores
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
