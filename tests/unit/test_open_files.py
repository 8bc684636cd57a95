"""The limit of open files, raised by what samples and judges."""

from __future__ import annotations

import resource

import pytest

from nemo_axpo import cli
from nemo_axpo.open_files import WANTED, allow_open_files


@pytest.fixture
def hard():
    """The limit that only the system raises; the process's own is small meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def soft_limit():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_it_is_raised_as_far_as_wanted_and_allowed_and_never_lowered(hard):
    assert allow_open_files(800) == soft_limit() == 800
    assert allow_open_files(600) == soft_limit() == 800
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
    if hard != resource.RLIM_INFINITY:
        assert allow_open_files(hard + 1) == soft_limit() == hard


def test_every_command_runs_with_it(hard, monkeypatch):
    found = []
    monkeypatch.setattr(cli, "parse_arguments", lambda _: cli.argparse.Namespace(run=lambda _: found.append(soft_limit())))
    assert cli.main([]) == 0
    assert found == [WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)]
