"""launcher_scripts/pipeline.sh: every stage from questions to the table, in its short form; killed, and called again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("questions", "check", "distill", "sft", "filter", "axpo", "eval SFT", "eval SFT+AXPO", "table")


def start(output_dir):
    command = [ROOT / "launcher_scripts" / "pipeline.sh", "--tiny", "--smoke", "--python", sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, "--output-dir", str(output_dir)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.mark.slow
def test_the_chain_is_killed_goes_on_and_ends_with_a_table(tmp_path):
    first = start(tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "distill" / "attempts.jsonl").exists():  # killed while the teacher answers, or just after
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = (tmp_path / "distill" / "attempts.jsonl").read_text().rpartition("\n")[0]
    output = finish(start(tmp_path))
    assert "== questions: done before" in output and "== check: done before" in output
    assert (tmp_path / "distill" / "attempts.jsonl").read_text().startswith(before)
    attempts = [json.loads(line) for line in (tmp_path / "distill" / "attempts.jsonl").read_text().splitlines()]
    assert sorted(attempt["index"] for attempt in attempts) == list(range(24))
    kept = {json.loads(line)["id"] for line in (tmp_path / "filter" / "kept.jsonl").read_text().splitlines()}
    asked = [json.loads(line) for line in (tmp_path / "axpo" / "journal.jsonl").read_text().splitlines()]
    assert {name.partition("~")[0] for event in asked for name in event.get("questions", [])} <= kept
    table = (tmp_path / "table" / "table.md").read_text()
    assert table in output and "Tiny SFT+AXPO" in table and "Embedded world" in table
    again = finish(start(tmp_path))
    assert all(f"== {stage}: done before" in again for stage in STAGES)
