"""Shuts this process in, layer by layer, in the one order that works.

    namespaces     first: a process is born in them, and what it does there needs rights that the later layers take away
    rlimits
    capabilities   dropped, and no_new_privs, which Landlock and seccomp need
    Landlock
    seccomp        last: it denies the calls the others are made with
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct

from nemo_axpo.sandbox import landlock, libc, namespaces, seccomp
from nemo_axpo.sandbox.policy import Layer, Limits, Policy

_NUM_CAPABILITIES = 41
_CAPSET = {"x86_64": 126, "aarch64": 91}


def fork(policy: Policy, creator: namespaces.Creator) -> int:
    """As ``os.fork``: zero in the child, which then calls :func:`enter`. OSError where the kernel refuses."""
    return namespaces.fork(creator) if Layer.NAMESPACES in policy.layers else os.fork()


def enter(policy: Policy, creator: namespaces.Creator, *, base: str) -> str:
    """The directory the process may write in, which is where it now is. ``base``: an empty directory of its own.

    OSError where a layer fails: the process must end then.
    """
    scratch = base
    if Layer.NAMESPACES in policy.layers:
        limits = policy.limits
        namespaces.enter(creator, base=base, readable=policy.readable, scratch_bytes=limits.scratch_bytes)
        scratch = namespaces.SCRATCH
    os.chdir(scratch)
    if Layer.RLIMITS in policy.layers:
        limit_resources(policy.limits)
    _drop_capabilities()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1, what="no_new_privs")
    if Layer.LANDLOCK in policy.layers:
        landlock.restrict(readable=policy.readable, writable=(scratch, "/dev/null"))
    if Layer.SECCOMP in policy.layers:
        seccomp.install(policy.seccomp_filter)
    return scratch


def limit_resources(limits: Limits) -> None:
    """Hard limits: they can only be lowered again."""
    values = {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NPROC: limits.num_processes,
        resource.RLIMIT_NOFILE: limits.num_open_files,
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in values.items():
        resource.setrlimit(kind, (value, value))


def _drop_capabilities() -> None:
    """All of them, for good; without effect on a process that has none."""
    for number in range(_NUM_CAPABILITIES):
        try:
            libc.prctl(libc.PR_CAPBSET_DROP, number, what="PR_CAPBSET_DROP")
        except OSError:
            break  # an ordinary user outside a user namespace: there is nothing to drop
    header, nothing = struct.pack("Ii", 0x2008_0522, 0), struct.pack("6I", *[0] * 6)
    libc.syscall(_CAPSET[os.uname().machine], ctypes.c_char_p(header), ctypes.c_char_p(nothing), what="capset")
