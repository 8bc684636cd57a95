"""metrics.jsonl survives a kill, resumes without a seam, and says null where there is no number."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch

from nemo_axpo import extras
from nemo_axpo.errors import MissingExtraError
from nemo_axpo.metrics_log import MetricsLog, TensorBoardSink, WandbSink, read_metrics, truncate_metrics


class RecordingSink:
    def __init__(self):
        self.rows, self.closed = [], False

    def log(self, step, metrics):
        self.rows.append((step, dict(metrics)))

    def close(self):
        self.closed = True


def test_rows_are_flushed_one_by_one(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.log(1, {"a": 0.5, "n": 3})
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 1, "a": 0.5, "n": 3}]
    log.close()


def test_what_is_no_finite_number_becomes_null_and_reaches_no_sink(tmp_path):
    sink = RecordingSink()
    values = {"nan": float("nan"), "inf": float("inf"), "none": None, "tensor": torch.tensor(2.0), "flag": True}
    with MetricsLog(tmp_path / "m.jsonl", sinks=[sink]) as log:
        log.log(1, values)
    line = (tmp_path / "m.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "nan": None, "inf": None, "none": None, "tensor": 2.0, "flag": 1.0}
    assert sink.rows == [(1, {"tensor": 2.0, "flag": 1.0})] and sink.closed


def test_a_half_written_last_line_is_left_out_and_then_overwritten(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "a": 0.')
    assert read_metrics(path) == [{"step": 1}]
    with MetricsLog(path) as log:
        log.log(2, {})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_a_broken_row_in_the_middle_is_an_error_that_names_it(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{oops}\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl must be a JSON object; got line 2"):
        read_metrics(tmp_path / "m.jsonl")


def test_truncation_keeps_rows_up_to_the_step(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "a": null}\n{"step": 3}\n{"st')
    truncate_metrics(path, last_step=2)
    assert path.read_text() == '{"step": 1}\n{"step": 2, "a": null}\n'
    truncate_metrics(tmp_path / "absent.jsonl", last_step=2)
    assert not (tmp_path / "absent.jsonl").exists()


def test_tensorboard_holds_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path / "m.jsonl", sinks=[TensorBoardSink(tmp_path / "tb")]) as log:
        log.log(1, {"a/b": 0.5})
        log.log(2, {"a/b": 0.25})
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a/b")] == [(1, 0.5), (2, 0.25)]


def test_tensorboard_hides_what_a_resumed_run_repeats(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoardSink(tmp_path)
    for step in (1, 2, 3):
        first.log(step, {"a": 0.0})
    first.close()
    second = TensorBoardSink(tmp_path, last_step=1)
    second.log(2, {"a": 1.0})
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(1, 0.0), (2, 1.0)]


def test_wandb_without_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "has_extra", lambda name: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'nemo_axpo\[wandb\]'"):
        WandbSink(tmp_path, project="p", config={})


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    started, logged = [], []
    run = types.SimpleNamespace(log=lambda row, step: logged.append((step, row)), finish=lambda: None)
    fake = types.SimpleNamespace(
        init=lambda **options: started.append(options) or run, util=types.SimpleNamespace(generate_id=lambda: "id1")
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(extras, "has_extra", lambda name: True)
    for step in (1, 2):
        sink = WandbSink(tmp_path, project="p", config={"seed": 0})
        sink.log(step, {"a": 1.0})
        sink.close()
    assert [(options["id"], options["resume"], options["project"]) for options in started] == [
        ("id1", "allow", "p")
    ] * 2
    assert logged == [(1, {"a": 1.0}), (2, {"a": 1.0})]
