"""Landlock: which files a process may touch, and that it connects to nothing, for itself and all it starts.

Source: the kernel's Documentation/userspace-api/landlock.rst. Rights that the running kernel does not know are left out.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from nemo_axpo.sandbox import libc

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1, 2, 4, 8, 1 << 14, 1 << 15
_NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_ALL_FILE_RIGHTS = 16
_TCP_RIGHTS = 0b11
"""Bind and connect, from version 4 on."""
_SCOPES = 0b11
"""Abstract unix sockets and signals to processes outside, from version 6 on."""
READ = READ_FILE | READ_DIR | EXECUTE


def version() -> int:
    """Of the kernel's interface; 0 where there is none."""
    try:
        return libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1), what="landlock version")
    except OSError:
        return 0


def restrict(*, readable: Iterable[str], writable: Iterable[str]) -> None:
    """Only these files and directories from here on; no TCP, no signals outside. Needs no_new_privs."""
    abi = version()
    rights = (1 << _NUM_FILE_RIGHTS.get(abi, _ALL_FILE_RIGHTS)) - 1
    attributes = struct.pack("QQQ", rights, _TCP_RIGHTS if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = libc.syscall(
        _CREATE_RULESET, attributes[:size], ctypes.c_size_t(size), ctypes.c_uint32(0), what="landlock_create_ruleset"
    )
    for path in readable:
        _allow(ruleset, path, rights=READ & rights)
    for path in writable:
        _allow(ruleset, path, rights=rights & ~(EXECUTE | IOCTL_DEV))
    libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0), what="landlock_restrict_self")
    os.close(ruleset)


def _allow(ruleset: int, path: str, *, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
    rule = struct.pack("=Qi", rights, parent)
    libc.syscall(
        _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0), what=f"landlock_add_rule {path}"
    )
    os.close(parent)
