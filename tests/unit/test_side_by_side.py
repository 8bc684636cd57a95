"""Several runs at once, with a small program in place of training: what is started, shown, skipped and stopped."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from rich.console import Console

from nemo_axpo import side_by_side
from nemo_axpo.config.load import load_config, save_config
from nemo_axpo.errors import RunDirectoryError, RunFailedError
from nemo_axpo.progress import ProgressDisplay
from nemo_axpo.run_directory import open_run_directory
from nemo_axpo.side_by_side import PlannedRun, _end_of, run_side_by_side, train_command

TRAINER = """
import json, os, pathlib, signal, sys, time
assert sys.argv[1:3] == ["--resume", "--output-dir"]
out, settings = pathlib.Path(sys.argv[3]), sys.argv[4:]
if out.name.startswith("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(out / "hf").mkdir(parents=True, exist_ok=True)
(out.parent / f"{out.name}.pid").write_text(str(os.getpid()))
(out.parent / f"{out.name}.seen").write_text(json.dumps([settings, os.environ["OMP_NUM_THREADS"]]))
print("started", flush=True)
def log(step):
    with open(out / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "update/loss": step / 10, "at": time.monotonic()}) + "\\n")
log(1)
other = out.name.partition("_after_")[2]
while other and not (out.parent / other / "metrics.jsonl").exists():
    time.sleep(0.01)
if out.name.startswith("fails"):
    print("\\n".join(f"line {i}" for i in range(40)), "the reason", sep="\\n", flush=True)
    sys.exit(3)
if out.name.startswith("dies"):
    os.kill(os.getpid(), signal.SIGKILL)
if out.name.startswith(("hangs", "stubborn")):
    time.sleep(120)
time.sleep(0.1)
log(2)
(out / "hf" / "config.json").write_text("{}")
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(side_by_side, "POLL_S", 0.02)
    monkeypatch.setattr(side_by_side, "STOP_TIMEOUT_S", 0.5)


@pytest.fixture(name="command")
def command_fixture(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(TRAINER))
    return (sys.executable, str(script))


def planned(tmp_path, *names):
    return [PlannedRun(f"run {name}", tmp_path / name, ["seed=4"], num_steps=2) for name in names]


def go(runs, command, *, max_parallel=2):
    out = io.StringIO()
    with ProgressDisplay(console=Console(file=out, width=200), interval_s=0.0) as progress:
        run_side_by_side(runs, max_parallel=max_parallel, progress=progress, command=command)
    return out.getvalue()


def times(run):
    return [row["at"] for row in run.rows()]


def is_alive(run):
    try:
        os.kill(int(run.output_dir.with_suffix(".pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def when_started(runs, action):
    """Calls ``action`` in a thread as soon as every run has logged a step."""

    def wait():
        deadline = time.monotonic() + 60
        while not all(run.rows() for run in runs) and time.monotonic() < deadline:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def interrupt(number=signal.SIGINT):
    os.kill(os.getpid(), number)


# ------------------------------------------------------------------------------------------------------------- running
def test_all_runs_are_started_shown_and_finished(tmp_path, command):
    runs = planned(tmp_path, "a", "b")
    shown = go(runs, command)
    for run in runs:
        assert run.is_finished and run.log_path.read_text() == "started\n"
        assert f"{run.name}: step 2/2" in shown and "loss 0.20" in shown
        settings, threads = json.loads((tmp_path / f"{run.output_dir.name}.seen").read_text())
        assert settings == ["seed=4"] and threads == "1"


def test_never_more_at_once_than_allowed_and_in_order(tmp_path, command):
    a, b, c = runs = planned(tmp_path, "a_after_b", "b", "c")
    go(runs, command, max_parallel=2)
    assert max(times(a)[0], times(b)[0]) < times(a)[1] and min(times(a)[1], times(b)[1]) < times(c)[0]


def test_one_at_a_time(tmp_path, command):
    a, b = runs = planned(tmp_path, "a", "b")
    go(runs, command, max_parallel=1)
    assert times(a)[1] < times(b)[0]


def test_what_an_earlier_start_finished_is_skipped(tmp_path, command):
    done, rest = runs = planned(tmp_path, "done", "rest")
    go([done], command)
    save_config(load_config(["seed=4"]), done.output_dir / "config.yaml")
    before = done.rows()
    shown = go(runs, command)
    assert done.rows() == before and rest.is_finished and "run done" not in shown


def test_a_finished_shorter_run_is_continued(tmp_path, command):
    (run,) = planned(tmp_path, "a")
    go([run], command)
    assert run.is_finished
    assert not PlannedRun("longer", run.output_dir, run.settings, num_steps=3).is_finished


def test_nothing_starts_where_a_directory_holds_another_run(tmp_path, command):
    good, taken = runs = planned(tmp_path, "good", "taken")
    with open_run_directory(load_config(["seed=5"], settings={"output_dir": str(taken.output_dir)})) as run:
        run.metrics_path.write_text("")
    with pytest.raises(RunDirectoryError, match="must not hold another run.*seed: 5 -> 4"):
        go(runs, command)
    assert not good.log_path.exists()


# ------------------------------------------------------------------------------------------------------------ stopping
def test_a_failing_run_ends_all_with_the_end_of_its_log(tmp_path, command):
    hangs, fails, never = planned(tmp_path, "hangs", "fails_after_hangs", "never")
    with pytest.raises(RunFailedError) as caught:
        go([hangs, fails, never], command)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"run fails_after_hangs failed; the end of {fails.log_path}:"
    assert lines[1:] == [f"line {i}" for i in range(26, 40)] + ["the reason"]
    assert not is_alive(hangs) and not never.log_path.exists()


def test_a_run_that_was_killed_has_failed(tmp_path, command):
    with pytest.raises(RunFailedError, match="run dies failed"):
        go(planned(tmp_path, "dies"), command)


def test_a_run_that_does_not_stop_is_killed(tmp_path, command):
    stubborn, fails = planned(tmp_path, "stubborn", "fails_after_stubborn")
    with pytest.raises(RunFailedError):
        go([stubborn, fails], command)
    assert len(stubborn.rows()) == 1 and not is_alive(stubborn)


@pytest.fixture(name="ctrl_c")
def ctrl_c_fixture():
    """Ctrl-C as in a terminal: under ``nohup`` or a script's ``&`` the tests themselves ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_stops_every_run(tmp_path, command, ctrl_c, number):
    before = signal.getsignal(number)
    runs = planned(tmp_path, "hangs1", "hangs2")
    thread = when_started(runs, lambda: interrupt(number))
    with pytest.raises(KeyboardInterrupt):
        go(runs, command)
    thread.join()
    assert not any(is_alive(run) for run in runs)
    assert signal.getsignal(number) is before


def test_an_interrupt_between_the_start_of_a_run_and_its_note_orphans_nothing(tmp_path, command, ctrl_c, monkeypatch):
    started = []

    def start_and_interrupt(*arguments, popen=subprocess.Popen, **options):
        started.append(popen(*arguments, **options))
        interrupt()
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        go(planned(tmp_path, "hangs"), command)
    assert [popen.poll() for popen in started] == [-signal.SIGTERM]


def test_a_second_interrupt_kills_at_once(tmp_path, command, ctrl_c, monkeypatch):
    monkeypatch.setattr(side_by_side, "STOP_TIMEOUT_S", 1000.0)
    (stubborn,) = planned(tmp_path, "stubborn")
    first = when_started([stubborn], interrupt)
    second = threading.Thread(target=lambda: (first.join(), time.sleep(0.5), interrupt()))
    second.start()
    with pytest.raises(KeyboardInterrupt):
        go([stubborn], command)
    second.join()
    assert not is_alive(stubborn)


def test_an_ignored_interrupt_stays_ignored(tmp_path, command, ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (run,) = planned(tmp_path, "a")
    thread = when_started([run], interrupt)
    go([run], command)
    thread.join()
    assert run.is_finished and signal.getsignal(signal.SIGINT) is signal.SIG_IGN


# --------------------------------------------------------------------------------------------------------- several ranks
def test_several_ranks_are_started_by_torchrun():
    assert train_command(1) == (sys.executable, "-m", "nemo_axpo.cli", "train")
    command = train_command(2)
    assert command[:3] == (sys.executable, "-m", "torch.distributed.run") and command[-3:] == (
        "-m",
        "nemo_axpo.cli",
        "train",
    )
    assert command[command.index("--nproc-per-node") + 1] == "2"


def test_the_end_of_a_log_is_what_the_rank_said(tmp_path):
    said = [f"step {i}" for i in range(20)] + ["error: the reason"]
    torchrun = [
        "E1121 06:39:23.1 28318 torch/distributed/elastic/multiprocessing/api.py:986] failed (exitcode: 1)",
        "Traceback (most recent call last):",
        "ChildFailedError",
    ]
    assert _end_of("\n".join(said)).splitlines() == said[-15:]
    assert _end_of("\n".join(said + torchrun)).splitlines() == said[-15:]
