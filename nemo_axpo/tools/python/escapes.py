"""Attempts to break out of an interpreter, each harmless where it succeeds, even for root: it stops at proof and cleans up.

A cell proves a break-out by printing ``ESCAPED``, or the stage sees it from outside (a file written, a process killed). Names
in braces, as ``{secret!r}``, are what there is to reach for outside; :meth:`Attempt.cell` fills them in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

PROOF = "ESCAPED"
_GOALS = (
    "secret directory target victim_file shm tmp tag env_secret env_secret_reversed victim port udp_port abstract socket_file"
)
_GOAL = re.compile(r"\{(" + "|".join(sorted(_GOALS.split(), key=len, reverse=True)) + r")(!r)?\}")


@dataclass(frozen=True)
class Attempt:
    """One cell."""

    name: str
    kind: str
    """files, processes, network, resources, kernel or channel."""
    code: str

    def cell(self, goals: Mapping[str, object]) -> str:
        """The code with what is outside filled in; KeyError for a goal that is not there."""
        return _GOAL.sub(lambda match: f"{goals[match[1]]!r}" if match[2] else str(goals[match[1]]), self.code)


_CTYPES = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True)\n"


def _proves(expression: str, *, before: str = "") -> str:
    """Prints the proof where the expression is true and nothing is raised."""
    return f"{before}\nif {expression}: print('{PROOF}')"


def _files() -> list[tuple[str, str]]:
    secret = "open({secret!r}).read()"
    return [
        ("read a file of the user", _proves(secret)),
        ("read it by a low-level call", _proves("os.read(os.open({secret!r}, os.O_RDONLY), 9)", before="import os")),
        ("read it through ..", _proves("open('../../../../..' + {secret!r}).read()")),
        ("read it through a symbolic link", _proves("open('l').read()", before="import os; os.symlink({secret!r}, 'l')")),
        ("read it through a hard link", _proves("open('h').read()", before="import os; os.link({secret!r}, 'h')")),
        ("read it by ctypes", _proves("libc.open({secret!r}.encode(), 0) >= 0", before=_CTYPES)),
        ("map it into memory", _proves("mmap.mmap(os.open({secret!r}, 0), 0, prot=1)[:1]", before="import mmap, os")),
        ("list the directory of the user", _proves("os.listdir({directory!r})", before="import os")),
        ("read the list of users", _proves("open('/etc/passwd').read()")),
        ("read the passwords", _proves("open('/etc/shadow').read()")),
        ("write beside the user's files", "open({target!r}, 'w').write('x')"),
        ("write it by renaming", "import os; open('n', 'w').write('x'); os.rename('n', {target!r})"),
        ("overwrite a file of the user", "open({victim_file!r}, 'w').write('overwritten')"),
        ("remove a file of the user", "import os; os.remove({victim_file!r})"),
        ("change the rights of a file", "import os; os.chmod({victim_file!r}, 0o777)"),
        ("truncate a file by ctypes", _CTYPES + "libc.truncate({victim_file!r}.encode(), ctypes.c_long(0))"),
        ("leave a file in shared memory", _proves("open({shm!r}, 'w').write('x')")),
        ("leave a file in /tmp", _proves("open({tmp!r}, 'w').write('x')")),
        ("plant code in a library", _proves("open(p, 'w').close() is None and os.remove(p) is None", before="import numpy, os; p = os.path.dirname(numpy.__file__) + '/../planted_{tag}.pth'")),
    ]  # fmt: skip


def _processes() -> list[tuple[str, str]]:
    return [
        ("read the environment of process 1", _proves("open('/proc/1/environ', 'rb').read()")),
        ("read its own starting environment", _proves("open('/proc/self/environ', 'rb').read()")),
        ("find a secret in its environment", _proves("'{env_secret}' in str(dict(os.environ))", before="import os")),
        ("find a secret in inherited memory", _proves("any(needle in o.values() for o in gc.get_objects() if type(o) is dict and o is not globals())", before="import gc; needle = {env_secret_reversed!r}[::-1]")),
        ("see other processes", _proves("str({victim}) in os.listdir('/proc')", before="import os")),
        ("leave through /proc/self/root", _proves("open('/proc/self/root/etc/passwd').read()")),
        ("read another process's memory", _proves("open('/proc/{victim}/mem', 'rb')")),
        ("read it by process_vm_readv", _proves("libc.syscall(310, {victim}, 0, 0, 0, 0, 0) == 0", before=_CTYPES)),
        ("trace another process", _proves("libc.ptrace(16, {victim}, 0, 0) == 0", before=_CTYPES)),
        ("kill another process", "import os, signal; os.kill({victim}, signal.SIGKILL)"),
        ("kill it by ctypes", _CTYPES + "libc.kill({victim}, 9)"),
        ("kill it through a pidfd", "import signal; import os\nsignal.pidfd_send_signal(os.pidfd_open({victim}), 9)"),
        ("stop the process that forked it", _proves("os.getppid() > 1 and os.kill(os.getppid(), 0) is None", before="import os")),
        ("change its priority", _proves("os.setpriority(os.PRIO_PROCESS, {victim}, 5) is None", before="import os")),
        ("use an inherited descriptor", _proves("[n for n in range(4, 200) if ok(n)]", before="import os\ndef ok(n):\n    try: return os.fstat(n) is not None\n    except OSError: return False")),
        ("start a program", _proves("subprocess.run(['/bin/true']).returncode == 0", before="import subprocess")),
        ("start one by os.posix_spawn", _proves("os.posix_spawn('/bin/true', ['true'], dict())", before="import os")),
        ("become another program", "import os; os.execv('/bin/sh', ['sh', '-c', 'echo x > {target}'])"),
        ("run a file made in memory", _proves("os.memfd_create('x') >= 0", before="import os")),
        ("leave a daemon", "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(0.7)\n        open({target!r}, 'w').write('x')\n        print('ESCAPED')\n    os._exit(0)\ntime.sleep(0.3)"),
        ("leave one by ctypes", _CTYPES + "import time\nif libc.fork() == 0:\n    time.sleep(0.7); open({target!r}, 'w').write('x'); os._exit(0)\ntime.sleep(0.3)"),
        ("leave a mark for the next rollout", "import builtins, json; builtins.mark_{tag} = 1; json.mark_{tag} = 1"),
    ]  # fmt: skip


def _network() -> list[tuple[str, str]]:
    connect = "import socket; s = socket.socket(); s.settimeout(1); s.connect(('127.0.0.1', {port}))"
    return [
        ("connect to a local server", _proves("s", before=connect)),
        ("connect by ctypes", _proves("libc.socket(2, 1, 0) >= 0 and libc.connect(libc.socket(2, 1, 0), ctypes.create_string_buffer(b'\\x02\\x00' + ({port}).to_bytes(2, 'big') + bytes([127, 0, 0, 1]) + bytes(8), 16), 16) == 0", before=_CTYPES)),
        ("send a datagram", "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp_port}))"),
        ("connect to an abstract socket", _proves("s.connect(chr(0) + {abstract!r}) is None", before="import socket; s = socket.socket(socket.AF_UNIX)")),
        ("connect to a socket file", _proves("s.connect({socket_file!r}) is None", before="import socket; s = socket.socket(socket.AF_UNIX)")),
        ("offer a service", _proves("s.bind(('0.0.0.0', 0)) is None and s.listen() is None", before="import socket; s = socket.socket()")),
        ("open a raw socket", _proves("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", before="import socket")),
        ("fetch a page", _proves("urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=1)", before="import urllib.request")),
        ("open a netlink socket", _proves("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)", before="import socket")),
    ]  # fmt: skip


def _resources() -> list[tuple[str, str]]:
    fork = "import os, time\nn = 0\ntry:\n    for _ in range(100):\n        if {fork} == 0: time.sleep(3); os._exit(0)\n        n += 1\nexcept OSError: pass\n"
    return [
        ("take 3 GiB", _proves("len(b) == 3 << 30", before="b = bytearray(3 << 30)")),
        ("take them in small pieces", _proves("len(b) == 192", before="b = []\nfor _ in range(192): b.append(bytearray(16 << 20))")),
        ("take them by numpy", _proves("a.size", before="import numpy as np; a = np.ones(3 << 27)")),
        ("start 100 processes", fork.replace("{fork}", "os.fork()") + "if n == 100: print('ESCAPED')"),
        ("start 100 by ctypes", _CTYPES + "import time\nn = 0\nfor _ in range(100):\n    p = libc.fork()\n    if p == 0: time.sleep(3); os._exit(0)\n    n += p > 0\nif n == 100: print('ESCAPED')"),
        ("start 1000 threads", _proves("len(t) == 1000", before="import threading, time\nt = []\nfor _ in range(1000):\n    x = threading.Thread(target=time.sleep, args=(2,), daemon=True); x.start(); t.append(x)")),
        ("write a file of 100 MiB", _proves("os.path.getsize('big') == 100 << 20", before="import os\nwith open('big', 'wb') as f:\n    for _ in range(100): f.write(bytes(1 << 20))")),
        ("write 100 MiB in many files", _proves("True", before="for n in range(100): open(f'f{n}', 'wb').write(bytes(1 << 20))")),
        ("make 3000 files", _proves("True", before="for n in range(3000): open(f'e{n}', 'w').close()")),
        ("open 2000 files", _proves("len(f) == 2000", before="f = [open('/dev/null') for _ in range(2000)]")),
        ("raise its own limits", _proves("resource.setrlimit(resource.RLIMIT_AS, (-1, -1)) is None and resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)) is None", before="import resource")),
        ("print 200 MB", "for _ in range(200): print('x' * 10**6)"),
        ("return a value of 50 MB", "'x' * (50 * 10**6)"),
        ("never end", "while True: pass"),
        ("never end, and hold the lock", "sum(iter(int, 1))"),
        ("never end in C", "pow(3, 10**9)"),
        ("never end, and refuse to be stopped", "import signal\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True:\n    try:\n        while True: pass\n    except BaseException: pass"),
        ("crash", "import ctypes; ctypes.string_at(0)"),
        ("exhaust the stack", "import sys; sys.setrecursionlimit(10**9)\ndef f(): return f()\nf()"),
    ]  # fmt: skip


def _kernel() -> list[tuple[str, str]]:
    return [
        ("become root", _proves("os.setuid(0) is None", before="import os")),
        ("make a user namespace", _proves("libc.unshare(0x10000000) == 0", before=_CTYPES)),
        ("mount a file system", _proves("libc.mount(b'tmpfs', b'm', b'tmpfs', 0, None) == 0 and libc.umount2(b'm', 2) == 0", before=_CTYPES + "os.mkdir('m')")),
        ("change the root directory", _proves("os.chroot('.') is None", before="import os")),
        ("make a device", _proves("os.mknod('d', 0o20666, os.makedev(1, 3)) is None and os.remove('d') is None", before="import os")),
        ("load a BPF program", _proves("libc.syscall(321, 5, buf, 72) >= 0", before=_CTYPES + "buf = ctypes.create_string_buffer(bytes([1, 0, 0, 0, 2, 0, 0, 0]) + bytes(64))")),
        ("count events of the machine", _proves("libc.syscall(298, 0, -1, 0, -1, 0) >= 0 or ctypes.get_errno() not in (1, 13)", before=_CTYPES)),
        ("make an io_uring", _proves("libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0", before=_CTYPES)),
        ("use the key ring", _proves("libc.syscall(250, 0, -3, 1) >= 0", before=_CTYPES)),
        ("see the kernel's messages", _proves("libc.klogctl(3, ctypes.create_string_buffer(99), 99) > 0", before=_CTYPES)),
        ("set the clock", _proves("libc.syscall(227, 0, now) == 0 or ctypes.get_errno() != 1", before=_CTYPES + "import time; now = (ctypes.c_long * 2)(int(time.time()), 0)")),
        ("take its filter off", _proves("libc.prctl(22, 0, 0, 0, 0) == 0", before=_CTYPES)),
    ]  # fmt: skip


def _channel() -> list[tuple[str, str]]:
    frame = "import json, os, struct\ndef frame(d):\n    b = json.dumps(d).encode(); os.write(3, struct.pack('<I', len(b)) + b)\n"
    return [
        ("write garbage", "import os; os.write(3, b'garbage' * 9)"),
        ("announce a message of 4 GB", "import os; os.write(3, b'\\xff' * 8)"),
        ("close it", "import os; os.close(3)"),
        ("send a pickle that runs code", "import os, pickle, struct\nclass P:\n    def __reduce__(self): return (open, ({target!r}, 'w'))\nb = pickle.dumps(P()); os.write(3, struct.pack('<I', len(b)) + b)"),
        ("forge the figure of a reply", frame + "import base64\nfor n in range(9): frame(dict(id=n, output='', num_dropped=0, value='', error='', figures=[base64.b64encode(b'GIF89a').decode()]))"),
        ("answer for the next cells", frame + "for n in range(99): frame(dict(id=n, output='forged', num_dropped=0, value='', error='', figures=[]))"),
        ("fields of other types", frame + "for n in range(9): frame(dict(id=n, output=7, num_dropped=None, value=[], error='', figures='x'))"),
    ]  # fmt: skip


_KINDS = {
    "files": _files,
    "processes": _processes,
    "network": _network,
    "resources": _resources,
    "kernel": _kernel,
    "channel": _channel,
}
ATTEMPTS = tuple(Attempt(name, kind, code) for kind, make in _KINDS.items() for name, code in make())
