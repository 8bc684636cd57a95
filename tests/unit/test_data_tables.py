"""Files of rows through HF datasets: every form is read, and what is broken is named with its place."""

from __future__ import annotations

import json
import os

import datasets
import pytest
from data_files import encoded, picture, schema_rows, write_jsonl, write_parquet

from nemo_axpo.data.tables import open_streams, open_tables
from nemo_axpo.errors import DataError

LINES = [{"id": 1, "question": "2+2?"}, {"id": "b", "messages": [{"role": "user", "content": [{"type": "image"}]}]}]


def tables(tmp_path, path):
    return open_tables(str(path), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_json_keeps_types_that_differ_from_row_to_row(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps(LINES) if name == "rows.json" else "\n".join(map(json.dumps, LINES)))
    (table,) = tables(tmp_path, path)
    first, second = table.rows(0, 2)
    assert (first["id"], second["id"], first.get("messages")) == (1, "b", None)
    assert second["messages"][0]["content"][0]["type"] == "image"
    assert (table.where(1), table.directory) == (f"{path} row 2", tmp_path)


def test_images_stay_encoded_also_where_the_file_calls_them_images(tmp_path):
    data = encoded(picture())
    rows = datasets.Dataset.from_list([{"id": "a", "images": [{"bytes": data, "path": None}]}])
    rows.cast_column("images", datasets.List(datasets.Image())).to_parquet(tmp_path / "a.parquet")
    (table,) = tables(tmp_path, tmp_path / "a.parquet")
    assert table.rows(0, 1)[0]["images"] == [{"bytes": data, "path": None}]
    ((_, row),) = open_streams(str(tmp_path / "a.parquet"))[0].rows()
    assert row["images"] == [{"bytes": data, "path": None}]


def test_a_directory_and_a_pattern_are_their_files(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deeper/c.jsonl"):
        write_jsonl(tmp_path / "data" / name, schema_rows(2))
    (tmp_path / "data" / "README.md").write_text("#")
    names = [table.name.rpartition("/")[2] for table in tables(tmp_path, tmp_path / "data")]
    assert names == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert len(tables(tmp_path, tmp_path / "data" / "?.jsonl")) == 2


def test_a_truncated_parquet_file(tmp_path):
    path = tmp_path / "half.parquet"
    write_parquet(path, schema_rows(100))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"half.parquet must be a whole Parquet file; got .*: restore the file"):
        tables(tmp_path, path)


def test_a_damaged_row_group_is_named_with_its_rows(tmp_path):
    path = tmp_path / "damaged.parquet"
    write_parquet(path, [{"id": os.urandom(40).hex()} for _ in range(400)], row_group_size=100)
    content = bytearray(path.read_bytes())
    start = len(content) * 3 // 8
    content[start : start + 600] = bytes(byte ^ 0xFF for byte in content[start : start + 600])
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows 101 to 200 \(row group 1\) are not.*restore the file"):
        tables(tmp_path, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 1}\n{"id": 2}\n{"id":', r"line 3 must be a JSON object; .*: remove the half-written last line"),
        ('{"id": 1}\n{"id"; 2}\n{"id": 3}\n', r"line 2 must be a JSON object; .*: correct the line"),
        ('[{"id": 1}, {"id"', r"must be a whole JSON list; .*: restore the file"),
    ],
)
def test_broken_json_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        tables(tmp_path, tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="rows.jsonl must be readable after row"):
        list(open_streams(str(tmp_path / "rows.jsonl"))[0].rows())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.jsonl", "a data path must be a file, a directory or pattern"),
        ("data/gone.parquet", "a data path must be a file, a directory or pattern"),
        ("table.csv", "a data file must end with .parquet, .jsonl, .json"),
        (".", "a data path must be a file"),
    ],
)
def test_a_path_without_data(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("id\n")
    with pytest.raises(DataError, match=message):
        open_tables(path)


def test_a_hub_data_set_that_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"the hub data set nobody/nothing, split 'train', must be readable.*download it"
    ):
        open_tables("nobody/nothing", cache_dir=str(tmp_path))
