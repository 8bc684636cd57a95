"""The layouts under which one AXPO step must give the numbers of one process, and how far two results differ."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))

from forked import run_ranks
from tiny_qwen3_vl import tiny_config, tiny_model

from nemo_axpo.actors.megatron_setup import ParallelLayout
from nemo_axpo.actors.memory import MemorySettings
from nemo_axpo.actors.packing import PackingForm

WORKER = Path(__file__).parent / "layout_worker.py"
LOSS = "update/loss"
_WHOLE, _PLAIN = ParallelLayout(), MemorySettings()


@dataclass(frozen=True)
class Layout:
    """Ranks, how they share the model, and what is done to save memory."""

    num_ranks: int
    parallel: ParallelLayout = _WHOLE
    memory: MemorySettings = _PLAIN
    packing: PackingForm = "padded"


_SHARDED = MemorySettings(distributed_optimizer=True)
LAYOUTS = {
    "one": Layout(1),
    "thd": Layout(1, packing="thd"),
    "tp2": Layout(2, ParallelLayout(2)),
    "tp2_sp": Layout(2, ParallelLayout(2, 1, True)),
    "pp2": Layout(2, ParallelLayout(1, 2)),
    "dp2": Layout(2),
    "dp2_distopt": Layout(2, memory=_SHARDED),
    "tp2_selective": Layout(2, ParallelLayout(2), MemorySettings("selective", ("core_attn", "mlp"))),
    "tp2_sp_full": Layout(2, ParallelLayout(2, 1, True), MemorySettings("full")),
    "tp2_chunks": Layout(2, ParallelLayout(2), MemorySettings(logprob_chunk_tokens=5)),
    "tp2_sp_chunks": Layout(2, ParallelLayout(2, 1, True), MemorySettings(logprob_chunk_tokens=5)),
    "tp2_sp_thd_selective": Layout(2, ParallelLayout(2, 1, True), MemorySettings("selective"), "thd"),
    "pp2_full": Layout(2, ParallelLayout(1, 2), MemorySettings("full", recompute_num_layers=2)),
    "pp4": Layout(4, ParallelLayout(1, 4)),
    "pp4_full_block": Layout(4, ParallelLayout(1, 4), MemorySettings("full", recompute_method="block")),
    "tp2_pp2": Layout(4, ParallelLayout(2, 2)),
    "tp2_pp2_sp": Layout(4, ParallelLayout(2, 2, True)),
    "tp2_dp2": Layout(4, ParallelLayout(2)),
    "tp2_dp2_distopt": Layout(4, ParallelLayout(2), _SHARDED),
    "pp2_dp2_distopt_full": Layout(
        4, ParallelLayout(1, 2), MemorySettings("full", distributed_optimizer=True, logprob_chunk_tokens=5)
    ),
}


@dataclass(frozen=True)
class Difference:
    """Largest differences of one layout from one process; relative to the largest value of the tensor or metric."""

    logprobs: float
    """Absolute, in nats."""
    loss: float
    metrics: float
    """Of any metric, relative to 0.01 where it is smaller: the KL of equal policies is 0 but for rounding."""
    gradients: float
    weights: float

    def within(self, tolerance: float) -> bool:
        """Whether every difference is at most ``tolerance``."""
        return max(vars(self).values()) <= tolerance


def save_checkpoints(directory: Path) -> dict[str, Path]:
    """A checkpoint with tied and one with untied embeddings: eight decoder layers each, two for each of four stages."""
    paths = {name: directory / name for name in ("untied", "tied")}
    for name, path in paths.items():
        tiny_model(tiny_config(tied=name == "tied", layers=8)).save_pretrained(path)
    return paths


def launch(checkpoints: Iterable[Path], names: Sequence[str], *, num_ranks: int) -> None:
    """Runs the step under all layouts ``names`` in one job; results lie beside the checkpoints."""
    job = run_ranks(num_ranks, WORKER, *names, "--", *checkpoints)
    assert job.returncode == 0, job.stderr[-3000:]


def results(checkpoint: Path, name: str) -> list[dict]:
    """What every rank of layout ``name`` saw."""
    return [torch.load(checkpoint / f"{name}.{rank}.pt") for rank in range(LAYOUTS[name].num_ranks)]


def difference(ranks: list[dict], alone: dict) -> Difference:
    """Between what all ranks of one layout saw and what one process saw (see ``layout_worker.run``).

    AssertionError where the ranks disagree about metrics, or a row was scored by nobody.
    """
    assert all(rank["metrics"] == ranks[0]["metrics"] for rank in ranks), "metrics are equal on every rank"
    assert all(rank["version"] == alone["version"] for rank in ranks), "every rank takes the same steps"
    assert {name for rank in ranks for name in rank["logprobs"]} == alone["logprobs"].keys()
    scored = [(name, values) for rank in ranks for name, values in rank["logprobs"].items()]
    logprobs = max(float((values - alone["logprobs"][name]).abs().max()) for name, values in scored)
    steps = [tuple(map(_of_the_update, pair)) for pair in zip(ranks[0]["metrics"], alone["metrics"], strict=True)]
    assert all(ours.keys() == theirs.keys() for ours, theirs in steps)
    metrics = max(_relative(ours[name], theirs[name], floor=0.01) for ours, theirs in steps for name in theirs)
    pairs = [(ours[LOSS], theirs[LOSS]) for ours, theirs in steps if LOSS in theirs]
    loss = max(_relative(*pair, floor=0.0) for pair in pairs)
    gradients, weights = (_worst(ranks[0][kind], alone[kind]) for kind in ("gradients", "weights"))
    return Difference(logprobs, loss, metrics, gradients, weights)


def _of_the_update(metrics: dict[str, float]) -> dict[str, float]:
    """Without padding and sharing: which rows run together follows from the layout."""
    return {name: value for name, value in metrics.items() if not name.startswith("batch/")}


def _relative(ours: float, theirs: float, *, floor: float) -> float:
    return abs(ours - theirs) / max(abs(theirs), floor)


def _worst(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    scales = {name: tensor.abs().max().clamp(min=1e-6) for name, tensor in theirs.items()}
    return max(float((ours[name] - tensor).abs().max() / scales[name]) for name, tensor in theirs.items())
