"""Attempting questions: many at a time, every finished one on disk, lost ones again, pictures forgotten."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from scripted_agent import (
    ZOOM,
    ScriptedEngine,
    answer,
    image_store,
    make_agent,
    make_producer,
    make_question,
    rollout_of,
    turn_of,
)

from nemo_axpo.data.image_files import ImageFiles
from nemo_axpo.distill.attempts import FILE, Attempt, AttemptLog, read_attempts, require_attempts
from nemo_axpo.distill.collect import Collector, CollectSettings
from nemo_axpo.engines.base import EngineError
from nemo_axpo.errors import DataError, RunFailedError
from nemo_axpo.rollouts.limits import RolloutLimits

COLOURS = ("red", "blue", "green", "yellow", "cyan", "magenta")


class Questions:
    """Six questions, each with a picture of its own."""

    def __init__(self, store):
        self.store, self.taken = store, []

    def take(self, start, count):
        self.taken += range(start, start + count)
        return tuple(make_question(self.store, f"q{i}", colour=COLOURS[i]) for i in range(start, start + count))


def by_rollout(request):
    """Rollout 0 zooms and says red, rollout 1 says the question's colour at once."""
    question, _, number = rollout_of(request).partition("/")
    if number == "0":
        return (ZOOM, answer("red"))[turn_of(request)]
    return answer(COLOURS[int(question[1:])])


def collect(tmp_path, *, script=by_rollout, num_concurrent=2, with_files=True, max_lost=8, engine=None):
    store = image_store()
    engine = engine or ScriptedEngine(script, delay_s=0.001)
    questions = Questions(store)
    producer = make_producer(make_agent(engine, store), max_retries=0)
    settings = CollectSettings(6, 2, seed=0, num_concurrent=num_concurrent, max_lost=max_lost)
    with AttemptLog(tmp_path) as log:
        files = ImageFiles(tmp_path / "images") if with_files else None
        collector = Collector(questions, producer, images=store, log=log, settings=settings, image_files=files)
        result = asyncio.run(collector.run())
    return result, store, questions, engine


def attempts(tmp_path):
    return sorted(read_attempts(tmp_path), key=lambda attempt: attempt.index)


def test_every_question_is_attempted_and_the_right_rollouts_are_kept(tmp_path):
    result, store, _, engine = collect(tmp_path)
    found = attempts(tmp_path)
    assert (result.num_attempted, result.num_lost) == (6, 0)
    assert [attempt.rewards for attempt in found] == [(1.0, 1.0), *[(0.0, 1.0)] * 5]
    assert {attempt.uses_tool for attempt in found} == {(True, False)}
    assert [len(attempt.trajectories) for attempt in found] == [2, 1, 1, 1, 1, 1]
    assert found[0].trajectories[0].uses_tool and not found[0].trajectories[1].uses_tool
    for attempt in found:
        for trajectory in attempt.trajectories:
            assert all((tmp_path / "images" / f"{name}.png").exists() for name in trajectory.image_ids)
    assert len(store) == 0  # pictures of finished questions are forgotten, those of tools too
    assert engine.max_in_flight <= 4  # two questions of two rollouts


def test_what_is_on_disk_is_not_done_again(tmp_path):
    collect(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    lines = before.splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(b"".join(lines[:3]) + lines[3][:40])  # killed while it wrote the fourth
    _, _, questions, _ = collect(tmp_path)
    done = {json.loads(line)["index"] for line in lines[:3]}
    assert sorted(questions.taken) == sorted(set(range(6)) - done)
    assert sorted((tmp_path / FILE).read_bytes().splitlines()) == sorted(before.splitlines())


def test_a_right_answer_after_a_call_that_cannot_be_read_is_no_example(tmp_path):
    broken = "look\n</think>\n\n<tool_call>\n{bad\n</tool_call><|im_end|>"

    def script(request):
        colour = COLOURS[int(rollout_of(request).partition("/")[0][1:])]
        return (broken, answer(colour))[turn_of(request)] if rollout_of(request).endswith("/0") else answer(colour)

    collect(tmp_path, script=script)
    for attempt in attempts(tmp_path):
        assert attempt.rewards == (1.0, 1.0)
        assert [trajectory.trajectory_id for trajectory in attempt.trajectories] == [f"{attempt.question_id}/1"]


def test_without_files_only_rewards_are_kept(tmp_path):
    collect(tmp_path, with_files=False)
    assert all(attempt.trajectories == () for attempt in attempts(tmp_path))
    assert not (tmp_path / "images").exists()


def test_a_question_with_a_lost_rollout_is_not_attempted_and_comes_again(tmp_path, caplog):
    caplog.set_level(logging.ERROR)

    def flaky(request):
        return EngineError("gone") if rollout_of(request) in ("q2/0", "q4/0", "q4/1") else by_rollout(request)

    result, store, _, _ = collect(tmp_path, script=flaky)
    assert (result.num_attempted, result.num_lost, len(store)) == (4, 2, 0)
    assert {attempt.index for attempt in attempts(tmp_path)} == {0, 1, 3, 5}
    again, _, questions, _ = collect(tmp_path)
    assert (again.num_attempted, questions.taken) == (2, [2, 4])


def test_a_question_without_room_to_answer_is_left_out(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    store = image_store()
    questions = Questions(store)
    limits = RolloutLimits(max_new_tokens=20, max_row_tokens=30)
    producer = make_producer(make_agent(ScriptedEngine(by_rollout), store, limits=limits))
    with AttemptLog(tmp_path) as log:
        settings = CollectSettings(6, 2, seed=0)
        result = asyncio.run(Collector(questions, producer, images=store, log=log, settings=settings).run())
    assert (result.num_attempted, result.num_lost, result.num_too_long, len(store)) == (0, 0, 6, 0)
    assert "question q3 is left out: the prompt of question 'q3' must be shorter" in caplog.text


def test_many_lost_in_a_row_end_it_with_the_cure(tmp_path, caplog):
    caplog.set_level(logging.ERROR)

    def down(request):
        return by_rollout(request) if rollout_of(request).startswith("q0/") else EngineError("gone")

    with pytest.raises(RunFailedError, match="got 3 questions in a row lost.*go on with --resume"):
        collect(tmp_path, script=down, num_concurrent=1, max_lost=3)
    assert [attempt.index for attempt in attempts(tmp_path)] == [0]


def test_a_broken_line_is_named(tmp_path):
    collect(tmp_path)
    lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
    (tmp_path / FILE).write_text(lines[0] + '{"index": 1}\n' + lines[2])
    with pytest.raises(DataError, match=r"attempts.jsonl line 2 must be an attempt; got KeyError.*attempted again"):
        list(read_attempts(tmp_path))
    with pytest.raises(DataError, match="must hold attempts.jsonl; got no attempt"):
        require_attempts(tmp_path / "nowhere")


def test_an_attempt_counts_its_right_rollouts():
    assert Attempt(0, "q", "s", (1.0, 0.0, 1.0), (True, True, False)).num_correct == 2
