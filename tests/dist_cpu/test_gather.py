"""Groups spread over gloo ranks: selections and advantages are those of one process, bit for bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from forked import ForkedProcess
from gather_worker import NUM_STEPS, alone, axpo, random_scores

WORKER = Path(__file__).parent / "gather_worker.py"


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory) -> list[dict]:
    """What every rank of a job of 2 and of 4 came to know."""
    directory, size = tmp_path_factory.mktemp("gather"), request.param
    outputs = [directory / f"{rank}.json" for rank in range(size)]
    workers = [
        ForkedProcess(WORKER, str(rank), str(size), directory / "store", output, log=output.with_suffix(".log"))
        for rank, output in enumerate(outputs)
    ]
    statuses = [worker.wait(120) for worker in workers]
    assert not any(statuses), [output.with_suffix(".log").read_text() for output in outputs]
    return [json.loads(output.read_text()) for output in outputs]


def test_selections_and_advantages_do_not_depend_on_where_rows_lie(ranks):
    expected = json.loads(json.dumps(alone()))
    assert sum(len(step["sources"]) for step in expected) > NUM_STEPS, "the steps must resample something"
    for rank in ranks:
        assert rank["steps"] == expected


def test_scalars_are_all_that_crosses_ranks_for_it(ranks):
    """Some 45 bytes a record, once per rank that holds it: ids, reward, flag and confidence as text."""
    import random

    num_records = sum(len(random_scores(random.Random(n), algorithm=axpo(n))) for n in range(NUM_STEPS))
    sent = sum(rank["sent"]["records"] for rank in ranks)
    assert 0 < sent < 100 * num_records
    assert all(rank["sent"]["samples"] == 0 for rank in ranks)


def test_rows_arrive_where_they_are_trained_with_their_pictures(ranks):
    for number in range(2):
        moves = [rank["moves"][number] for rank in ranks]
        assert all(move["is_equal"] for move in moves)
    arrived = sorted(row for rank in ranks for row in rank["moves"][0]["arrived"])
    assert arrived == [f"r{number:02}" for number in range(12) if number != 5]
    half = len(ranks) // 2
    paired = [rank["moves"][1]["arrived"] for rank in ranks]
    assert paired[:half] == paired[half:], "every rank of a replica gets the same rows"
