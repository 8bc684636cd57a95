"""The warm process that interpreters are forked from: imports done once, no environment, no threads, no secrets.

A separate process from the start, so that a fork holds nothing of the trainer. It reads requests from a socket it inherits;
each brings the one end of a session's channel, and is answered by a fork that shuts itself in and serves that channel.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from typing import Any

from nemo_axpo.sandbox import landlock, libc, namespaces
from nemo_axpo.sandbox.enter import enter, fork
from nemo_axpo.sandbox.policy import Layer, Limits, Policy
from nemo_axpo.tools.python import frames, heap

CHANNEL = 3
"""File descriptor of the channel inside an interpreter."""
_MAX_REQUEST_BYTES = 1 << 16


def serve(control: int) -> None:
    """Until the other end closes; then nothing is left, neither interpreters nor files. Says first that it is ready."""
    _warm_up()
    requests = socket.socket(fileno=control)
    requests.send(json.dumps({"ready": os.getpid()}).encode())
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 1)
        if not message:
            shutil.rmtree(os.environ["MPLCONFIGDIR"], ignore_errors=True)
            return
        _fork_interpreter(json.loads(message), channel=descriptors[0])
        os.close(descriptors[0])


def _fork_interpreter(request: dict[str, Any], *, channel: int) -> None:
    policy, creator = read_policy(request), namespaces.this_process()
    try:
        child = fork(policy, creator)
    except OSError as error:  # of this interpreter alone: the others go on
        with contextlib.suppress(OSError):
            frames.send(channel, {"failed": f"{type(error).__name__}: {error}"})
        return
    if child == 0:
        _become_interpreter(request, policy, creator=creator, channel=channel)


def _warm_up() -> None:
    """Everything a cell is likely to import, once, with its lazy parts."""
    heap.keep_together()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy  # noqa: F401
    import PIL.ImageDraw
    import PIL.ImageEnhance
    import PIL.ImageFilter
    import PIL.ImageOps
    import PIL.ImageStat
    import PIL.PngImagePlugin  # noqa: F401
    import scipy.linalg
    import scipy.ndimage
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import sympy

    from nemo_axpo.tools.python import interpreter  # noqa: F401

    plt.plot([0, 1])
    plt.savefig(io.BytesIO(), format="png")  # loads the fonts
    plt.close("all")
    sympy.sympify("x + 1")
    gc.collect()
    gc.freeze()
    heap.use_huge_pages()


def _reap(*_: object) -> None:
    """What an interpreter started ends with it, also without namespaces; its number is its group's until it is waited for."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(ended.si_pid, signal.SIGKILL)
            os.waitpid(ended.si_pid, 0)


def _become_interpreter(request: dict[str, Any], policy: Policy, *, creator: namespaces.Creator, channel: int) -> None:
    """Does not return."""
    status = 1
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL, what="PDEATHSIG")
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended forks leave nothing behind
        _keep_only(channel)
        scratch = enter(policy, creator, base=request["base"])
        _set_environment(scratch)
        _serve_cells(scratch, policy=policy, max_chars=request["max_chars"])
        status = 0
    except EOFError:
        status = 0
    except BaseException as error:  # noqa: BLE001 - the session must hear of it, whatever it is
        with contextlib.suppress(OSError):
            frames.send(CHANNEL, {"failed": f"{type(error).__name__}: {error}"[:500]})
    finally:
        os._exit(status)


def read_policy(request: dict[str, Any]) -> Policy:
    """The policy a session asked for."""
    layers = frozenset(Layer(name) for name in request["layers"])
    program = frames.unpack_bytes(request["seccomp_filter"])
    return Policy(layers, Limits(**request["limits"]), tuple(request["readable"]), program)


def _keep_only(channel: int) -> None:
    """Standard streams lead nowhere, the channel is descriptor 3, everything else is closed."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    if channel != CHANNEL:
        os.dup2(channel, CHANNEL)
    os.closerange(CHANNEL + 1, 4096)


def _set_environment(scratch: str) -> None:
    os.environ.clear()
    os.environ.update(
        HOME=scratch, TMPDIR=scratch, PATH="/usr/bin:/bin", LANG="C.UTF-8", MPLBACKEND="Agg", MPLCONFIGDIR=scratch
    )
    tempfile.tempdir = scratch
    sys.argv = [""]
    sys.path.insert(0, scratch)


def _serve_cells(scratch: str, *, policy: Policy, max_chars: int) -> None:
    from nemo_axpo.tools.python.interpreter import Interpreter, reseed

    reseed()
    interpreter = Interpreter(max_chars=max_chars)
    frames.send(CHANNEL, {"ready": True})
    while True:
        message = frames.receive(CHANNEL)
        if "fork" in message:
            scratch = _fork(scratch, name=message["fork"], policy=policy)
            continue
        shown = interpreter.run(message["code"], images=message["images"])
        reply = {**vars(shown), "figures": [frames.pack_bytes(figure) for figure in shown.figures]}
        frames.send(CHANNEL, {"id": message["id"], **reply})


def _fork(scratch: str, *, name: str, policy: Policy) -> str:
    """Splits the interpreter in two; the new one serves the channel that comes with the next byte.

    It has a copy of the files in a directory of its own, and may neither see nor signal its siblings. Returns the
    directory of whoever returns.
    """
    channel = socket.socket(fileno=CHANNEL)
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    channel.detach()
    try:
        is_source = os.fork() != 0
    except OSError:  # a cell took all the processes it may have: whoever asked sees the new channel end
        is_source = True
    if is_source:
        os.close(descriptors[0])
        return scratch
    os.dup2(descriptors[0], CHANNEL)
    os.close(descriptors[0])
    own = f"{scratch}/{name}"
    shutil.copytree(scratch, own, ignore=shutil.ignore_patterns("fork_*"))
    os.chdir(own)
    if Layer.LANDLOCK in policy.layers:
        landlock.restrict(readable=policy.readable, writable=(own, "/dev/null"))
    _set_environment(own)
    frames.send(CHANNEL, {"ready": True})
    return own
