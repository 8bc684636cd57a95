"""Bytes between ranks: everything arrives as it was sent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from nemo_axpo.data.images import ImageStore, build_image_processor
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.distributed.wire import pack_records, pack_samples, unpack_records, unpack_samples
from nemo_axpo.types import ResampleScore, RolloutScore, TrainingSample


def make_store():
    return ImageStore(build_image_processor(patch_size=8, merge_size=2, temporal_patch_size=1))


def sample(rollout_id, *, image_ids=()):
    logprobs = tuple(float(np.float32(value)) for value in (0.0, -0.1, -12.75))
    return TrainingSample(
        rollout_id, "q/ü", (5, 151_645, 7), (False, True, True), (0.0, -1.5, 0.25), logprobs, image_ids,
        policy_version=3, temperature=0.7,
    )  # fmt: skip


def test_floats_of_records_survive_bit_for_bit():
    scores = [
        RolloutScore("q", "q/0", 1.0, True, 0.1 + 0.2),
        RolloutScore("q", 'q/"1"\n', 0.0, False),
        RolloutScore("é", "é/2", 1 / 3, True, math.nextafter(0.5, 1)),
    ]
    arrived = unpack_records(pack_records(scores), kind=RolloutScore)
    assert [(s.rollout_id, s.reward.hex()) for s in arrived] == [(s.rollout_id, s.reward.hex()) for s in scores]
    assert [a.confidence.hex() for a in arrived] == [s.confidence.hex() for s in scores]
    assert math.isnan(arrived[1].confidence) and arrived[1].uses_tool is False


def test_no_records_take_no_bytes():
    assert pack_records([]) == b"" and unpack_records(b"", kind=ResampleScore) == []


def test_samples_and_their_images_arrive():
    here, there = make_store(), make_store()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    image_id = here.add(Image.fromarray(pixels))
    unused = here.add(Image.new("RGB", (32, 32)))
    samples = [sample("a", image_ids=(image_id, image_id)), sample("b"), sample("c", image_ids=(image_id,))]
    assert unpack_samples(pack_samples(samples, image_store=here), image_store=there) == samples
    assert np.array_equal(np.asarray(there.image(image_id)), pixels) and unused not in there and len(there) == 1


def test_no_samples_take_no_bytes():
    assert pack_samples([], image_store=make_store()) == b""
    assert unpack_samples(b"", image_store=make_store()) == []


def test_an_image_that_changed_on_the_way_is_noticed():
    here, there = make_store(), make_store()
    image_id = here.add(Image.new("RGB", (32, 32), "red"))
    data = bytearray(pack_samples([sample("a", image_ids=(image_id,))], image_store=here))
    data[-1] ^= 1
    with pytest.raises(AssertionError, match="arrived with other pixels"):
        unpack_samples(bytes(data), image_store=there)


def test_one_process_keeps_what_is_trained():
    samples = [sample("a"), sample("b")]
    assert OneProcess().move(samples, replica_of={"b": 0}, image_store=None) == (samples[1],)
    assert OneProcess().gather(samples, kind=TrainingSample) == tuple(samples)
