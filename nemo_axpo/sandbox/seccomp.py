"""Seccomp: system calls that code in the sandbox has no use for fail. The filter is made once, outside, by libseccomp."""

from __future__ import annotations

import ctypes
import errno
import tempfile

from nemo_axpo.sandbox import libc

_NETWORK = """
    socket socketpair connect bind listen accept accept4 sendto sendmsg sendmmsg recvfrom recvmmsg
"""
_OTHER_PROCESSES = """
    ptrace process_vm_readv process_vm_writev pidfd_open pidfd_getfd pidfd_send_signal kcmp setpriority
    sched_setscheduler sched_setattr sched_setparam ioprio_set migrate_pages move_pages process_madvise
"""
_KERNEL = """
    perf_event_open bpf userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key init_module
    finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl settimeofday clock_settime
    adjtimex clock_adjtime iopl ioperm personality syslog vhangup lookup_dcookie nfsservctl fanotify_init inotify_init
    inotify_init1 modify_ldt seccomp
"""
_FILE_SYSTEMS = """
    mount umount2 move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr pivot_root chroot unshare setns
    sethostname setdomainname name_to_handle_at open_by_handle_at mknod mknodat chown fchown lchown fchownat
"""
_IDENTITY = "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset"
_SHARED_MEMORY = "shmget shmat shmctl msgget msgsnd msgrcv semget semop mq_open memfd_create memfd_secret mbind set_mempolicy"
DENIED = tuple((_NETWORK + _OTHER_PROCESSES + _KERNEL + _FILE_SYSTEMS + _IDENTITY + _SHARED_MEMORY).split())
_PROGRAMS = ("vfork", "execve", "execveat")
_TIOCSTI = 0x5412
"""ioctl that types into the terminal."""


def is_available() -> bool:
    """Whether libseccomp is installed."""
    try:
        import pyseccomp  # noqa: F401 - finding out is the point
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def build_filter(*, allow_fork: bool, channel: int) -> bytes:
    """A BPF program. Threads can be started, programs cannot, and processes only with ``allow_fork``.

    ``channel``: the one descriptor that messages (and descriptors sent with them) may be received from.
    """
    import pyseccomp as lib

    program = lib.SyscallFilter(lib.ALLOW)
    for name in DENIED + _PROGRAMS + (() if allow_fork else ("fork",)):
        _deny(lib, program, name)
    # ENOSYS: glibc then starts threads by clone, whose flags a filter can read.
    program.add_rule(lib.ERRNO(errno.ENOSYS), "clone3")
    for flag in (libc.CLONE_NEWUSER, libc.CLONE_NEWNS, libc.CLONE_NEWPID, libc.CLONE_NEWNET, libc.CLONE_NEWIPC):
        program.add_rule(lib.ERRNO(errno.EPERM), "clone", lib.Arg(0, lib.MASKED_EQ, flag, flag))
    program.add_rule(lib.ERRNO(errno.EPERM), "recvmsg", lib.Arg(0, lib.NE, channel))
    if not allow_fork:
        thread = 0x0001_0000
        program.add_rule(lib.ERRNO(errno.EPERM), "clone", lib.Arg(0, lib.MASKED_EQ, thread, 0))
    program.add_rule(lib.ERRNO(errno.EPERM), "ioctl", lib.Arg(1, lib.MASKED_EQ, 0xFFFF_FFFF, _TIOCSTI))
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


def _deny(lib: object, program: object, name: str) -> None:
    try:
        program.add_rule(lib.ERRNO(errno.EPERM), name)
    except (OSError, RuntimeError, ValueError):
        pass  # a call that this machine does not have


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install(program: bytes) -> None:
    """For this process and all it starts, for good; needs no_new_privs."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = _Program(len(program) // 8, ctypes.addressof(instructions))
    libc.prctl(libc.PR_SET_SECCOMP, 2, ctypes.byref(header), what="seccomp")
