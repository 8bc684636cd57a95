"""The few calls of the C library and the kernel that Python has no function for."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_GET_TID_ADDRESS = 1, 24, 38, 22, 40
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x0002_0000, 0x0400_0000, 0x0800_0000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000
_CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x0020_0000, 0x0100_0000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

_CLONE = {"x86_64": 56, "aarch64": 220}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_locked_libc = ctypes.PyDLL(None, use_errno=True)
"""Keeps the interpreter's lock during a call, as a fork has to."""
_locked_libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: object, what: str) -> int:
    """A system call by number (x86_64 and aarch64 share those above 424); OSError that names ``what``."""
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), what)


def prctl(option: int, *arguments: object, what: str) -> int:
    """OSError that names ``what``."""
    padded = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (*arguments, 0, 0, 0, 0)[:4]]
    return _check(_libc.prctl(ctypes.c_int(option), *padded), what)


def fork_into(namespaces: int) -> int:
    """``os.fork``, but the child is born inside new namespaces (CLONE_NEW… flags). OSError where the kernel refuses.

    ``unshare`` and ``os.fork`` do the same with a process more, whose copied page tables cost as much again. For a process
    without other threads: the C library's locks are not taken.
    """
    address = ctypes.c_ulong(0)
    flags = namespaces | signal.SIGCHLD
    try:  # where the C library keeps the id of this thread
        prctl(PR_GET_TID_ADDRESS, ctypes.byref(address), what="PR_GET_TID_ADDRESS")
        flags |= _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    except OSError:
        pass
    last = (address, ctypes.c_ulong(0)) if os.uname().machine == "x86_64" else (ctypes.c_ulong(0), address)
    ctypes.pythonapi.PyOS_BeforeFork()
    child = _locked_libc.syscall(
        ctypes.c_long(_CLONE[os.uname().machine]), ctypes.c_ulong(flags), ctypes.c_ulong(0), ctypes.c_ulong(0), *last
    )
    if child == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    number = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if child < 0:
        raise OSError(number, f"clone: {os.strerror(number)}")
    return child


def madvise(start: int, num_bytes: int, advice: int) -> None:
    """The kernel may refuse: it is advice."""
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(num_bytes), ctypes.c_int(advice))


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """OSError that names both ends."""
    encoded = [value.encode() if value is not None else None for value in (source, target, kind)]
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), data.encode() or None), f"mount {source} on {target}")


def detach_mount(target: str) -> None:
    """Takes a mount out of sight; it is gone when its last user is."""
    _check(_libc.umount2(target.encode(), ctypes.c_int(MNT_DETACH)), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """Swaps the root directory. The C library has no wrapper; the call's number differs between machines."""
    number = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
    syscall(number, new.encode(), old.encode(), what="pivot_root")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
