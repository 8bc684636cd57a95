"""Namespaces: a process with a root directory, process table, network and user ids of its own.

An ordinary user gets them through a user namespace. Root makes them without one and then becomes a user that nobody else
is, so that neither file permissions nor process limits are waived.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from nemo_axpo.sandbox import libc

SCRATCH = "/scratch"
"""Where the process may write."""
_OTHER = libc.CLONE_NEWNS | libc.CLONE_NEWPID | libc.CLONE_NEWNET | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS
_INSIDE_ID = 1000
_FIRST_LONE_ID = 1_000_000_000
_READ_ONLY = libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | libc.MS_NOSUID
_LOCKED_FLAGS = 1024 | (1 << 21)
"""noatime and relatime, which a user namespace must not take off a mount."""


def enter(*, base: str, readable: Iterable[str], scratch_bytes: int) -> None:
    """Returns in a new process inside; this one waits for it and ends with it.

    ``base``: an empty directory of this process, where the new root is built. OSError where the kernel refuses.
    """
    lone_id = _FIRST_LONE_ID + os.getpid() if os.geteuid() == 0 else None
    _unshare(is_root=lone_id is not None)
    inside = os.fork()
    if inside:
        _end_with(inside)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL, what="PDEATHSIG")
    _build_root(base, readable=readable, scratch_bytes=scratch_bytes, owner=_INSIDE_ID if lone_id is None else lone_id)
    if lone_id is not None:
        os.setgroups([])
        os.setresgid(lone_id, lone_id, lone_id)
        os.setresuid(lone_id, lone_id, lone_id)
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL, what="PDEATHSIG")  # a change of user clears it


def _unshare(*, is_root: bool) -> None:
    if is_root:
        libc.unshare(_OTHER)
        return
    uid, gid = os.geteuid(), os.getegid()
    libc.unshare(libc.CLONE_NEWUSER | _OTHER)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{_INSIDE_ID} {uid} 1")
    _write("/proc/self/gid_map", f"{_INSIDE_ID} {gid} 1")


def _end_with(child: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.closerange(0, 1024)  # the ends of pipes: whoever reads them must see that the child is gone
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 255)


def _build_root(base: str, *, readable: Iterable[str], scratch_bytes: int, owner: int) -> None:
    """A tmpfs with ``readable`` bound into it read-only and ``SCRATCH``; the old root is gone afterwards. No /proc."""
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("tmpfs", base, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "size=1m,nr_inodes=512,mode=755")
    for path in readable:
        _bind(path, base + path)
    os.makedirs(base + SCRATCH, exist_ok=True)
    quota = f"size={scratch_bytes},nr_inodes=2048,mode=700,uid={owner},gid={owner}"
    libc.mount("tmpfs", base + SCRATCH, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, quota)
    os.chdir(base)
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
