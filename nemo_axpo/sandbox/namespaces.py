"""Namespaces: a process with a root directory, process table, network and user ids of its own.

An ordinary user gets them through a user namespace, and so does the root of a container that is none outside. Root makes them
without one and then becomes a user that nobody else is, so that neither file permissions nor process limits are waived.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from nemo_axpo.sandbox import libc

SCRATCH = "/scratch"
"""Where the process may write."""
_OTHER = libc.CLONE_NEWNS | libc.CLONE_NEWPID | libc.CLONE_NEWNET | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS
_INSIDE_ID = 1000
_FIRST_LONE_ID = 1_000_000_000
_CAP_SYS_ADMIN = 21
_READ_ONLY = libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | libc.MS_NOSUID
_LOCKED_FLAGS = 1024 | (1 << 21)
"""noatime and relatime, which a user namespace must not take off a mount."""


@dataclass(frozen=True)
class Creator:
    """The process that forks others into namespaces, as these have to know it."""

    uid: int
    gid: int
    is_root: bool
    """Root that can become any user; anyone else, root of a user namespace too, gets a user namespace."""


def this_process() -> Creator:
    """As the creator of others."""
    return Creator(os.geteuid(), os.getegid(), os.geteuid() == 0 and _can_administer() and _has_all_ids())


def fork(creator: Creator) -> int:
    """As ``os.fork``; the child is alone in its namespaces and has to call :func:`enter`. OSError where the kernel refuses."""
    return libc.fork_into(_OTHER if creator.is_root else _OTHER | libc.CLONE_NEWUSER)


def enter(creator: Creator, *, base: str, readable: Iterable[str], scratch_bytes: int) -> None:
    """Takes the outside away from the child of :func:`fork`.

    ``base``: an empty directory of this process, where the new root is built. OSError where the kernel refuses.
    """
    if creator.is_root:
        lone_id = _FIRST_LONE_ID + int(os.readlink("/proc/self"))  # the number outside: unique among all that run
        _build_root(base, readable=readable, scratch_bytes=scratch_bytes, owner=lone_id)
        os.setgroups([])
        os.setresgid(lone_id, lone_id, lone_id)
        os.setresuid(lone_id, lone_id, lone_id)
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL, what="PDEATHSIG")  # a change of user clears it
        return
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{_INSIDE_ID} {creator.uid} 1")
    _write("/proc/self/gid_map", f"{_INSIDE_ID} {creator.gid} 1")
    _build_root(base, readable=readable, scratch_bytes=scratch_bytes, owner=_INSIDE_ID)


def _can_administer() -> bool:
    with open("/proc/self/status", encoding="ascii") as file:
        (effective,) = (line.split()[1] for line in file if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


def _has_all_ids() -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [list(map(int, line.split())) for line in file]
    return any(first <= _FIRST_LONE_ID and first + length > _FIRST_LONE_ID + 2**22 for first, _, length in ranges)


def _build_root(base: str, *, readable: Iterable[str], scratch_bytes: int, owner: int) -> None:
    """A tmpfs with ``readable`` bound into it read-only and ``SCRATCH``; the old root is gone afterwards. No /proc."""
    os.umask(0o022)  # the user inside is not its owner
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("tmpfs", base, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "size=1m,nr_inodes=512,mode=755")
    os.chdir(base)  # from here on by this mount: who removes the directory outside takes it off its path
    for path in readable:
        _bind(path, f".{path}")
    os.makedirs(f".{SCRATCH}", exist_ok=True)
    quota = f"size={scratch_bytes},nr_inodes=2048,mode=700,uid={owner},gid={owner}"
    libc.mount("tmpfs", f".{SCRATCH}", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, quota)
    libc.pivot_root(".", ".")
    libc.detach_mount(".")
    libc.mount(None, "/", None, libc.MS_REMOUNT | libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV)
    os.chdir(SCRATCH)


def _bind(source: str, target: str) -> None:
    if not os.path.exists(source):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
    libc.mount(source, target, None, libc.MS_BIND | libc.MS_REC)
    no_devices = 0 if source.startswith("/dev/") else libc.MS_NODEV
    try:
        libc.mount(None, target, None, _READ_ONLY | no_devices)
    except PermissionError:
        libc.mount(None, target, None, _READ_ONLY | no_devices | _LOCKED_FLAGS)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
