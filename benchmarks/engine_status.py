"""Writes docs/engine_status.md: of every engine and path, whether it ran on a CPU, on a GPU, or is written but was not run.

    python -m pytest tests/contracts/test_hf_engine.py --engine-results benchmarks/results/engines/hf_cpu.json
    python benchmarks/engine_status.py

A path counts as run where a committed file of ``benchmarks/results/engines`` has its test suite, and every test of it
passed. A path that is new here is written but was not run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "engines", ROOT / "docs" / "engine_status.md"
CONTRACTS = "tests/contracts/"


@dataclass(frozen=True)
class EnginePath:
    """One way in which an engine runs."""

    engine: str
    """Of ``engine.name``; ``fleet`` is what all server engines share."""
    path: str
    """In words."""
    cpu: tuple[str, ...] = ()
    """Test suites (file::class) that run it on a CPU; none: it cannot run there."""
    gpu: tuple[str, ...] = ()
    """The same on a GPU."""


PATHS = (
    EnginePath(
        "hf",
        "embedded, the whole contract",
        cpu=(f"{CONTRACTS}test_hf_engine.py::TestHfEngine",),
        gpu=(f"{CONTRACTS}test_hf_engine_cuda.py::TestHfEngineOnCuda",),
    ),
    EnginePath(
        "vllm",
        "in the trainer's process, the whole contract",
        cpu=(f"{CONTRACTS}test_vllm_engine.py::TestVllmEngine",),
        gpu=(f"{CONTRACTS}test_vllm_engine.py::TestVllmEngine",),
    ),
    EnginePath(
        "vllm",
        "AXPO steps with its rollouts, weights pushed and proven after each; doctor; several ranks refused",
        cpu=tuple(
            f"tests/e2e/test_vllm_training.py::{test}"
            for test in (
                "test_axpo_with_rollouts_from_vllm",
                "test_the_doctor_passes",
                "test_several_ranks_are_refused",
            )
        ),
    ),
    EnginePath(
        "vllm_server",
        "the whole contract against a real server; weights in shared memory, by broadcasts, as files",
        cpu=(f"{CONTRACTS}test_vllm_server_engine.py::TestVllmServerEngine",),
    ),
    EnginePath(
        "vllm_server",
        "servers that cannot be used, another prompt than ours, half an update",
        cpu=(f"{CONTRACTS}test_vllm_server_engine.py::TestClient",),
    ),
    EnginePath(
        "vllm_server",
        "one of two servers killed while it samples, started again, given weights",
        cpu=(f"{CONTRACTS}test_vllm_server_engine.py::TestKilledServer",),
    ),
    EnginePath(
        "vllm_server",
        "AXPO steps of two replicas that share a server: one pushes, both sample",
        cpu=("tests/e2e/test_vllm_training.py::test_two_replicas_share_a_server",),
    ),
    EnginePath(
        "vllm_server",
        "NeMo-Aligner's fit on two ranks, servers in another environment: one for each, then one for both",
        cpu=tuple(
            f"tests/aligner/test_aligner_vllm.py::{test}"
            for test in (
                "test_every_step_samples_calls_tools_resamples_and_trains",
                "test_a_tools_picture_is_among_what_is_trained",
                "test_servers_and_trainer_agree_on_every_token",
                "test_every_update_is_pushed_and_proven",
                "test_a_server_for_each_replica_then_one_for_both",
            )
        ),
    ),
    EnginePath(
        "fleet",
        "the whole contract over three engines in one process",
        cpu=(f"{CONTRACTS}test_fleet_engine.py::TestFleetEngine",),
    ),
    EnginePath(
        "fleet",
        "servers that fail, freeze, restart or miss a push",
        cpu=(
            f"{CONTRACTS}test_fleet_engine.py::TestFailures",
            f"{CONTRACTS}test_fleet_over_http.py::test_killed_frozen_and_restarted_servers_lose_nothing",
            f"{CONTRACTS}test_fleet_over_http.py::test_a_server_that_dies_during_a_push_is_left_out",
        ),
    ),
    EnginePath(
        "fleet",
        "three replicas on two local servers that speak vLLM's protocol: who pushes, who waits, how all of them stop",
        cpu=tuple(
            f"tests/dist_cpu/test_shared_servers.py::{test}"
            for test in (
                "test_only_the_lowest_replica_of_a_server_pushes",
                "test_every_replica_samples_the_policy_that_was_pushed",
                "test_nobody_asks_a_server_anything_while_it_is_pushed_to",
                "test_other_weights_on_a_shared_server_end_the_job_on_every_rank",
                "test_a_dead_server_ends_the_job_on_every_rank",
            )
        ),
    ),
    EnginePath(
        "trtllm",
        "the whole contract against a local server that speaks its protocol (not TensorRT-LLM itself)",
        cpu=(f"{CONTRACTS}test_trtllm_engine.py::TestTrtllmEngine",),
    ),
    EnginePath(
        "trtllm",
        "training steps with rollouts from two such servers, one of them killed",
        cpu=(f"{CONTRACTS}test_trtllm_training.py::test_training_goes_on_without_a_killed_server",),
    ),
    EnginePath(
        "trtllm",
        "NeMo-Aligner's entry script with trt_llm.enable=True on two such servers; what they cannot do is refused",
        cpu=tuple(
            f"tests/aligner/test_aligner_trtllm.py::{test}"
            for test in (
                "test_every_step_samples_on_the_servers_resamples_and_trains",
                "test_the_update_is_refitted_and_proven",
                "test_the_tool_returns_pictures_that_the_servers_are_shown",
                "test_what_a_server_cannot_do_is_refused_before_training",
            )
        ),
    ),
    EnginePath(
        "trtllm",
        "a version that cannot be used is refused before training, by its answers to the start-up probes",
        cpu=(f"{CONTRACTS}test_trtllm_engine.py::TestCheck", f"{CONTRACTS}test_trtllm_engine.py::TestBuild"),
    ),
    EnginePath(
        "trtllm",
        "the whole contract against trtllm-serve, weights by CUDA IPC handles, memory release",
        gpu=(f"{CONTRACTS}test_trtllm_server.py::TestTrtllmServer",),
    ),
)
"""Every engine and path, in the order of the page."""


@dataclass(frozen=True)
class Record:
    """What one file says."""

    file: str
    is_gpu: bool
    machine: str
    commit: str
    suites: dict[str, dict[str, int]]


def read_records(directory: Path = RESULTS) -> tuple[Record, ...]:
    """All committed results, by file name."""
    return tuple(_record(file) for file in sorted(directory.glob("*.json")))


def _record(file: Path) -> Record:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    machine = content["machine"]
    return Record(file.name, not machine.startswith("CPU"), machine, content["commit"], content["suites"])


def status(suites: Sequence[str], records: Sequence[Record]) -> str:
    """What a cell of the table says of these suites, whose records are all of one kind of machine."""
    if not suites:
        return "—"
    found = {suite: record for record in records for suite in suites if suite in record.suites}
    if len(found) < len(suites):
        return "written, not run"
    counts = [found[suite].suites[suite] for suite in suites]
    passed, total = sum(count.get("passed", 0) for count in counts), sum(sum(count.values()) for count in counts)
    if passed < total or not total:
        return f"**fails: {passed} of {total} tests passed**"
    files = ", ".join(sorted({f"[{r.file}](../benchmarks/results/engines/{r.file})" for r in found.values()}))
    return f"ran: {passed} tests passed, {files}"


def render(records: Sequence[Record], paths: Sequence[EnginePath] = PATHS) -> str:
    """The page."""
    kinds = [[record for record in records if record.is_gpu is is_gpu] for is_gpu in (False, True)]
    rows = [f"| `{p.engine}` | {p.path} | {status(p.cpu, kinds[0])} | {status(p.gpu, kinds[1])} |" for p in paths]
    runs = [
        f"| [{r.file}](../benchmarks/results/engines/{r.file}) | {r.machine} | `{r.commit[:12]}` |" for r in records
    ]
    return "\n".join(
        [
            "# Which engine ran where",
            "",
            "Generated by `python benchmarks/engine_status.py` from the results in `benchmarks/results/engines`. A path",
            "ran where all of its tests passed there; “written, not run” means just that; — means that it cannot.",
            "",
            "| engine | path | CPU | GPU |",
            "|---|---|---|---|",
            *rows,
            "",
            "| results | machine | commit |",
            "|---|---|---|",
            *runs,
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(render(read_records()), encoding="utf-8")
    print(PAGE)
