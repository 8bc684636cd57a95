"""The embedded world's questions as a data file, for whoever wants to walk the whole pipeline on small ground."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nemo_axpo.data.questions import QuestionRecord, RecordMessage
from nemo_axpo.world.questions import SOURCE, QuestionStream, question_text

FILE = "questions.jsonl"


def write_questions(directory: str | Path, stream: QuestionStream, *, count: int) -> Path:
    """Writes questions 0 to ``count`` of a stream as ``questions.jsonl`` with ``images/``; returns the file.

    Their ids are the stream's, so that the scripted teacher finds the scene behind each.
    """
    path = Path(directory)
    (path / "images").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_row(path, stream, index)) + "\n" for index in range(count)]
    temporary = path / f".{FILE}.{os.getpid()}"
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, path / FILE)
    return path / FILE


def _row(directory: Path, stream: QuestionStream, index: int) -> dict[str, object]:
    world_question = stream.world_question(index)
    question = world_question.question
    name = f"images/{question.question_id}.png"
    world_question.scene.image.save(directory / name)
    text = question_text(row=world_question.row, column=world_question.column)
    record = QuestionRecord(question.question_id, (RecordMessage("user", (0, text)),), question.answer, SOURCE)
    return record.to_row() | {"images": [name]}
