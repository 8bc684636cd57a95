"""What a sandboxed process may do: layers, limits, and the files it sees."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MIB = 2**20


class Layer(StrEnum):
    """One of the kernel's walls. Each is closed from inside the process and cannot be opened again."""

    NAMESPACES = "namespaces"
    """A file tree, process table, network and user ids of its own."""
    LANDLOCK = "landlock"
    """Files outside the list cannot be opened, whatever the tree shows."""
    SECCOMP = "seccomp"
    """System calls without a use in it fail."""
    RLIMITS = "rlimits"
    """Memory, processes, file sizes and CPU seconds."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one sandboxed process and all it starts."""

    memory_bytes: int = 2048 * MIB
    """Address space of a process."""
    scratch_bytes: int = 64 * MIB
    """All files together; held only where namespaces are."""
    file_bytes: int = 32 * MIB
    """One file."""
    num_processes: int = 32
    """Processes and threads."""
    num_open_files: int = 64
    cpu_s: int = 600
    """CPU seconds of a process over its life; a call's own deadline is the caller's."""


@dataclass(frozen=True)
class Policy:
    """How a process is shut in."""

    layers: frozenset[Layer]
    limits: Limits
    readable: tuple[str, ...]
    """Files and directories it may read and execute from."""
    seccomp_filter: bytes = b""
    """Of :func:`nemo_axpo.sandbox.seccomp.build_filter`, where the layer is on."""
