"""When a run stops before its last step: signals and time limits, the same answer on every rank."""

from __future__ import annotations

import json
import os
import signal

from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.run_directory import RunDirectory
from nemo_axpo.stopping import StopRequest, StopVote, clear_mark, listening, mark_stopped, seconds_of


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class OtherRanks(OneProcess):
    """This rank and one that has something to say."""

    def gather(self, records, *, kind):
        return (*records, StopVote("signal SIGUSR1"))


def test_max_time_in_seconds():
    assert seconds_of("1:02:03:04") == 93_784.0
    assert seconds_of(None) is None


def test_a_step_that_would_not_fit_is_not_begun():
    clock = Clock()
    request = StopRequest(100.0, clock=clock)
    clock.now += 20  # the start
    request.begin_steps()
    clock.now += 30
    assert request.after_step(OneProcess()) is None  # at 50; another of 30 fits
    clock.now += 15
    assert request.after_step(OneProcess()) is None  # at 65; the longest was 30
    clock.now += 10
    assert request.after_step(OneProcess()) == "job.max_time"  # at 75; 105 would be too late


def test_without_a_limit_it_goes_on():
    request = StopRequest()
    assert request.after_step(OneProcess()) is None


def test_one_rank_decides_for_all():
    assert StopRequest().after_step(OtherRanks()) == "signal SIGUSR1"


def test_the_signal_is_listened_to_within_the_block_only():
    before = signal.getsignal(signal.SIGUSR1)
    with listening(StopRequest()) as request:
        assert request.after_step(OneProcess()) is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.after_step(OneProcess()) == "signal SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_mark_says_where_it_stopped(tmp_path):
    run = RunDirectory(tmp_path)
    mark_stopped(run, step=4, reason="job.max_time")
    assert json.loads(run.stopped_path.read_text()) == {"step": 4, "reason": "job.max_time"}
    clear_mark(run)
    clear_mark(run)
    assert not run.stopped_path.exists()
