"""Which layers this machine has: each is entered once, by a process that does nothing else."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass

from nemo_axpo.sandbox import landlock, namespaces, seccomp
from nemo_axpo.sandbox.enter import enter, fork
from nemo_axpo.sandbox.policy import Layer, Limits, Policy


@dataclass(frozen=True)
class Probe:
    """What was found of one layer."""

    layer: Layer
    reason: str
    """Why it cannot be used; empty where it can."""


def probe_layers() -> tuple[Probe, ...]:
    """Every layer, by trying it. Call it before threads are started: it forks."""
    return tuple(Probe(layer, _reason(layer)) for layer in Layer)


def _reason(layer: Layer) -> str:
    if layer is Layer.LANDLOCK and landlock.version() < 1:
        return "the kernel has no Landlock (5.13 or newer, in the list of security modules)"
    if layer is Layer.SECCOMP and not seccomp.is_available():
        return "the library libseccomp is not installed"
    program = seccomp.build_filter(allow_fork=False, channel=0) if layer is Layer.SECCOMP else b""
    policy = Policy(frozenset({layer}), Limits(), readable=("/usr", "/lib"), seccomp_filter=program)
    with tempfile.TemporaryDirectory() as base:
        return _try(policy, base=base)


def _try(policy: Policy, *, base: str) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _enter_and_tell(policy, base=base, writing=writing)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as file:
        told = file.read()
    os.waitpid(child, 0)
    return "" if told == "in" else told or "the process that tried it died"


def _enter_and_tell(policy: Policy, *, base: str, writing: int) -> None:
    """Does not return. In a process without threads, which the fork into namespaces needs."""
    try:
        creator = namespaces.this_process()
        child = fork(policy, creator)
        if child == 0:
            enter(policy, creator, base=base)
            os.write(writing, b"in")
        else:
            os.waitpid(child, 0)
    except OSError as error:
        os.write(writing, str(error).encode())
    finally:
        os._exit(0)
