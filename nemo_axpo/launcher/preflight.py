"""What the nodes of a job must have, asked before anything is loaded: every rank looks, one of them says what is wrong."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import socket
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_axpo.config.schema import Config
from nemo_axpo.errors import rule_message
from nemo_axpo.extras import installed_versions
from nemo_axpo.launcher.inputs import missing_inputs

VERSIONS = ("nemo-axpo", "torch", "megatron-core", "transformers", "transformer-engine", "nemo-aligner")
SHARED_MEMORY = Path("/dev/shm")
_GIB = 2**30


@dataclass(frozen=True)
class RankReport:
    """What one rank found."""

    rank: int
    host: str
    problems: tuple[str, ...]
    versions: dict[str, str]


@dataclass(frozen=True)
class Ranks:
    """This rank's place in the job, from the environment that torchrun and the job script set."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    address: str = "127.0.0.1"
    port: int = 29_500
    has_store: bool = False
    """torchrun keeps a store at this address; otherwise the first rank does."""

    @property
    def is_host(self) -> bool:
        """Whether this rank keeps the store."""
        return self.rank == 0 and not self.has_store

    @classmethod
    def from_environment(cls) -> Ranks:
        """One rank where nothing is set."""
        read = os.environ.get
        return cls(int(read("RANK", "0")), int(read("LOCAL_RANK", "0")), int(read("WORLD_SIZE", "1")),
                   read("MASTER_ADDR", "127.0.0.1"), int(read("MASTER_PORT", "29500")),
                   read("TORCHELASTIC_USE_AGENT_STORE") == "True")  # fmt: skip


def run_preflight(config: Config, *, run_dir: Path, ranks: Ranks, timeout_s: float = 300.0) -> list[str]:
    """The problems of all ranks, on the first one; empty on the others. Every rank calls it.

    ConnectionError or RuntimeError of torch where the ranks do not find each other within ``timeout_s``.
    """
    problems = list(_own_problems(config, run_dir, ranks))
    if ranks.world_size == 1:
        return problems_of([_report(ranks, problems)])
    import torch.distributed as dist

    timeout = datetime.timedelta(seconds=timeout_s)
    store = dist.TCPStore(ranks.address, ranks.port, ranks.world_size, is_master=ranks.is_host, timeout=timeout)
    with _mark(run_dir, ranks=ranks, store=store) as mark:
        problems += mark_problems(run_dir, mark=mark)
        store.set(f"report/{ranks.rank}", json.dumps(asdict(_report(ranks, problems))))
        reports = [_read(store.get(f"report/{rank}")) for rank in range(ranks.world_size)]
        found = problems_of(reports)
        if not found:
            _collective(config, ranks=ranks, store=store, timeout=timeout)
        store.set(f"done/{ranks.rank}", "1")
        for rank in range(ranks.world_size if ranks.rank == 0 else 0):
            store.get(f"done/{rank}")  # the first rank serves the store: it leaves last
    return found if ranks.rank == 0 else []


def problems_of(reports: Sequence[RankReport]) -> list[str]:
    """Every problem once, with the hosts that have it, and versions that differ."""
    hosts: dict[str, list[str]] = {}
    for report in reports:
        for problem in report.problems:
            hosts.setdefault(problem, []).append(report.host)
    found = [f"{', '.join(dict.fromkeys(names))}: {problem}" for problem, names in hosts.items()]
    for package in VERSIONS:
        counts = Counter(report.versions.get(package, "absent") for report in reports)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            other = next(report for report in reports if report.versions.get(package, "absent") != usual)
            rule = f"every node has the same {package}"
            got = f"{other.versions.get(package, 'absent')} on {other.host}, {usual} elsewhere"
            found.append(rule_message(rule, got=got, cure="use one image on all nodes"))
    return found


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide numbers."""
    return installed_versions(VERSIONS)


def mark_problems(run_dir: Path, *, mark: Path | None) -> Iterator[str]:
    """A file that the first rank wrote, and another one does not see; ``mark`` None: the first rank could write none."""
    if mark is not None and not mark.exists():
        rule, cure = "the run directory is the same one on every node", "take a file system that all nodes share"
        yield rule_message(rule, got=f"{run_dir} without the first rank's files", cure=cure)


@contextlib.contextmanager
def _mark(run_dir: Path, *, ranks: Ranks, store: Any) -> Iterator[Path | None]:
    """A file beside or in the run directory, written by the first rank and gone at the end of the block."""
    if ranks.rank:
        name = store.get("mark").decode()
        yield Path(name) if name else None
        return
    place = _existing(run_dir)
    mark = None if place is None else place / f".preflight-{uuid.uuid4().hex}"
    try:
        if mark is not None:
            mark.touch()
    except OSError:
        mark = None  # path_problems says why
    store.set("mark", str(mark or ""))
    try:
        yield mark
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)


def _report(ranks: Ranks, problems: Sequence[str]) -> RankReport:
    return RankReport(ranks.rank, socket.gethostname(), tuple(problems), versions())


def _own_problems(config: Config, run_dir: Path, ranks: Ranks) -> Iterator[str]:
    if config.device == "cuda":
        yield from _gpu_problems(ranks)
    yield from _shared_memory_problems(config)
    yield from path_problems(config, run_dir=run_dir)


def _gpu_problems(ranks: Ranks) -> Iterator[str]:
    import torch

    count = torch.cuda.device_count()
    if count <= ranks.local_rank:
        rule = "every rank of a node has a GPU of its own"
        cure = "ask for more GPUs, check the container's runtime, or let no binding hide them (srun_args: [--gpu-bind=none])"
        yield rule_message(rule, got=f"{count} visible", cure=cure)
    elif not torch.cuda.is_bf16_supported(including_emulation=False):
        yield rule_message(
            "bf16 needs a GPU of compute capability 8.0", got=torch.cuda.get_device_name(), cure="use one"
        )


def _shared_memory_problems(config: Config) -> Iterator[str]:
    """Two buckets of the weight transport, which holds at least the largest tensor, and NCCL's own share."""
    if not config.engine.servers and not config.job.servers.per_node:
        return
    needed = 2 * max(config.engine.sync.bucket_mib * 2**20, 2 * _GIB) + _GIB
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    if free < needed:
        rule = f"{SHARED_MEMORY} needs {needed / _GIB:.0f} GiB for weights on their way to servers"
        yield rule_message(rule, got=f"{free / _GIB:.2f} GiB free", cure="give the container --shm-size, or shm_size")


def path_problems(config: Config, *, run_dir: Path) -> Iterator[str]:
    """Mounts that are not there: the model, the data, and a place for results that can be written."""
    model = config.model.path
    if model is not None and not (Path(model) / "config.json").is_file():
        yield rule_message("model.path is mounted on every node", got=model, cure="add its directory to mounts")
    yield from missing_inputs(config)
    existing = _existing(run_dir)
    if existing is None or not os.access(existing, os.W_OK):
        yield rule_message("the run directory can be written", got=run_dir, cure="mount its directory, writable")


def _existing(run_dir: Path) -> Path | None:
    """The run directory, or the nearest directory above it that is there."""
    return next((path for path in (run_dir, *run_dir.parents) if path.exists()), None)


def _collective(config: Config, *, ranks: Ranks, store: Any, timeout: datetime.timedelta) -> None:
    """A sum over all ranks must be the sum of their numbers."""
    import torch
    import torch.distributed as dist

    is_cuda = config.device == "cuda"
    device = torch.device("cuda", ranks.local_rank) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_cuda else "gloo", store=dist.PrefixStore("collective", store),
                            rank=ranks.rank, world_size=ranks.world_size, timeout=timeout)  # fmt: skip
    total = torch.full((1024,), float(ranks.rank), device=device)
    dist.all_reduce(total)
    expected = ranks.world_size * (ranks.world_size - 1) / 2
    assert bool((total == expected).all()), f"all-reduce gave {total[0].item()} instead of {expected}"
    dist.destroy_process_group()


def _read(text: bytes) -> RankReport:
    values = json.loads(text)
    return RankReport(values["rank"], values["host"], tuple(values["problems"]), values["versions"])
