"""What every committed result says of its origin, how it is written, and the options that all benchmarks have."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_axpo.extras import installed_versions

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "megatron-core")
_LOAD_AT_START = os.getloadavg()[0]
"""Later it is the benchmark's own."""


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with ``--output``; ``description`` is the benchmark's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the result here, with command, commit, date and machine")
    return parser


def environment(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """What a reader needs to repeat the run; of ``packages``, those that are installed."""
    return {
        "command": command_line(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device(),
        "cores": os.cpu_count(),
        "load_average_at_start": round(_LOAD_AT_START, 2),
        "packages": versions(packages),
    }


def command_line() -> str:
    """As it was typed; a path outside of the repository is left out, as it says nothing elsewhere."""
    program, *arguments = sys.argv
    threads = os.environ.get("OMP_NUM_THREADS")
    shown = shlex.join(["python", *map(shown_path, (program, *arguments))])
    return f"OMP_NUM_THREADS={threads} {shown}" if threads else shown


def commit() -> str | None:
    """With ``+changes`` where tracked files differ from it, results aside; None outside of a repository."""
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return f"{head}+changes" if head and changed else head


def device() -> str:
    """The GPU where this process uses one, else the CPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    return {"python": platform.python_version(), **installed_versions(packages)}


def write_result(path: Path | None, results: Mapping[str, Any], *, packages: Sequence[str] = PACKAGES) -> None:
    """Writes ``results`` behind their origin; nothing where no path was given."""
    if path is not None:
        write_json(path, {**environment(packages), **results})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all: an interrupted benchmark leaves the file that was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def shown_path(argument: str) -> str:
    """An argument of a command line as a result shows it."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else "..."


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
