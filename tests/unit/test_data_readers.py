"""Readers on small files in the published layouts (their sources stand in the readers), through the real files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data_files import (
    fvqa_rows,
    mmfinereason_rows,
    picture,
    pyvision_rows,
    virl39k_rows,
    write_jsonl,
    write_parquet,
)

from nemo_axpo.config.schema import DataFileConfig
from nemo_axpo.data.question_table import QuestionTable
from nemo_axpo.data.questions import QuestionRecord, RecordMessage
from nemo_axpo.data.readers.registry import get_reader
from nemo_axpo.errors import ConfigError, DataError


def records(tmp_path: Path, **file: Any) -> list[QuestionRecord]:
    return list(QuestionTable([DataFileConfig(**file)], cache_dir=str(tmp_path / "cache")).records())


def without_images(record: QuestionRecord) -> QuestionRecord:
    return replace(record, images=())


def test_virl39k(tmp_path):
    path = write_parquet(tmp_path / "39Krelease.parquet", virl39k_rows(tmp_path))
    first, second, _ = records(tmp_path, path=path, reader="virl39k")
    turn = RecordMessage("user", (0, "\nHow many blobs are in picture 1?"))
    expected = QuestionRecord("virl39k-Processed-1", (turn,), "1^\\circ", "virl39k", kind="Tables/Diagrams/Charts")
    assert without_images(second) == expected
    assert first.images[0].load().size == (64, 48)


def test_virl39k_without_an_image_and_without_a_box(tmp_path):
    row = virl39k_rows(tmp_path, 1)[0] | {"image": [], "question": "2+2?", "answer": "4"}
    (record,) = records(tmp_path, path=write_jsonl(tmp_path / "a.jsonl", [row]), reader="virl39k")
    assert (record.images, record.answer, record.text) == ((), "4", "2+2?")


def test_fvqa(tmp_path):
    path = write_parquet(tmp_path / "fvqa_train.parquet", fvqa_rows())
    first, _ = records(tmp_path, path=path, reader="fvqa")
    assert without_images(first) == QuestionRecord(
        "fvqa-fvqa_train_0",
        (RecordMessage("user", (0, "Where is this place located?")),),
        "södertälje",
        "fvqa",
        candidate_answers=("Södertälje", "Södertälje, Sweden"),
        kind="search_required",
    )
    assert first.images[0].load().tobytes() == picture(100).tobytes()


def test_pyvision(tmp_path):
    path = tmp_path / "pyvision_image_rl_data.json"
    path.write_text(json.dumps(pyvision_rows(tmp_path / "images")))
    first, _ = records(tmp_path, path=str(path), reader="pyvision", image_root=str(tmp_path / "images"))
    assert (first.id, first.answer, first.kind, first.source) == (
        "pyvision-deepeyes-0",
        "A",
        "visual_search",
        "pyvision",
    )
    assert first.messages[0].parts == (0, "What is the material of the glove?\n(A) rubber\n(B) cotton")
    assert first.images[0].load().size == (64, 48)


def test_mmfinereason_and_its_hard_questions(tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", mmfinereason_rows())
    rows = [row | {"id": f"b{row['id']}"} for row in mmfinereason_rows()]
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows)
    found = records(tmp_path, path=str(tmp_path / "data"), reader="mmfinereason_hard")
    assert [record.id for record in found] == [f"mmfinereason-{name}" for name in ("0", "2", "b0", "b2")]
    assert (found[0].messages[0].parts, found[0].kind) == ((0, "\nFind x."), "Geometry3K")
    assert len(records(tmp_path, path=str(tmp_path / "data"), reader="mmfinereason", source="mine")) == 6


def test_the_pass_rate_has_two_names_and_is_needed(tmp_path):
    row = mmfinereason_rows([0.0])[0] | {"image": None, "question": "Find x."}
    rate = row.pop("pass_rate")
    other = row | {"qwen3vl_4b_pass_rate": rate}
    assert len(records(tmp_path, path=write_jsonl(tmp_path / "a.jsonl", [other]), reader="mmfinereason_hard")) == 1
    with pytest.raises(DataError, match="b.jsonl row 1 needs the field 'pass_rate'"):
        records(tmp_path, path=write_jsonl(tmp_path / "b.jsonl", [row]), reader="mmfinereason_hard")


@pytest.mark.parametrize(
    ("reader", "changes", "message"),
    [
        ("virl39k", {"qid": None}, "row 2 needs the field 'qid'"),
        ("virl39k", {"image": ["images/gone.jpg"]}, r"row 2, field 'image\[0\]' must be an image file that exists"),
        ("virl39k", {"question": "no mark, but <image><image>"}, "row 2, field 'question' must mark as many images"),
        ("fvqa", {"reward_model": None}, "row 2 needs the field 'reward_model'"),
        (
            "fvqa",
            {"reward_model": {"ground_truth": None}},
            "row 2, field 'reward_model' needs the field 'ground_truth'",
        ),
        (
            "fvqa",
            {"reward_model": {"ground_truth": "x", "candidate_answers": "[a"}},
            "'candidate_answers' must be JSON",
        ),
        ("fvqa", {"prompt": []}, "row 2, field 'prompt' must be turns that end with one of the user"),
        ("fvqa", {"images": [{"bytes": None, "path": None}]}, r"row 2, field 'images\[0\]' must hold bytes or a path"),
        ("pyvision", {"image_path": None}, "row 2 needs the field 'image_path'"),
        ("pyvision", {"answer": ""}, "row 2, field 'answer' must be text or a number that is not blank"),
        ("mmfinereason_hard", {"pass_rate": "hard"}, "row 2, field 'pass_rate' must be a number; got str 'hard'"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, reader, changes, message):
    rows = {
        "virl39k": lambda: virl39k_rows(tmp_path),
        "fvqa": lambda: [row | {"images": []} for row in fvqa_rows()],
        "pyvision": lambda: pyvision_rows(tmp_path),
        "mmfinereason_hard": lambda: [row | {"image": None, "question": "x"} for row in mmfinereason_rows()],
    }[reader]()
    rows[1] |= changes
    with pytest.raises(DataError, match=message):
        records(tmp_path, path=write_jsonl(tmp_path / "rows.jsonl", rows), reader=reader)


def test_a_reader_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from nemo_axpo.data.questions import read_record\n\n\n"
        "def read(row, place):\n"
        "    if row['split'] == 'test':\n"
        "        return None\n"
        "    renamed = {'id': row['n'], 'question': row['q'], 'answer': row['a']}\n"
        "    return read_record(renamed, where=place.where, source='mine')\n"
    )
    rows = [{"n": 1, "q": "2+2?", "a": 4, "split": "train"}, {"n": 2, "q": "?", "a": 0, "split": "test"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    (record,) = records(tmp_path, path=path, reader=f"{tmp_path / 'mine.py'}:read")
    assert (record.id, record.answer, record.source) == ("1", "4", "mine")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("virl", "a reader must be one of schema, virl39k, .* got 'virl': correct the name"),
        ("gone.py:read", "a reader's file must exist"),
        ("no_such_module:read", "a reader's module must be importable"),
        ("json:read", "json must define the reader 'read'"),
    ],
)
def test_a_reader_that_is_not_there(name, message):
    with pytest.raises(ConfigError, match=message):
        get_reader(name)
