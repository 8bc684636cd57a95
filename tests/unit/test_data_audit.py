"""check-data: copies in other sizes and formats are found, other pictures are not, and every bad row is reported."""

from __future__ import annotations

import io
import json
import random

import pytest
from data_files import encoded, picture, schema_rows, write_jsonl
from PIL import Image

from nemo_axpo.cli import main
from nemo_axpo.data.image_hashes import HashedImage, leaked_pairs, perceptual_hash, similar_pairs


def hashed(name, bits):
    return HashedImage(name, 0, bits)


def test_pairs_by_hand():
    images = [hashed("a", 0), hashed("b", 0b1111), hashed("c", 0b11111), hashed("d", 0b111 << 60), hashed("a", 1)]
    found = [(p.first.question_id, p.second.question_id, p.distance) for p in similar_pairs(images, max_distance=4)]
    # a-a is one question; b and c differ in bit 4 alone; c is 5 bits from the first image of a, 4 from its second.
    assert found == [
        *[("a", "b", 4), ("a", "d", 3), ("b", "c", 1), ("b", "a", 3), ("c", "a", 4), ("d", "a", 4)],
    ]
    assert leaked_pairs(images[:2], [hashed("e", 0b1111)], max_distance=0)[0].first.question_id == "b"


def test_random_hashes_are_compared_as_by_brute_force():
    rng = random.Random(0)
    images = [hashed(f"i{n}", rng.getrandbits(64)) for n in range(60)]
    for n in range(60):
        bits = images[n].bits
        for bit in rng.sample(range(64), n % 8):
            bits ^= 1 << bit
        images.append(hashed(f"j{n}", bits))
    found = {(p.first.question_id, p.second.question_id) for p in similar_pairs(images, max_distance=4)}
    expected = {
        (a.question_id, b.question_id)
        for i, a in enumerate(images)
        for b in images[i + 1 :]
        if (a.bits ^ b.bits).bit_count() <= 4
    }
    assert found == expected and len(expected) > 30


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_in_another_size_format_or_mode_is_near_and_another_picture_is_far(seed):
    original = picture(seed, size=(240, 180))
    bits = perceptual_hash(original)
    smaller = original.resize((120, 90))
    jpeg = Image.open(io.BytesIO(encoded(original, "JPEG", quality=60)))
    for copy in (smaller, jpeg, original.convert("RGBA")):
        assert (perceptual_hash(copy) ^ bits).bit_count() <= 4
    assert (perceptual_hash(picture(seed + 50)) ^ bits).bit_count() > 12


@pytest.fixture(name="data")
def data_fixture(tmp_path):
    """Six training rows: a picture twice, one that the evaluation shows, a broken one, a row without answer."""
    for name, image in {
        "a.png": picture(1),
        "a.jpg": picture(1).resize((96, 72)),
        "b.png": picture(2),
        "leak.png": picture(3),
    }.items():
        image.save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(encoded(picture(4))[:60])
    pictures = ["a.png", "a.jpg", "b.png", "leak.png", "broken.png", "b.png"]
    rows = [row | {"images": [name]} for row, name in zip(schema_rows(6), pictures)]
    rows[5]["answer"] = None
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    evaluation = write_jsonl(tmp_path / "eval.jsonl", [{**rows[0], "id": "e0", "images": ["shown.jpg"]}])
    picture(3).resize((100, 80)).save(tmp_path / "shown.jpg")
    return [
        "data=files",
        f"data.files=[{{path: {train}}}]",
        f"data.eval_files=[{{path: {evaluation}}}]",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]


def test_the_command_reports_all_and_keeps_the_usable(data, tmp_path, capsys):
    assert main(["check-data", *data, "--output", str(tmp_path / "report")]) == 2
    output, error = capsys.readouterr()
    assert "training: 6 rows, 4 questions with 4 images, 0 left out by the reader, 2 bad" in output
    assert "every row of the data files must be usable; got 2 that are not" in error
    report = json.loads((tmp_path / "report" / "data_report.json").read_text())
    assert "row 5, field 'images[0]' must be a whole image" in report["train"]["problems"][0]
    assert "row 6 needs the field 'answer'" in report["train"]["problems"][1]
    ((pair,), (leak,)) = report["duplicates"], report["leaks"]
    assert (pair["first"]["id"], pair["second"]["id"]) == ("q0", "q1")
    assert (leak["first"]["id"], leak["second"]["id"]) == ("q3", "e0")
    kept = [json.loads(line)["id"] for line in (tmp_path / "report" / "kept.jsonl").read_text().splitlines()]
    assert kept == ["q0", "q1", "q2"] and report["num_kept"] == 3


def test_without_files(capsys, tmp_path):
    assert main(["check-data", "--output", str(tmp_path)]) == 2
    assert "check-data reads the files of data.files; got none" in capsys.readouterr().err
