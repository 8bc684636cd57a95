"""Trajectories on disk and back: token for token what was sampled, pictures pixel for pixel, errors that name the place."""

from __future__ import annotations

import asyncio
import json

import pytest
from scripted_agent import ZOOM, ScriptedEngine, answer, by_turn, image_store, make_agent, make_producer, make_question
from scripted_agent import tokenizer as world_tokenizer

from nemo_axpo.data.image_files import ImageFiles
from nemo_axpo.data.samples import build_sample
from nemo_axpo.data.trajectories import (
    IMAGES_DIRECTORY,
    ORIGIN_FILE,
    ROWS_FILE,
    Origin,
    image_processor_fingerprint,
    tokenizer_fingerprint,
    trajectory_of,
    write_trajectories,
)
from nemo_axpo.data.trajectory_samples import TrajectorySamples
from nemo_axpo.errors import DataError
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor
from nemo_axpo.types import Credit, RowPart

NUM = 5


def origin():
    tokens, pictures = tokenizer_fingerprint(world_tokenizer()), image_processor_fingerprint(tiny_image_processor())
    return Origin("teacher", tokens, pictures, ("image_zoom_in",))


@pytest.fixture(name="written")
def written_fixture(tmp_path):
    """Five rollouts with a tool call each, as they were sampled and as they lie on disk."""
    store = image_store()
    producer = make_producer(make_agent(ScriptedEngine(by_turn(ZOOM, answer("red"))), store))
    questions = [make_question(store, f"q{i}", colour=("red", "blue")[i % 2]) for i in range(NUM)]
    rollouts = asyncio.run(producer.run_rollouts(questions, num_rollouts=1, seed=0))
    trajectories = [trajectory_of(row, question=question) for row, question in zip(rollouts, questions)]
    files = ImageFiles(tmp_path / "distill" / IMAGES_DIRECTORY)
    for trajectory in trajectories:
        files.save(trajectory.image_ids, images=store)
    assert write_trajectories(tmp_path / "distill", trajectories, origin=origin()) == NUM
    return tmp_path / "distill", {row.rollout_id: row for row in rollouts}


def read(directory, tmp_path, *, store=None, seed=0, max_row_tokens=1000):
    return TrajectorySamples(
        [directory],
        images=image_store() if store is None else store,
        tokenizer=world_tokenizer(),
        image_processor=tiny_image_processor(),
        max_row_tokens=max_row_tokens,
        seed=seed,
        cache_dir=str(tmp_path / "cache"),
    )


def take(samples, step, batch_size=NUM):
    return asyncio.run(samples.take(step, batch_size=batch_size))


def test_a_row_trains_token_for_token_as_it_was_sampled(written, tmp_path):
    directory, rollouts = written
    for sample in take(read(directory, tmp_path), 0):
        rollout = rollouts[sample.rollout_id.partition("#")[0]]
        expected = build_sample(rollout, credit=Credit(rollout.rollout_id, RowPart.ALL, 1.0), temperature=1.0)
        assert (sample.token_ids, sample.loss_mask, sample.image_ids) == (
            rollout.token_ids,
            rollout.model_mask,
            rollout.image_ids,
        )
        assert sample.loss_mask == expected.loss_mask and sum(sample.loss_mask) == expected.advantages.count(1.0)


def test_the_pictures_are_the_very_same(written, tmp_path):
    directory, _ = written
    store = image_store()
    samples = read(directory, tmp_path, store=store)
    rows = take(samples, 0)
    assert len(store) == 0
    samples.load_images(rows[:1])
    assert all(image_id in store for image_id in rows[0].image_ids) and len(rows[0].image_ids) == 2


def test_every_epoch_takes_each_once_in_another_order(written, tmp_path):
    directory, _ = written
    samples = read(directory, tmp_path)
    epochs = [[row.question_id for row in take(samples, epoch)] for epoch in range(4)]
    assert all(sorted(epoch) == [f"q{i}" for i in range(NUM)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = [row.question_id for step in range(10) for row in take(read(directory, tmp_path), step, batch_size=2)]
    assert again == [name for epoch in epochs for name in epoch]
    assert len({row.rollout_id for step in range(4) for row in take(samples, step)}) == 4 * NUM


def test_longer_rows_are_left_out(written, tmp_path):
    directory, rollouts = written
    longest = max(len(row.token_ids) for row in rollouts.values())
    assert len(read(directory, tmp_path, max_row_tokens=longest)) == NUM
    with pytest.raises(DataError, match="there must be trajectories of at most 5 tokens; got none in"):
        read(directory, tmp_path, max_row_tokens=5)


@pytest.mark.parametrize(
    ("name", "said"), [("tokenizer", "same tokenizer"), ("image_processor", "same image processor")]
)
def test_another_students_trajectories_are_refused(written, tmp_path, name, said):
    directory, _ = written
    values = json.loads((directory / ORIGIN_FILE).read_text()) | {name: "other"}
    (directory / ORIGIN_FILE).write_text(json.dumps(values))
    with pytest.raises(DataError, match=f"{said}; got other in .*distill again"):
        read(directory, tmp_path)


def test_fingerprints_tell_tokenizers_and_processors_apart():
    processor = tiny_image_processor()
    before = image_processor_fingerprint(processor)
    processor.merge_size *= 2
    assert image_processor_fingerprint(processor) != before == image_processor_fingerprint(tiny_image_processor())

    class Other:
        def get_vocab(self):
            return {**world_tokenizer().get_vocab(), "other": 509}

    assert tokenizer_fingerprint(Other()) != tokenizer_fingerprint(world_tokenizer())


def test_what_is_missing_or_broken_is_named(written, tmp_path):
    directory, _ = written
    samples = read(directory, tmp_path)
    row = take(samples, 0)[0]
    first, second = (ImageFiles(directory / IMAGES_DIRECTORY).path(image_id) for image_id in row.image_ids)
    content = first.read_bytes()
    for damage, message in (
        (lambda: first.unlink(), "every image of a trajectory must be in its directory.*does not exist"),
        (
            lambda: first.write_bytes(content[:50]),
            "every image of a trajectory must be in its directory.*cannot be decoded",
        ),
        (lambda: first.write_bytes(second.read_bytes()), "must be the picture its name is the hash of"),
    ):
        damage()
        with pytest.raises(DataError, match=message):
            samples.load_images([row])
    (directory / ROWS_FILE).write_bytes((directory / ROWS_FILE).read_bytes()[:-40])
    with pytest.raises(DataError, match="trajectories.parquet must be a whole Parquet file"):
        read(directory, tmp_path / "again")
    with pytest.raises(
        DataError, match=r"must hold trajectories \(trajectories.parquet, origin.json\).*nemo-axpo distill"
    ):
        read(tmp_path, tmp_path)
