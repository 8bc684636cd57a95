"""Questions of files as a stream: epochs, held-out questions, kept ids, and two files at once."""

from __future__ import annotations

import json

import pytest
from data_files import encoded, picture, schema_rows, write_jsonl

from nemo_axpo.config.checks import check_config
from nemo_axpo.config.load import load_config
from nemo_axpo.config.schema import DataConfig
from nemo_axpo.data.file_questions import build_file_questions
from nemo_axpo.data.images import ImageStore
from nemo_axpo.errors import ConfigError, DataError
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor

NUM = 20


@pytest.fixture(name="build")
def build_fixture(tmp_path):
    """A stream of NUM questions, or of these files."""

    def build(stream="train", *, seed=0, files=None, **section):
        if files is None:
            files = [{"path": write_jsonl(tmp_path / "rows.jsonl", schema_rows(NUM))}]
        config = DataConfig(name="files", files=files, cache_dir=str(tmp_path / "cache"), **section)
        return build_file_questions(config, stream=stream, seed=seed, images=ImageStore(tiny_image_processor()))

    return build


def ids(questions):
    return [question.question_id for question in questions]


def test_training_and_held_out_questions_divide_the_files(build):
    train, held_out = build(held_out=0.2), build("eval", held_out=0.2)
    assert (len(train), len(held_out)) == (16, 4)
    asked = ids(train.take(0, 16)) + ids(held_out.take(0, 4))
    assert sorted(asked) == sorted(f"q{i}" for i in range(NUM))
    assert ids(held_out.take(0, 300)) == ids(held_out.take(0, 4))  # it stops, and does not begin anew


def test_every_epoch_asks_each_question_once_in_another_order_and_under_ids_of_its_own(build):
    train = build(held_out=0.2)
    asked = ids(train.take(0, 48))
    epochs = [
        asked[:16],
        [name.removesuffix("~1") for name in asked[16:32]],
        [n.removesuffix("~2") for n in asked[32:]],
    ]
    assert len(set(asked)) == 48 and all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_an_index_is_the_same_question_in_every_process_and_after_a_resume(build):
    assert ids(build().take(0, 40))[25:30] == ids(build().take(25, 5))
    assert ids(build(seed=1).take(0, 10)) != ids(build().take(0, 10))


def test_without_shuffling_the_order_is_the_files(build):
    assert ids(build(shuffle=False, held_out=0.0).take(0, 5)) == ["q0", "q1", "q2", "q3", "q4"]


def test_evaluation_files_take_the_place_of_held_out_questions(build, tmp_path):
    other = [row | {"id": f"e{row['id']}"} for row in schema_rows(3)]
    files = [{"path": write_jsonl(tmp_path / "eval.jsonl", other)}]
    assert len(build(eval_files=files)) == NUM
    assert sorted(ids(build("eval", eval_files=files).take(0, 9))) == ["eq0", "eq1", "eq2"]
    with pytest.raises(ConfigError, match="the stream 'eval' must have questions.*give data.eval_files"):
        build("eval", held_out=0.0)


def test_kept_ids_and_a_number_of_questions(build, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", schema_rows(NUM))
    keep = write_jsonl(tmp_path / "kept.jsonl", [{"id": f"q{i}"} for i in (3, 5, 8)])
    assert sorted(ids(build(files=[{"path": path, "keep": keep}], held_out=0.0).take(0, 3))) == ["q3", "q5", "q8"]
    few = [build(files=[{"path": path, "max_questions": 7}], held_out=0.0, seed=seed).take(0, 7) for seed in (0, 1)]
    assert sorted(ids(few[0])) == sorted(ids(few[1])) and len(set(ids(few[0]))) == 7
    (tmp_path / "broken.jsonl").write_text('{"id": "q3"}\n{"q": 5}\n')
    with pytest.raises(DataError, match="broken.jsonl line 2 must be an object with an id"):
        build(files=[{"path": path, "keep": str(tmp_path / "broken.jsonl")}])


def test_a_bad_row_ends_it_unless_a_list_says_what_is_kept(build, tmp_path, caplog):
    rows = schema_rows(4)
    rows[2]["answer"] = None
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match="bad.jsonl row 3 needs the field 'answer'"):
        build(files=[{"path": path}])
    keep = write_jsonl(tmp_path / "usable.jsonl", [{"id": name} for name in ("q0", "q1", "q3")])
    assert sorted(ids(build(files=[{"path": path, "keep": keep}], held_out=0.0).take(0, 3))) == ["q0", "q1", "q3"]
    assert "1 rows cannot be used, the first: " in caplog.text and "row 3 needs the field 'answer'" in caplog.text


def test_two_sources_are_mixed_and_know_their_verifier(build, tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", schema_rows(6, source="one"))
    rows = [{k: v for k, v in row.items() if k != "source"} | {"id": f"x{row['id']}"} for row in schema_rows(6)]
    two = write_jsonl(tmp_path / "two.jsonl", rows)
    questions = build(files=[{"path": one}, {"path": two, "source": "two"}], held_out=0.0).take(0, 12)
    assert {question.source for question in questions if question.question_id.startswith("x")} == {"two"}
    assert [question.source for question in questions] != sorted(question.source for question in questions)


def test_ids_that_occur_twice_are_refused(build, tmp_path):
    one, two = (write_jsonl(tmp_path / name, schema_rows(2)) for name in ("one.jsonl", "two.jsonl"))
    with pytest.raises(DataError, match=r"'q0' in .*one.jsonl row 1 and .*two.jsonl row 1: change one"):
        build(files=[{"path": one}, {"path": two}])


def test_images_are_stored_when_their_question_is_asked(build, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    rows = [row | {"images": ["a.png"]} for row in schema_rows(2)]
    stream = build(files=[{"path": write_jsonl(tmp_path / "rows.jsonl", rows)}], held_out=0.0)
    assert len(stream._images) == 0
    (question,) = stream.take(0, 1)
    assert stream._images.image(question.image_ids[0]).size == picture().size


def test_a_stream_is_the_same_questions_without_a_table(build, tmp_path):
    files = [{"path": write_jsonl(tmp_path / "rows.jsonl", schema_rows(NUM)), "max_questions": 15}]
    section = {"files": files, "eval_files": files, "streaming": True, "shuffle_buffer": 4}
    asked = ids(build(**section).take(0, 30))
    assert sorted(asked[:15]) == sorted(f"q{i}" for i in range(15)) and asked[:15] != sorted(asked[:15])
    assert sorted(asked[15:]) == sorted(f"q{i}~1" for i in range(15))
    assert ids(build(**section).take(20, 5)) == asked[20:25]  # after a resume
    stream = build(**section)
    assert ids(stream.take(4, 4)) + ids(stream.take(8, 2)) + ids(stream.take(0, 2)) == asked[4:10] + asked[:2]
    assert ids(build(**section | {"shuffle": False}).take(0, 3)) == ["q0", "q1", "q2"]


def test_a_bad_row_of_a_stream_is_named_when_it_comes(build, tmp_path):
    rows = [*schema_rows(3), {"id": "q9", "question": "?"}]
    files = [{"path": write_jsonl(tmp_path / "rows.jsonl", rows)}]
    stream = build(files=files, eval_files=files, streaming=True, shuffle=False)
    assert ids(stream.take(0, 3)) == ["q0", "q1", "q2"]
    with pytest.raises(DataError, match="rows.jsonl row 4 needs the field 'answer'"):
        stream.take(3, 1)


def test_rows_of_the_schema_with_every_field(build, tmp_path):
    row = {
        "id": 7,
        "messages": [{"role": "user", "content": "Say it."}],
        "images": None,
        "answer": "yes",
        "candidate_answers": ["yeah"],
        "kind": "chat",
        "source": "mine",
    }
    (question,) = build(files=[{"path": write_jsonl(tmp_path / "rows.jsonl", [row])}], held_out=0.0).take(0, 1)
    assert (question.question_id, question.answers, json.dumps(question.source)) == ("7", ("yes", "yeah"), '"mine"')


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data=files"], "data.name=files needs data.files; got none"),
        (["data=files", "data.files=[{path: a.jsonl}]", "data.streaming=true"], "data.streaming needs data.eval_files"),
        (
            [
                "data=files",
                "data.files=[{path: a.jsonl, keep: k}]",
                "data.streaming=true",
                "data.eval_files=[{path: b}]",
            ],
            r"data.files\[\].keep is for questions that are not streamed",
        ),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_config(load_config(settings))
    check_config(load_config(["data=paper", "rewards.judge.key_variable=null"]))
