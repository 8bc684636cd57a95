"""Every attempt to break out is contained by all layers together, and the stage sees those that a missing layer lets out."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from nemo_axpo.sandbox import seccomp
from nemo_axpo.sandbox.policy import Layer, Limits, Policy
from nemo_axpo.sandbox.probe import probe_layers
from nemo_axpo.tools.python.escape_stage import attempt_all, open_stage
from nemo_axpo.tools.python.escapes import ATTEMPTS
from nemo_axpo.tools.python.fork_server import CHANNEL
from nemo_axpo.tools.python.server_process import readable_paths

MISSING = [f"{probe.layer}: {probe.reason}" for probe in probe_layers() if probe.reason]
needs_all_layers = pytest.mark.skipif(bool(MISSING), reason=f"this kernel lacks {'; '.join(MISSING)}")
REACHED_WITHOUT_WALLS = {
    "read a file of the user",
    "write beside the user's files",
    "overwrite a file of the user",
    "change the rights of a file",
    "see other processes",
    "kill another process",
    "start a program",
    "leave a daemon",
    "connect to a local server",
    "send a datagram",
    "connect to a socket file",
    "write 100 MiB in many files",
    "open 2000 files",
    "make an io_uring",
}
"""By a process of an ordinary user as well; of each kind that the stage judges in a way of its own."""


def policy(*layers: Layer) -> Policy:
    program = seccomp.build_filter(allow_fork=False, channel=CHANNEL) if Layer.SECCOMP in layers else b""
    return Policy(frozenset(layers), Limits(), readable_paths(), program)


def outcomes(attempts, *layers):
    with open_stage() as (stage, server):
        return asyncio.run(attempt_all(attempts, policy=policy(*layers), stage=stage, server=server))


@needs_all_layers
@pytest.mark.parametrize("kind", sorted({attempt.kind for attempt in ATTEMPTS}))
def test_nothing_gets_out(kind):
    attempts = [attempt for attempt in ATTEMPTS if attempt.kind == kind]
    assert {result.name: result.breach for result in outcomes(attempts, *Layer) if result.breach} == {}


def test_there_are_attempts_of_every_kind():
    assert min(Counter(attempt.kind for attempt in ATTEMPTS).values()) >= 7
    assert len({attempt.name for attempt in ATTEMPTS}) == len(ATTEMPTS) >= 80


def test_the_stage_sees_what_gets_out_without_walls():
    attempts = [attempt for attempt in ATTEMPTS if attempt.name in REACHED_WITHOUT_WALLS]
    assert len(attempts) == len(REACHED_WITHOUT_WALLS)
    assert {result.name for result in outcomes(attempts) if result.breach} == REACHED_WITHOUT_WALLS


@pytest.mark.slow
@needs_all_layers
def test_what_gets_out_where_namespaces_are_refused():
    results = outcomes(ATTEMPTS, Layer.LANDLOCK, Layer.SECCOMP, Layer.RLIMITS)
    assert {result.name for result in results if result.breach} == {
        "change the rights of a file",
        "write 100 MiB in many files",
        "make 3000 files",
    }
