"""Trajectories on disk: the very token ids that were sampled, so that they train token for token.

    trajectories.parquet    one row a trajectory, its turns as lists of token ids
    images/<id>.png         the pictures of questions and tools
    origin.json             who sampled them, and what the ids mean: fingerprints of tokenizer and image processor

A turn is what was new before it (the prompt, then observations) and what the model sampled: ids, and its images in order.
Nothing is rendered or tokenised again on the way to the trainer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from nemo_axpo.errors import DataError, rule_message
from nemo_axpo.types import ImageId, Question, Rollout, TrainingSample

ROWS_FILE, ORIGIN_FILE, IMAGES_DIRECTORY = "trajectories.parquet", "origin.json", "images"
_TURN = pyarrow.struct(
    [
        ("prompt_ids", pyarrow.list_(pyarrow.int32())),
        ("image_ids", pyarrow.list_(pyarrow.string())),
        ("token_ids", pyarrow.list_(pyarrow.int32())),
        ("finish_reason", pyarrow.string()),
        ("tool", pyarrow.string()),
    ]
)
SCHEMA = pyarrow.schema(
    [
        ("trajectory_id", pyarrow.string()),
        ("question_id", pyarrow.string()),
        ("source", pyarrow.string()),
        ("answer", pyarrow.string()),
        ("uses_tool", pyarrow.bool_()),
        ("num_tokens", pyarrow.int32()),
        ("turns", pyarrow.list_(_TURN)),
    ]
)
_ROW_GROUP = 512


@dataclass(frozen=True)
class TrajectoryTurn:
    """One model segment. Example: ``TrajectoryTurn((1, 2), ("3fa9…",), (7, 8), "stop", "image_zoom_in")``."""

    prompt_ids: tuple[int, ...]
    """What was new before it: the rendered prompt, or an observation."""
    image_ids: tuple[ImageId, ...]
    """Images in ``prompt_ids``, in placeholder order."""
    token_ids: tuple[int, ...]
    """What the model sampled, the stop token included."""
    finish_reason: str = "stop"
    tool: str = ""
    """Name of the tool called in it; empty without a call."""


@dataclass(frozen=True)
class Trajectory:
    """One rollout to be imitated."""

    trajectory_id: str
    question_id: str
    source: str
    answer: str
    """As it was extracted."""
    turns: tuple[TrajectoryTurn, ...]

    @property
    def uses_tool(self) -> bool:
        """Whether a tool was called."""
        return any(turn.tool for turn in self.turns)

    @property
    def num_tokens(self) -> int:
        """Of the whole row."""
        return sum(len(turn.prompt_ids) + len(turn.token_ids) for turn in self.turns)

    @property
    def image_ids(self) -> tuple[ImageId, ...]:
        """Images in placeholder order."""
        return tuple(image_id for turn in self.turns for image_id in turn.image_ids)

    def to_row(self) -> dict[str, Any]:
        """A row of ``trajectories.parquet``."""
        return {**asdict(self), "uses_tool": self.uses_tool, "num_tokens": self.num_tokens}

    def to_sample(self) -> TrainingSample:
        """The row as the actor trains it: loss on the sampled tokens alone."""
        token_ids: list[int] = []
        mask: list[bool] = []
        for turn in self.turns:
            token_ids += [*turn.prompt_ids, *turn.token_ids]
            mask += [False] * len(turn.prompt_ids) + [True] * len(turn.token_ids)
        zeros = (0.0,) * len(mask)
        return TrainingSample(
            rollout_id=self.trajectory_id,
            question_id=self.question_id,
            token_ids=tuple(token_ids),
            loss_mask=tuple(mask),
            advantages=zeros,
            engine_logprobs=zeros,
            image_ids=self.image_ids,
        )


@dataclass(frozen=True)
class Origin:
    """Where trajectories come from; the student must read ids and pictures in the same way."""

    teacher: str
    tokenizer: str
    """Fingerprint of the vocabulary."""
    image_processor: str
    """Fingerprint of what decides an image's number of tokens."""
    tools: tuple[str, ...]


def trajectory_of(rollout: Rollout, *, question: Question) -> Trajectory:
    """The trajectory of a finished rollout."""
    turns = tuple(
        TrajectoryTurn(
            turn.prompt_delta.token_ids,
            turn.prompt_delta.image_ids,
            turn.completion.token_ids,
            turn.completion.finish_reason,
            (turn.tool_call.name or "unreadable") if turn.tool_call else "",
        )
        for turn in rollout.turns
    )
    return Trajectory(rollout.rollout_id, question.question_id, question.source, rollout.answer or "", turns)


def trajectory_from_row(row: Mapping[str, Any]) -> Trajectory:
    """The trajectory in a row. KeyError for a row that is none."""
    turns = tuple(
        TrajectoryTurn(
            tuple(turn["prompt_ids"]),
            tuple(turn["image_ids"]),
            tuple(turn["token_ids"]),
            turn["finish_reason"],
            turn["tool"],
        )
        for turn in row["turns"]
    )
    return Trajectory(row["trajectory_id"], row["question_id"], row["source"], row["answer"], turns)


def write_trajectories(directory: str | Path, trajectories: Iterable[Trajectory], *, origin: Origin) -> int:
    """Writes ``trajectories.parquet`` and ``origin.json``, each whole or not at all; returns the number of rows.

    The images must lie in the directory already.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / f".{ROWS_FILE}.{os.getpid()}"
    count = 0
    with pyarrow.parquet.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for rows in _groups(trajectories):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA))
            count += len(rows)
    (path / ORIGIN_FILE).write_text(json.dumps(asdict(origin), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path / ROWS_FILE)
    return count


def read_origin(directory: str | Path) -> Origin:
    """DataError where the directory holds no trajectories."""
    path = Path(directory) / ORIGIN_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Origin(values["teacher"], values["tokenizer"], values["image_processor"], tuple(values["tools"]))
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        cure = "give the --output-dir of a finished `nemo-axpo distill`"
        rule = f"{directory} must hold trajectories ({ROWS_FILE}, {ORIGIN_FILE})"
        raise DataError(rule_message(rule, got=repr(error), cure=cure)) from None


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Of the vocabulary: equal ids mean equal text."""
    return _digest(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def image_processor_fingerprint(image_processor: Any) -> str:
    """Of what decides how many tokens an image is."""
    names = ("patch_size", "merge_size", "temporal_patch_size", "size", "min_pixels", "max_pixels")
    return _digest({name: _plain(getattr(image_processor, name, None)) for name in names})


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _groups(trajectories: Iterable[Trajectory]) -> Iterator[Sequence[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for trajectory in trajectories:
        rows.append(trajectory.to_row())
        if len(rows) == _ROW_GROUP:
            yield rows
            rows = []
    if rows:
        yield rows
