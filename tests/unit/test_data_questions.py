"""The question schema: every form of a field it accepts, and what it says of every form it does not."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from nemo_axpo.data.image_sources import ImageSource, image_source
from nemo_axpo.data.images import ImageStore, build_image_processor
from nemo_axpo.data.questions import QuestionRecord, RecordMessage, read_record
from nemo_axpo.errors import DataError
from nemo_axpo.types import ImagePart, Message, Question, TextPart

ROW: dict[str, Any] = {"id": "q7", "question": "Which colour?", "answer": "red", "source": "world"}
WHERE = "train.jsonl row 3"


def png(colour: str = "red", *, size: tuple[int, int] = (40, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def read(changes: dict[str, Any] | None = None, *, without: tuple[str, ...] = (), **options: Any) -> QuestionRecord:
    row = {name: value for name, value in (ROW | (changes or {})).items() if name not in without}
    return read_record(row, where=WHERE, **options)


def test_a_plain_row() -> None:
    expected = QuestionRecord("q7", (RecordMessage("user", ("Which colour?",)),), "red", "world")
    assert read() == expected
    assert expected.text == "Which colour?"


def test_images_stand_where_they_are_marked_and_before_the_text_otherwise() -> None:
    images = [png("red"), png("blue")]
    marked = read({"question": "Compare <image> with <image>.", "images": images})
    assert marked.messages[0].parts == ("Compare ", 0, " with ", 1, ".")
    assert read({"images": images}).messages[0].parts == (0, 1, "Which colour?")


def test_messages_in_both_forms() -> None:
    typed = [{"type": "image"}, {"type": "text", "text": "What?"}]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look: <image>"},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": typed},
    ]
    record = read({"messages": turns, "images": [png(), png()]}, without=("question",))
    assert [(turn.role, turn.parts) for turn in record.messages] == [
        ("system", ("Be brief.",)),
        ("user", ("Look: ", 0)),
        ("assistant", ("I see.",)),
        ("user", (1, "What?")),
    ]


def test_every_form_of_an_image_is_the_same_image(tmp_path) -> None:
    data = png(size=(64, 32))
    (tmp_path / "a.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    forms = [
        "a.png",
        str(tmp_path / "a.png"),
        data,
        text,
        f"data:image/png;base64,{text}",
        {"bytes": data, "path": "a.png"},
        {"bytes": text, "path": None},
        {"bytes": None, "path": "a.png"},
    ]
    sources = [image_source(form, where="here", root=tmp_path) for form in forms]
    assert [source.read_bytes() for source in sources] == [data] * len(forms)
    assert all(source.load().size == (64, 32) for source in sources)


def test_a_long_path_is_not_taken_for_base64(tmp_path) -> None:
    name = "0123456789abcdef" * 6
    (tmp_path / name).write_bytes(png())
    assert image_source(name, where="here", root=tmp_path) == ImageSource(path=str(tmp_path / name))


def test_answers_are_text_and_numbers() -> None:
    record = read({"answer": 7.0, "candidate_answers": ["seven", 7, "", "seven"], "kind": "sum"})
    assert (record.answer, record.candidate_answers, record.kind) == ("7", ("seven", "7"), "sum")
    assert read({"answer": 0.5}).answer == "0.5"


def test_a_row_without_source_takes_the_readers() -> None:
    assert read(without=("source",), source="mine").source == "mine"
    assert read(source="mine").source == "world"


def test_unknown_fields_are_left_alone_unless_they_look_like_one_of_ours() -> None:
    assert read({"difficulty": 3, "candidate_answers": ["rot"], "answers_given": 2}).candidate_answers == ("rot",)
    with pytest.raises(DataError, match=r"row 3 must name.*'candidate_answer': call it 'candidate_answers'"):
        read({"candidate_answer": ["rot"]})


@pytest.mark.parametrize(
    ("changes", "without", "message"),
    [
        ({}, ("answer",), r"train.jsonl row 3 needs the field 'answer'; got fields id, question, source"),
        ({"answer": None}, (), "needs the field 'answer'"),
        ({"answer": "  "}, (), "field 'answer' must be text or a number that is not blank; got str '  '"),
        ({"answer": True}, (), "field 'answer' must be text or a number"),
        ({"answer": float("nan")}, (), "field 'answer' must be text or a number"),
        ({"answer": ["red"]}, (), r"field 'answer' must be text .* got list \['red'\]"),
        ({}, ("id",), "needs the field 'id'"),
        ({"id": 1.5}, (), "field 'id' must be text or an integer; got float 1.5"),
        ({}, ("source",), "needs the field 'source'"),
        ({}, ("question",), "needs one of the fields 'question' and 'messages'; got neither"),
        ({"messages": []}, (), "got both"),
        ({"question": 5.5, "images": 3}, (), "field 'images' must be a list; got int 3"),
        ({"question": "<image>"}, (), "must mark as many images .* got 1 marks for 0 images"),
        ({"question": "<image>", "images": [b"x"]}, (), "must hold text"),
        ({"images": ["gone.png"]}, (), r"field 'images\[0\]' must be an image file that exists; got gone.png"),
        ({"images": [{"path": None, "bytes": None}]}, (), r"field 'images\[0\]' must hold bytes or a path"),
        ({"images": [7]}, (), r"field 'images\[0\]' must be a path, bytes"),
        ({"images": ["data:image/png;base64,@@"]}, (), "must hold whole base64"),
        ({"candidate_answers": "rot"}, (), "field 'candidate_answers' must be a list; got str 'rot'"),
        ({"candidate_answers": [{}]}, (), r"field 'candidate_answers\[0\]' must be text or a number"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            ("question",),
            r"'messages\[0\]', field 'role' must be one of",
        ),
        ({"messages": [{"role": "assistant", "content": "x"}]}, ("question",), "turns that end with one of the user"),
        ({"messages": ["hello"]}, ("question",), r"'messages\[0\]' must be an object with fields; got str 'hello'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            ("question",),
            r"'content\[0\]', field 'type' must be text or image",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_row(changes: dict[str, Any], without: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(changes, without=without)


def test_a_record_reads_back_from_its_row() -> None:
    record = read(
        {"question": "Is <image> as <image>?", "images": [png("red"), png("blue")], "candidate_answers": ["rot"]}
    )
    assert read_record(record.to_row(), where="again") == record


def test_a_row_survives_json_where_its_images_are_files(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    record = read({"images": ["a.png"]}, image_root=tmp_path)
    assert read_record(json.loads(json.dumps(record.to_row())), where="again") == record


def test_the_question_of_a_record_and_its_stored_image() -> None:
    store = ImageStore(build_image_processor(patch_size=16, merge_size=2, temporal_patch_size=2))
    question = read({"images": [png()], "candidate_answers": ["rot"]}).to_question(store)
    (image_id,) = question.image_ids
    messages = (Message("user", (ImagePart(image_id), TextPart("Which colour?"))),)
    assert question == Question("q7", messages, "red", "world", ("rot",))
    assert store.image(image_id).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png()[:40], r"row 3, field 'images\[0\]' must be a whole image"),
        (b"no image", r"row 3, field 'images\[0\]' must be a whole image"),
        (png(size=(402, 2)), r"row 3, field 'images\[0\]' must be an image the model can see.*200 times"),
    ],
)
def test_a_broken_image_is_named_when_its_question_is_asked(data: bytes, message: str) -> None:
    store = ImageStore(build_image_processor(patch_size=16, merge_size=2, temporal_patch_size=2))
    with pytest.raises(DataError, match=message):
        read({"images": [data]}).to_question(store)
