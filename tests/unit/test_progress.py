"""Progress: the arithmetic of rate and time left, and what a log and a terminal get to see."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nemo_axpo.progress import ProgressDisplay, format_seconds


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def plain_display(clock, **options):
    out = io.StringIO()
    return ProgressDisplay(console=Console(file=out, force_terminal=False, width=40), clock=clock, **options), out


def test_a_log_gets_step_rate_time_left_and_metrics():
    clock = Clock()
    display, out = plain_display(clock)
    with display:
        display.start("AXPO", total=100)
        clock.now = 2.0
        display.update("AXPO", step=1, metrics={"rollout/accuracy": 0.314, "rollout/tool_use": None, "other": 1.0})
    assert out.getvalue() == "AXPO: step 1/100 · 2.00 s/step · 3 min 18 s left · accuracy 0.31\n"


def test_what_is_counted_has_a_name():
    clock = Clock()
    display, out = plain_display(clock, unit="rollout")
    display.start("eval", total=1200)
    clock.now = 2.0
    display.update("eval", step=100)
    assert out.getvalue() == "eval: rollout 100/1200 · 50 rollouts/s · 22 s left\n"


def test_plain_lines_keep_their_distance_but_the_last_step_is_shown():
    clock = Clock()
    display, out = plain_display(clock, interval_s=10)
    display.start("a", total=30)
    for step in range(1, 31):
        clock.now += 1
        display.update("a", step=step)
    assert [line.split("·")[0].strip() for line in out.getvalue().splitlines()] == [
        "a: step 1/30",
        "a: step 11/30",
        "a: step 21/30",
        "a: step 30/30",
    ]


def test_a_resumed_run_counts_only_its_own_steps_for_the_rate():
    clock = Clock()
    display, out = plain_display(clock)
    display.start("a", total=120, done=100)
    clock.now = 30.0
    display.update("a", step=110)
    assert "step 110/120 · 3.00 s/step · 30 s left" in out.getvalue()


def test_the_rate_follows_the_last_steps():
    clock = Clock()
    display, out = plain_display(clock, interval_s=0)
    display.start("a", total=1000)
    for step in range(1, 101):
        clock.now += 10.0 if step <= 50 else 1.0
        display.update("a", step=step)
    assert "step 100/1000 · 1.00 s/step · 15 min 00 s left" in out.getvalue()


def test_a_terminal_gets_a_bar_per_run():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with ProgressDisplay(console=console) as display:
        display.start("GRPO", total=10)
        display.start("AXPO", total=10)
        display.update("AXPO", step=4, metrics={"rollout/tool_use": 0.5})
        display.message("evaluating [1/2]")
    text = out.getvalue()
    assert "GRPO" in text and "4/10" in text and "tool use 0.50" in text and "evaluating [1/2]" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
