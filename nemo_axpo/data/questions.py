"""The question schema: one record for every data set and benchmark, and the rows it is read from and written to.

    id                 text or integer, unique in its file
    question           text of the one user turn; ``<image>`` marks where an image stands (without marks they come first)
    messages           instead of ``question``: chat turns ``{"role", "content"}``, the content text with ``<image>`` marks
                       or OpenAI parts ``{"type": "text", "text"}`` and ``{"type": "image"}``
    images             list of paths, bytes, base64 texts, data URLs or ``{"bytes", "path"}``; may be missing
    answer             reference answer, text or number
    candidate_answers  further answers that are as right; may be missing
    kind               what kind of question it is, in a word; may be missing
    source             name of the data source: chooses the verifier; may be missing where the reader is told

Example: ``{"id": "q7", "question": "<image>Which colour?", "images": ["q7.png"], "answer": "red", "source": "world"}``.
A record holds encoded images or paths; an image is decoded when its question is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_axpo.data.image_sources import ImageSource
from nemo_axpo.data.row_fields import RowFields
from nemo_axpo.errors import DataError, rule_message
from nemo_axpo.types import ImageId, ImagePart, Message, Question, TextPart

if TYPE_CHECKING:
    from nemo_axpo.data.images import ImageStore

FILES = "files"
"""``data.name`` of questions that are read from files."""
IMAGE_MARK = "<image>"
"""Where an image stands in the text of a question."""
FIELDS = ("id", "question", "messages", "images", "answer", "candidate_answers", "kind", "source")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class RecordMessage:
    """One chat turn. Example: ``RecordMessage("user", (0, "Which colour?"))`` shows the record's first image, then asks."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    parts: tuple[str | int, ...]
    """Text, or the index of an image of the record."""


@dataclass(frozen=True)
class QuestionRecord:
    """One question of a data file. Example: ``QuestionRecord("s1", (RecordMessage("user", ("2+3?",)),), "5", "sums")``."""

    id: str
    messages: tuple[RecordMessage, ...]
    answer: str
    """Reference answer as the verifier of ``source`` expects it."""
    source: str
    """Name of the data source; chooses the verifier."""
    images: tuple[ImageSource, ...] = ()
    """Every one is shown exactly once, in this order."""
    candidate_answers: tuple[str, ...] = ()
    """Further reference answers that are as right as ``answer``."""
    kind: str = ""
    """A word for breakdowns: a category, ``choice``, ``search``."""

    @property
    def text(self) -> str:
        """All text of the conversation, without the images."""
        return "\n".join(part for message in self.messages for part in message.parts if isinstance(part, str))

    def to_question(self, images: ImageStore) -> Question:
        """The question as a run asks it, its images decoded and given to ``images.add``. DataError for an image that is broken."""
        ids = [_store(source, images=images) for source in self.images]
        messages = tuple(
            Message(
                turn.role,
                tuple(TextPart(part) if isinstance(part, str) else ImagePart(ids[part]) for part in turn.parts),
            )
            for turn in self.messages
        )
        return Question(self.id, messages, self.answer, self.source, self.candidate_answers)

    def to_row(self) -> dict[str, Any]:
        """The row that reads back as this record; images as ``{"bytes", "path"}``, ``bytes`` None for a path."""
        images = [{"bytes": image.data, "path": image.path} for image in self.images]
        return {
            "id": self.id,
            "messages": [{"role": turn.role, "content": _content(turn)} for turn in self.messages],
            "images": images,
            "answer": self.answer,
            "candidate_answers": list(self.candidate_answers),
            "kind": self.kind,
            "source": self.source,
        }


def read_record(
    row: Mapping[str, Any], *, where: str, image_root: str | Path | None = None, source: str | None = None
) -> QuestionRecord:
    """The record in a row of the schema.

    ``where``: file and row, for messages. ``image_root``: directory that relative image paths start from. ``source``:
    data source of a row without one. DataError naming row and field for a field that is missing, misspelt or of the
    wrong type, for an image file that is not there, and for marks that do not fit the images.
    """
    fields = RowFields(row, where=where)
    fields.refuse_misspelt(FIELDS)
    images = fields.images("images", root=image_root)
    return QuestionRecord(
        id=fields.identifier("id"),
        messages=_messages(fields, num_images=len(images)),
        answer=fields.text("answer"),
        source=fields.optional_text("source") or source or fields.text("source"),
        images=images,
        candidate_answers=fields.texts("candidate_answers"),
        kind=fields.optional_text("kind"),
    )


def user_turn(text: str, *, num_images: int, where: str) -> tuple[RecordMessage, ...]:
    """The one user turn of a question: images where ``<image>`` marks stand, before the text where there are none.

    ``where``: file, row and field. DataError where marks and images differ in number, and for a turn without text.
    """
    return _place_images([("user", [*_pieces(text)])], num_images=num_images, where=where)


def conversation(fields: RowFields, name: str, *, num_images: int) -> tuple[RecordMessage, ...]:
    """The chat turns in the field ``name``, images placed as by :func:`user_turn`. DataError naming turn and field."""
    turns = [
        _turn(value, where=f"{fields.where}, field '{name}[{number}]'")
        for number, value in enumerate(fields.sequence(name))
    ]
    if not turns or turns[-1][0] != "user":
        raise fields.problem(name, "turns that end with one of the user", got=[role for role, _ in turns])
    return _place_images(turns, num_images=num_images, where=f"{fields.where}, field {name!r}")


def _messages(fields: RowFields, *, num_images: int) -> tuple[RecordMessage, ...]:
    if fields.has("question") == fields.has("messages"):
        got = "both" if fields.has("question") else "neither"
        rule = f"{fields.where} needs one of the fields 'question' and 'messages'"
        raise DataError(rule_message(rule, got=got, cure="keep one of them"))
    if fields.has("question"):
        return user_turn(fields.text("question"), num_images=num_images, where=f"{fields.where}, field 'question'")
    return conversation(fields, "messages", num_images=num_images)


def _turn(value: Any, *, where: str) -> tuple[str, list[str | None]]:
    """Role and pieces of a turn; None is an image."""
    turn = RowFields(value, where=where)
    role = turn.text("role")
    if role not in ROLES:
        raise turn.problem("role", f"one of {', '.join(ROLES)}", got=role)
    content = turn.value("content")
    if isinstance(content, str):
        return role, [*_pieces(content)]
    parts = [RowFields(part, where=f"{turn.where}, 'content[{i}]'") for i, part in enumerate(turn.sequence("content"))]
    return role, [_piece(part) for part in parts]


def _piece(part: RowFields) -> str | None:
    kind = part.text("type")
    if kind == "text":
        return part.text("text")
    if kind not in ("image", "image_url"):
        raise part.problem("type", "text or image", got=kind)
    return None


def _pieces(text: str) -> Iterator[str | None]:
    """Text between marks, None for a mark."""
    for number, piece in enumerate(text.split(IMAGE_MARK)):
        if number:
            yield None
        if piece.strip():
            yield piece


def _place_images(
    turns: list[tuple[str, list[str | None]]], *, num_images: int, where: str
) -> tuple[RecordMessage, ...]:
    """Numbers the images in reading order; without any mark they open the first user turn."""
    num_marks = sum(piece is None for _, pieces in turns for piece in pieces)
    if num_marks not in (0, num_images):
        rule = f"{where} must mark as many images ({IMAGE_MARK}) as the row has, or none"
        raise DataError(
            rule_message(rule, got=f"{num_marks} marks for {num_images} images", cure="correct the row or drop it")
        )
    if not any(piece for _, pieces in turns for piece in pieces):
        raise DataError(rule_message(f"{where} must hold text", got="none", cure="correct the row or drop it"))
    if num_images and not num_marks:
        first = next(number for number, (role, _) in enumerate(turns) if role == "user")
        turns[first][1][:0] = [None] * num_images
    index = iter(range(num_images))
    return tuple(
        RecordMessage(role, tuple(next(index) if piece is None else piece for piece in pieces))
        for role, pieces in turns
    )


def _content(turn: RecordMessage) -> list[dict[str, str]]:
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "text": ""}
        for part in turn.parts
    ]


def _store(source: ImageSource, *, images: ImageStore) -> ImageId:
    image = source.load()
    try:
        return images.add(image)
    except ValueError as error:
        cure = "crop the image, or drop the row"
        raise DataError(
            rule_message(f"{source.where} must be an image the model can see", got=error, cure=cure)
        ) from None
