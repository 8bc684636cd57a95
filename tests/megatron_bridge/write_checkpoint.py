"""Lets the real Megatron-Bridge turn a Hugging Face checkpoint into a Megatron checkpoint, on the CPU, under any layout.

    python tests/megatron_bridge/write_checkpoint.py HF_DIR OUTPUT --tensor-parallel 2 --pipeline-parallel 2

Real: Megatron-Bridge's conversion of weights and its saver, megatron-core's modules, sharded state dicts and torch_dist
writer. Doubles: Transformer Engine (``doubles/``), which needs CUDA. Gloo's ``scatter`` misreads tensors that are not
contiguous, which NCCL's does not: they are made so.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import typing
from pathlib import Path

import typing_extensions

HERE = Path(__file__).resolve().parent
DOUBLES, ROOT = HERE / "doubles", HERE.parents[1]


def write_checkpoint(
    source: Path,
    output: Path,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    per_layer: bool = False,
    dtype: str = "float32",
) -> None:
    """Runs one process per rank. ``per_layer``: layers are not stacked. RuntimeError with the output of a failed rank."""
    size = tensor_parallel * pipeline_parallel
    flags = [*["--per-layer"] * per_layer, "--dtype", dtype]
    layout = ["--tensor-parallel", str(tensor_parallel), "--pipeline-parallel", str(pipeline_parallel)]
    command = [sys.executable, __file__, str(source), str(output), *layout, *flags]
    with tempfile.TemporaryDirectory() as shared:
        job = {**os.environ, "WORLD_SIZE": str(size), "STORE": f"{shared}/store", "OMP_NUM_THREADS": "1"}
        paths = os.environ.get("PYTHONPATH", "")
        job |= {"PYTHONPATH": f"{DOUBLES}:{ROOT}:{paths}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        logs = [Path(shared) / f"{rank}.log" for rank in range(size)]
        ranks = [_start(command, {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)}, log) for rank, log in enumerate(logs)]
        try:
            statuses = [rank.wait(timeout=500) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        failed = [log.read_text() for status, log in zip(statuses, logs, strict=True) if status]
        if failed:
            raise RuntimeError(failed[0])


def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
    with log.open("w") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def _run_rank(options: argparse.Namespace) -> None:
    typing.override = typing_extensions.override  # newer sources are written for Python 3.12
    from nemo_axpo.actors import cpu_shim

    cpu_shim.install()
    import megatron.bridge.training.checkpointing
    import megatron.bridge.training.model_load_save  # noqa: F401
    import torch
    import torch.distributed as dist
    from megatron.bridge import AutoBridge

    cpu_shim.install()
    cpu_shim.install_into("megatron.bridge")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=size)
    _scatter_contiguous(dist)
    bridge = AutoBridge.from_hf_pretrained(str(options.source), dtype=getattr(torch, options.dtype))
    provider = bridge.to_megatron_provider(load_weights=True)
    provider.tensor_model_parallel_size = options.tensor_parallel
    provider.pipeline_model_parallel_size = options.pipeline_parallel
    provider.params_dtype = provider.pipeline_dtype = getattr(torch, options.dtype)
    provider.hetereogenous_dist_checkpoint = options.per_layer  # megatron's spelling
    provider.gradient_accumulation_fusion = provider.masked_softmax_fusion = False
    provider.finalize()
    model = provider.provide_distributed_model(
        wrap_with_ddp=False, use_cpu_initialization=True, bf16=options.dtype == "bfloat16"
    )
    bridge.save_megatron_model(model, str(options.output))
    dist.barrier()


def _scatter_contiguous(dist: typing.Any) -> None:
    scatter = dist.scatter

    def contiguous(tensor, scatter_list=None, **options):
        return scatter(tensor, scatter_list and [part.contiguous() for part in scatter_list], **options)

    dist.scatter = contiguous


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--pipeline-parallel", type=int, default=1)
    parser.add_argument("--per-layer", action="store_true")
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = _options()
    if "RANK" in os.environ:
        _run_rank(chosen)
    else:
        write_checkpoint(
            chosen.source,
            chosen.output,
            tensor_parallel=chosen.tensor_parallel,
            pipeline_parallel=chosen.pipeline_parallel,
            per_layer=chosen.per_layer,
            dtype=chosen.dtype,
        )
