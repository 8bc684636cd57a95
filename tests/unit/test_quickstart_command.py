"""The quickstart's own decisions: what is run, what is reused, when it stops, and that a report is always tried."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from nemo_axpo import quickstart
from nemo_axpo.config.load import load_config, save_config
from nemo_axpo.errors import ConfigError, RunDirectoryError, RunFailedError
from nemo_axpo.quickstart import WarmStart, planned_runs, run_quickstart, warm_start
from nemo_axpo.report import command as report_command
from nemo_axpo.run_directory import changed_keys

INSIDE = {"tool_use": 0.28, "tool_accuracy": 0.25, "direct_accuracy": 0.29, "all_wrong": 0.5}
START = WarmStart(Path("/somewhere/warm_start/hf"), INSIDE)


class Sft:
    """Stands for the process of ``nemo-axpo sft``: writes what it leaves, or fails."""

    def __init__(self, rates=INSIDE, *, status=0):
        self.rates, self.status, self.calls = rates, status, []

    def run(self, command, *, check, env):
        self.calls.append(command)
        assert command[2:5] == ["nemo_axpo.cli", "sft", "--output-dir"] and env["OMP_NUM_THREADS"] == "1"
        path, settings = Path(command[5]), command[6:]
        assert not path.exists()
        path.mkdir(parents=True)
        save_config(load_config(settings, settings={"output_dir": str(path)}), path / "config.yaml")
        if not self.status:
            (path / "warm_start.json").write_text(json.dumps(self.rates))
        return SimpleNamespace(returncode=self.status)


@pytest.fixture(name="parts")
def parts_fixture(monkeypatch):
    """Scripted processes in place of the warm start and the runs; the report is only counted."""
    parts = SimpleNamespace(sft=Sft(), runs=[], reports=[], error=None, out=io.StringIO())

    def run_side_by_side(runs, **options):
        parts.runs.append(runs)
        if parts.error:
            raise parts.error

    def build_report(directories, *, output, console):
        parts.reports.append(output)
        if parts.no_steps:
            raise ValueError("no run has finished a step")
        return SimpleNamespace(html=output / "report.html")

    parts.no_steps = False
    monkeypatch.setattr(quickstart.subprocess, "run", lambda *args, **options: parts.sft.run(*args, **options))
    monkeypatch.setattr(quickstart, "run_side_by_side", run_side_by_side)
    monkeypatch.setattr(report_command, "build_report", build_report)
    monkeypatch.setattr(quickstart, "Console", lambda: Console(file=parts.out, width=200))
    return parts


def go(tmp_path, *, seed=3, smoke=False):
    run_quickstart(output_dir=tmp_path / "out", seed=seed, smoke=smoke, device="cpu")


# ------------------------------------------------------------------------------------------------------------ the runs
def test_runs_differ_in_their_arm_alone(tmp_path):
    settings = ["seed=3", "train.num_steps=9"]
    runs = planned_runs(tmp_path, ["grpo_n8", "grpo_n10", "axpo"], start=START, settings=settings, num_steps=9)
    assert [(run.name, run.output_dir, run.num_steps) for run in runs] == [
        (name, tmp_path / name, 9) for name in ("grpo_n8", "grpo_n10", "axpo")
    ]
    grpo_8, grpo_10, axpo = (load_config(run.settings) for run in runs)
    assert axpo.model.path == str(START.checkpoint) and axpo.seed == 3 and axpo.train.num_steps == 9
    assert changed_keys(grpo_8, grpo_10) == ["algorithm.num_rollouts: 8 -> 10"]
    assert changed_keys(grpo_8, axpo) == [
        "algorithm.name: grpo -> axpo",
        "algorithm.num_continuations: None -> 4",
        "algorithm.resample_ratio: None -> 0.25",
    ]


def test_grpo_gets_as_many_rollouts_as_axpo_with_its_resamples(tmp_path):
    grpo, axpo = (
        load_config(run.settings).algorithm
        for run in planned_runs(tmp_path, ["grpo_n10", "axpo"], start=START, settings=[], num_steps=1)
    )
    assert grpo.num_rollouts == axpo.num_rollouts * (1 + axpo.resample_ratio) == 10


def test_a_prefix_names_the_runs_of_a_study(tmp_path):
    (run,) = planned_runs(tmp_path, ["axpo"], start=START, settings=[], num_steps=1, prefix="seed 4 ")
    assert run.name == "seed 4 axpo" and run.output_dir == tmp_path / "axpo"


def test_its_stages_share_seed_and_settings(tmp_path, parts):
    go(tmp_path)
    ((grpo, axpo),) = parts.runs
    sft = load_config(parts.sft.calls[0][6:])
    assert (grpo.name, axpo.name) == ("grpo_n10", "axpo")
    assert {sft.seed, *(load_config(run.settings).seed for run in (grpo, axpo))} == {3}
    assert load_config(axpo.settings).model.path == str(tmp_path / "out" / "warm_start" / "hf")
    assert axpo.num_steps == load_config(axpo.settings).train.num_steps == 120
    assert parts.reports == [tmp_path / "out"]


# ------------------------------------------------------------------------------------------------------ the warm start
def test_a_measured_warm_start_is_reused(tmp_path, parts):
    first = warm_start(tmp_path, settings=["seed=3"])
    assert first == WarmStart(tmp_path / "warm_start" / "hf", INSIDE)
    assert warm_start(tmp_path, settings=["seed=3"]) == first and len(parts.sft.calls) == 1


def test_a_warm_start_of_other_settings_is_refused(tmp_path, parts):
    warm_start(tmp_path, settings=["seed=3"])
    with pytest.raises(RunDirectoryError, match="must not hold another run.*seed: 3 -> 4"):
        warm_start(tmp_path, settings=["seed=4"])
    assert (tmp_path / "warm_start" / "warm_start.json").is_file() and len(parts.sft.calls) == 1


def test_a_warm_start_that_did_not_finish_begins_again(tmp_path, parts):
    parts.sft.status = 1
    with pytest.raises(RunFailedError, match="the warm start failed"):
        warm_start(tmp_path, settings=["seed=3"])
    parts.sft.status = 0
    assert warm_start(tmp_path, settings=["seed=3"]).rates == INSIDE
    assert len(parts.sft.calls) == 2


# ---------------------------------------------------------------------------------------------------------- the window
def test_outside_of_the_window_it_stops_with_numbers_and_cure(tmp_path, parts):
    parts.sft.rates = INSIDE | {"tool_use": 0.412, "direct_accuracy": 0.2}
    with pytest.raises(ConfigError) as caught:
        go(tmp_path)
    message = str(caught.value)
    assert "tool_use is 0.412, the window is 0.250 to 0.300: world.tool_rate sets it" in message
    assert "direct_accuracy is 0.200, the window is 0.250 to 0.320: lower world.daylight raises it" in message
    assert "try another --seed, or change the settings named above" in message
    assert parts.runs == []


def test_the_smoke_run_trains_from_wherever_it_landed(tmp_path, parts):
    parts.sft.rates = dict.fromkeys(INSIDE, 0.0) | {"tool_accuracy": None}
    go(tmp_path, smoke=True)
    ((_, axpo),) = parts.runs
    assert axpo.num_steps == 4 and "tool_use 0.000" in parts.out.getvalue()
    assert "what AXPO learns needs a run without --smoke" in parts.out.getvalue()


# ---------------------------------------------------------------------------------------------------------- the report
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunFailedError("axpo failed")])
def test_a_report_is_left_of_whatever_exists(tmp_path, parts, error):
    parts.error = error
    with pytest.raises(type(error)):
        go(tmp_path)
    assert parts.reports == [tmp_path / "out"] and "done in" not in parts.out.getvalue()
    assert f"report: {tmp_path / 'out' / 'report.html'}" in parts.out.getvalue().replace("\n", "")


def test_without_a_step_there_is_no_report_and_the_interrupt_stays(tmp_path, parts):
    parts.error, parts.no_steps = KeyboardInterrupt(), True
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path)
    assert "no report yet: no run has finished a step" in parts.out.getvalue()
