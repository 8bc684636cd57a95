"""Peak host memory of importing and exporting a checkpoint of a published size; no weights are needed.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_memory.py --output benchmarks/results/checkpoint_memory.json

The checkpoint is zeros: files with real headers whose data was never written, so they have their full size and take no disk.
Memory is the resident size (pages of mapped files included), by how much its peak is above what it was before; Linux resets
the peak through /proc/self/clear_refs. Every measurement runs in a process of its own:

    import_shard    one rank of TP8: its parameters in memory, filled from the checkpoint
    import_whole    one process: every tensor read and merged as a parameter, then dropped, as where weights lie on a GPU
    export          every tensor as one rank has it, written to disk with its index, and deleted again
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from environment import argument_parser, write_result
from timing import timed
from torch.testing._internal.distributed.fake_pg import FakeStore

from nemo_axpo.actors import cpu_shim

cpu_shim.install()

# isort: split
from megatron.core import parallel_state, tensor_parallel

from nemo_axpo.models.qwen3_vl import checkpoint_writer
from nemo_axpo.models.qwen3_vl.checkpoint_reader import CheckpointReader
from nemo_axpo.models.qwen3_vl.config import transformer_config
from nemo_axpo.models.qwen3_vl.hf_mapping import load_weights, placements
from nemo_axpo.models.qwen3_vl.hf_model import LM_HEAD, is_tied, parameter_shapes
from nemo_axpo.models.qwen3_vl.loading import save_hf_checkpoint
from nemo_axpo.models.qwen3_vl.model import build_stage
from nemo_axpo.plan.published import SIZES, published_config

MIB = 2**20
RANKS, RANK = 8, 3


def shapes_of(hf_config: Any) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint."""
    shapes = parameter_shapes(hf_config)
    return {name: shape for name, shape in shapes.items() if not (name == LM_HEAD and is_tied(hf_config))}


def write_zeros(path: Path, hf_config: Any) -> None:
    """A checkpoint whose data are holes: the files have their size, and no blocks."""
    shapes = shapes_of(hf_config)
    files = checkpoint_writer._plan(path, shapes, dtype=torch.bfloat16, max_file_bytes=5_000_000_000)
    hf_config.save_pretrained(path)
    for file in files:
        with file.target.open("wb") as stream:
            stream.write(file.header)
            stream.truncate(file.num_bytes)
    checkpoint_writer._write_index(path, files, dtype=torch.bfloat16, shapes=shapes)


def import_shard(path: Path, hf_config: Any) -> dict[str, float]:
    """One rank of a replica; the other ranks' collectives are left out (there are none in an import of one stage)."""
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=RANKS)
    parallel_state.initialize_model_parallel(RANKS, create_gloo_process_groups=False)
    tensor_parallel.model_parallel_cuda_manual_seed(0)
    config = transformer_config(hf_config, dtype=torch.bfloat16, tensor_parallel=RANKS)
    model = build_stage(hf_config, config=config, device=torch.device("cpu"))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)  # memory counts once it is written to
    placements(hf_config)  # whatever Python imports and allocates once
    measured = measure(lambda: load_weights(model, CheckpointReader(path), hf_config=hf_config))
    assert not any(parameter.any() for parameter in model.parameters())
    own = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {**measured, "parameters_mib": own / MIB}


def import_whole(path: Path, hf_config: Any) -> dict[str, float]:
    """Reads, merges and drops."""
    wanted = placements(hf_config)

    def run() -> None:
        source = CheckpointReader(path)
        for placement in wanted:
            merged = placement.merge([source.read(name) for name in placement.hf_shapes])
            assert merged.amax() == 0  # touches every page, and makes no tensor of its size

    return measure(run)


def export(path: Path, hf_config: Any) -> dict[str, float]:
    """Writes real bytes, to where the checkpoint is not."""
    target = path.parent / "exported"

    def run() -> None:
        tensors = ((name, torch.zeros(shape, dtype=torch.bfloat16)) for name, shape in shapes_of(hf_config).items())
        save_hf_checkpoint(target, tensors, hf_config=hf_config, source=path)

    measured = measure(run)
    written = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    assert len(CheckpointReader(target).shapes) == len(shapes_of(hf_config))
    shutil.rmtree(target)
    return {**measured, "written_mib": written / MIB}


CASES = {"import_shard": import_shard, "import_whole": import_whole, "export": export}


def measure(run: Callable[[], None]) -> dict[str, float]:
    """Wall seconds and peak growth of the resident size."""
    before = resident_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    wall_s = timed(run).wall_s
    return {"peak_growth_mib": (resident_kib("VmHWM") - before) / 1024, "wall_s": wall_s}


def resident_kib(key: str) -> int:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def run_cases(size: str, *, directory: Path) -> dict[str, Any]:
    """Every case in a process of its own."""
    hf_config = published_config(size)
    path = directory / size
    path.mkdir()
    write_zeros(path, hf_config)
    sizes = [2 * math.prod(shape) for shape in shapes_of(hf_config).values()]
    disk = sum(file.stat().st_blocks * 512 for file in path.glob("*.safetensors"))
    report: dict[str, Any] = {
        "checkpoint_mib": sum(sizes) / MIB, "on_disk_mib": disk / MIB, "largest_tensor_mib": max(sizes) / MIB,
        "num_tensors": len(sizes),
    }  # fmt: skip
    for case in CASES:
        command = [sys.executable, "-W", "ignore", __file__, "--size", size, "--case", case, "--checkpoint", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        report[case] = json.loads(done.stdout.splitlines()[-1])
        print(size, case, {key: round(value, 1) for key, value in report[case].items()}, flush=True)
    return report


def main() -> None:
    """Runs the cases and writes them."""
    parser = argument_parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--directory", type=Path, help="where the export is written (default: a temporary one)")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(CASES[arguments.case](arguments.checkpoint, published_config(arguments.size))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        results = run_cases(arguments.size, directory=Path(directory))
    write_result(arguments.output, {"results": {arguments.size: results}})


if __name__ == "__main__":
    main()
