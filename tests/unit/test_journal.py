"""The journal shows that no question was lost and none trained twice, and nothing else passes for that."""

from __future__ import annotations

import json

import pytest

from nemo_axpo.cli import main
from nemo_axpo.journal import Journal, verify_journal


def line(step, *, first=None, count=2, names=None):
    """Step s asks questions 2(s-1) and 2(s-1) + 1."""
    first = 2 * (step - 1) if first is None else first
    names = [f"q{first + n}" for n in range(count)] if names is None else names
    return {"event": "trained", "step": step, "first": first, "count": count, "questions": names}


def resumed(step):
    return {"event": "resumed", "step": step}


def verdict(tmp_path, *events, end=""):
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + end)
    return verify_journal(path)


def test_an_uninterrupted_run(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.resumed(0)
        journal.trained(1, first=0, count=2, rollouts=[("b", "b/0"), ("a", "a/1"), ("b", "b/1")])
        journal.trained(2, first=2, count=2, rollouts=[("c", "c/0"), ("d", "d/0")])
    shown = verify_journal(path)
    assert shown.is_good and (shown.num_steps, shown.num_questions, shown.num_resumes, shown.num_undone) == (2, 4, 0, 0)
    assert str(shown) == (
        "OK: 2 steps, 4 questions, each id once; resumed 0 times, 0 steps undone and trained again; "
        "no question lost, none trained twice"
    )


def test_a_killed_run(tmp_path):
    """Killed in step 4 after the checkpoint of step 1, and again before anything new was trained."""
    events = [resumed(0), line(1), line(2), line(3), resumed(1), resumed(1), line(2), line(3), line(4)]
    shown = verdict(tmp_path, *events, end='{"event": "trai')
    assert shown.is_good, shown
    assert (shown.num_steps, shown.num_questions, shown.num_resumes, shown.num_undone) == (4, 8, 2, 2)


def test_the_next_writer_drops_a_half_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "resumed", "step": 0}\n{"event": "tra')
    with Journal(path) as journal:
        journal.resumed(0)
    assert [json.loads(text) for text in path.read_text().splitlines()] == [resumed(0), resumed(0)]


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([line(1), line(2, first=4)], "line 3: step 2 begins at question 4 instead of 2: 2 questions lost"),
        ([line(1), line(2, first=1)], "line 3: step 2 begins at question 1 instead of 2: 1 trained twice"),
        ([line(1), line(3)], "line 3: step 3 was trained after step 1"),
        ([line(1), line(2), line(2)], "line 4: step 2 was trained after step 2"),
        ([line(1), resumed(2)], "line 3: resumed after step 2, but only 1 steps were trained"),
        ([line(1), line(2, names=["q2"])], "line 3: step 2 got rollouts of 1 of its 2 questions"),
        ([line(1), resumed(0), line(1, names=["x", "y"])], "line 4: step 1 asked other questions than before it"),
    ],
)
def test_what_is_not_shown(tmp_path, events, problem):
    shown = verdict(tmp_path, resumed(0), *events)
    assert not shown.is_good and shown.problems[0].startswith(problem)
    assert str(shown).startswith("NOT OK: ")


def test_an_id_twice_in_one_step_is_two_questions(tmp_path):
    path = tmp_path / "journal.jsonl"
    twice = [("a", f"a/{n}") for n in (0, 1)] + [("b", "b/1")] + [("a", f"a/{n}") for n in (1, 2)]
    with Journal(path) as journal:
        journal.resumed(0)
        journal.trained(1, first=0, count=3, rollouts=twice)
    shown = verify_journal(path)
    assert shown.is_good and (shown.num_questions, shown.num_repeated) == (3, 1), shown
    with Journal(path) as journal:
        journal.trained(2, first=3, count=3, rollouts=twice[:3])
    assert verify_journal(path).problems == ["line 3: step 2 got rollouts of 2 of its 3 questions"]


def test_ids_at_several_positions_are_counted(tmp_path):
    shown = verdict(tmp_path, resumed(0), line(1), line(2, names=["q0", "q9"]))
    assert shown.is_good and shown.num_repeated == 1 and "1 ids at several positions" in str(shown)


@pytest.mark.parametrize("text", ["no json\n", "[]\n", '{"event": "other"}\n', '{"event": "trained", "step": 1}\n'])
def test_a_broken_line_is_named(tmp_path, text):
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps(resumed(0)) + "\n" + text)
    with pytest.raises(ValueError, match=r"must be an event of a journal; got line 2 .*: restore the file"):
        verify_journal(path)


def test_the_command(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert main(["journal", str(tmp_path)]) == 2
    assert "a training run keeps a journal.jsonl; got none" in capsys.readouterr().err
    verdict(tmp_path, resumed(0), line(1))
    assert main(["journal", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("OK: 1 steps, 2 questions")
    verdict(tmp_path, resumed(0), line(1), line(1))
    assert main(["journal", str(tmp_path)]) == 2
    assert "NOT OK: 2 steps" in capsys.readouterr().err
