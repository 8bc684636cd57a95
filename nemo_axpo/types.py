"""Every record that crosses a stage of the training loop.

    Question ──▶ Rollout × N ──▶ RolloutGroup ──▶ ResamplePlan ──▶ Resample × K ──▶ Credit ──▶ TrainingSample

The running example of this file: question ``q7`` was rolled out N = 4 times. Rollouts ``q7/0`` and ``q7/2`` answered
directly (wrong, right), ``q7/1`` and ``q7/3`` called the tool (both wrong). Every tool-using rollout is wrong, so the
question triggers; the plan selects the less confident source, ``q7/3``, and K = 2 continuations are drawn from its
thinking prefix. One of them is right.

Only standard-library imports: the algorithms, the tools and the readers of a run directory never load torch for a type.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ImageId = str
"""Content hash of an image (``ImageStore.add``); a record carries the id, the store holds the pixels once."""


# ------------------------------------------------------------------------------------------------------ messages
@dataclass(frozen=True)
class TextPart:
    """A piece of text inside a message."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """An image inside a message."""

    image_id: ImageId


@dataclass(frozen=True)
class Message:
    """One chat turn. Example: ``Message("user", (ImagePart("3fa9…"), TextPart("Which colour …?")))``."""

    role: str
    """``system``, ``user``, ``assistant`` or ``tool``; a tool message is rendered as a ``<tool_response>`` user turn."""
    parts: tuple[TextPart | ImagePart, ...]

    @property
    def image_ids(self) -> tuple[ImageId, ...]:
        """Ids of the images of this message, in order."""
        return tuple(part.image_id for part in self.parts if isinstance(part, ImagePart))


@dataclass(frozen=True)
class Question:
    """One prompt with its reference answer. Example: ``Question("q7", (Message("user", …),), "red", "world")``."""

    question_id: str
    """Unique within a run; groups are formed by this id, never by comparing prompt tokens."""
    messages: tuple[Message, ...]
    """Conversation before the first model turn (without the tool-bearing system turn, which the renderer adds)."""
    answer: str
    """Reference answer as the verifier expects it."""
    source: str
    """Name of the data source; chooses the verifier."""
    other_answers: tuple[str, ...] = ()
    """Further reference answers that are as right as ``answer``: spellings, synonyms."""

    @property
    def answers(self) -> tuple[str, ...]:
        """Every reference answer."""
        return (self.answer, *self.other_answers)

    @property
    def image_ids(self) -> tuple[ImageId, ...]:
        """Ids of all images of the question, in reading order."""
        return tuple(image_id for message in self.messages for image_id in message.image_ids)


@dataclass(frozen=True)
class RenderedTokens:
    """Token ids with every image placeholder already expanded to its grid, and the images in placeholder order."""

    token_ids: tuple[int, ...]
    image_ids: tuple[ImageId, ...] = ()

    def __add__(self, other: RenderedTokens) -> RenderedTokens:
        return RenderedTokens(self.token_ids + other.token_ids, self.image_ids + other.image_ids)


# ---------------------------------------------------------------------------------------------------- generation
@dataclass(frozen=True)
class SamplingParams:
    """How one completion is sampled; the defaults are the training settings of the paper (temperature 1)."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 is greedy decoding (its log-probs are those of temperature 1)."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    presence_penalty: float = 0.0
    """In [-2, 2]: subtracted, before the temperature, from the logits of tokens this completion already holds."""


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to sample after ``prompt``. Token ids in, token ids out: no text crosses an engine."""

    request_id: str
    prompt: RenderedTokens
    sampling: SamplingParams
    seed: int
    """64-bit seed of this request alone: the completion does not depend on what else is in the batch."""


@dataclass(frozen=True)
class Completion:
    """What an engine sampled. Example: ``Completion((151667, 198, …, 151645), (-0.02, …), "stop", 12)``."""

    token_ids: tuple[int, ...]
    """Sampled ids, the stop token included."""
    logprobs: tuple[float, ...]
    """Natural-log probability under the distribution each token was sampled from; as long as ``token_ids``."""
    finish_reason: str
    """``stop`` (a stop token was sampled), ``length`` (``max_new_tokens`` reached) or ``aborted``."""
    policy_version: int
    """Version of the weights that sampled it."""


# -------------------------------------------------------------------------------------------------------- tools
@dataclass(frozen=True)
class ToolCall:
    """The first tool call of one completion, as parsed from its token ids."""

    start: int
    """Index in the completion of the first token after the ``<tool_call>`` token."""
    stop: int
    """Index one past the ``</tool_call>`` token (one past the last token where the call was never closed)."""
    name: str = ""
    """Tool name; empty where the call could not be parsed."""
    arguments: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """Why the call cannot be executed, in words the model can act on; empty for a well-formed call."""
    error_kind: str = ""
    """Short machine-readable kind (``unclosed``, ``bad_json``, ``unknown_tool``, ``bad_arguments``); empty without error."""


@dataclass(frozen=True)
class ToolResult:
    """The observation a tool returned. A failing tool is data: ``error`` is set and ``text`` tells the model."""

    text: str
    image_ids: tuple[ImageId, ...] = ()
    error: str = ""
    """Short machine-readable kind (``bad_json``, ``unknown_tool``, ``bad_arguments``, ``timeout`` …); empty on success."""
    latency_s: float = 0.0


# ------------------------------------------------------------------------------------------------------ rollouts
class RolloutStatus(enum.StrEnum):
    """How a rollout ended."""

    ANSWERED = "answered"
    """The last turn ended without a tool call (whether or not an answer could be extracted)."""
    TURN_LIMIT = "turn_limit"
    """A tool call in the last allowed turn: the rollout stays unanswered, hence wrong."""
    TOKEN_LIMIT = "token_limit"
    """A completion or the whole row ran out of tokens."""
    TIME_LIMIT = "time_limit"
    LOST = "lost"
    """Infrastructure failed (engine or tool server down): excluded from its group and retried, never wrong."""


@dataclass(frozen=True)
class Turn:
    """One model segment with what led to it. ``prompt_delta`` is everything new since the previous completion."""

    prompt_delta: RenderedTokens
    """Turn 1: the whole prompt. Later turns: the rendered observation, its images included."""
    completion: Completion
    """In turn 1 of a continuation this holds the frozen model tokens of the prefix too, with the source's log-probs."""
    tool_call: ToolCall | None = None
    tool_result: ToolResult | None = None


@dataclass(frozen=True)
class ThinkingPrefix:
    """A source rollout cut after the opening ``<tool_call>`` token of its first call (ALGORITHM §4).

    Example: ``ThinkingPrefix("q7/3", "q7", prompt, completion_prefix, confidence=0.31)``.
    """

    source_rollout_id: str
    question_id: str
    prompt: RenderedTokens
    """The question's rendered prompt."""
    completion: Completion
    """Frozen model tokens: thinking up to and including ``<tool_call>``; finish_reason ``prefix``."""
    confidence: float
    """Mean sampling probability of the source's first call after ``<tool_call>`` through ``</tool_call>``; in [0, 1]."""

    @property
    def num_tokens(self) -> int:
        """Row index of the first token that belongs to the continuation."""
        return len(self.prompt.token_ids) + len(self.completion.token_ids)


@dataclass(frozen=True)
class Rollout:
    """One finished row: prompt, model tokens, observations. A continuation carries the prefix it started from."""

    rollout_id: str
    """``<question>/<n>``; a continuation is ``<source rollout>/k<k>``. Example: ``q7/3`` and ``q7/3/k0``."""
    question_id: str
    turns: tuple[Turn, ...]
    status: RolloutStatus
    answer: str | None = None
    """Extracted final answer; None where none was given."""
    reward: float = 0.0
    """1 correct, 0 wrong; set by the verifier."""
    prefix: ThinkingPrefix | None = None
    """Set for a continuation; None for an ordinary rollout."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The whole row, length T."""
        return tuple(t for turn in self.turns for t in (*turn.prompt_delta.token_ids, *turn.completion.token_ids))

    @property
    def image_ids(self) -> tuple[ImageId, ...]:
        """Images in placeholder order."""
        return tuple(i for turn in self.turns for i in turn.prompt_delta.image_ids)

    @property
    def model_mask(self) -> tuple[bool, ...]:
        """Length T; True where the policy sampled the token (prompt and observations are False)."""
        mask: list[bool] = []
        for turn in self.turns:
            mask += [False] * len(turn.prompt_delta.token_ids) + [True] * len(turn.completion.token_ids)
        return tuple(mask)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Length T; engine log-probs at model tokens, 0.0 elsewhere."""
        values: list[float] = []
        for turn in self.turns:
            values += [0.0] * len(turn.prompt_delta.token_ids) + list(turn.completion.logprobs)
        return tuple(values)

    @property
    def uses_tool(self) -> bool:
        """Whether at least one tool call was begun (malformed calls count: they are failures to repair)."""
        return any(turn.tool_call is not None for turn in self.turns)


@dataclass(frozen=True)
class RolloutGroup:
    """The N ordinary rollouts of one question (fewer where some were lost to infrastructure)."""

    question: Question
    rollouts: tuple[Rollout, ...]

    @property
    def tool_using(self) -> tuple[Rollout, ...]:
        """The tool-using subgroup S of ALGORITHM §3."""
        return tuple(rollout for rollout in self.rollouts if rollout.uses_tool)

    @property
    def all_wrong(self) -> bool:
        """The AXPO trigger: S is non-empty and none of S is correct. No-tool rollouts do not matter."""
        return bool(self.tool_using) and not any(rollout.reward > 0 for rollout in self.tool_using)


# ------------------------------------------------------------------------------------- scalars the algorithms see
@dataclass(frozen=True)
class RolloutScore:
    """All an algorithm knows of an ordinary rollout: scalars, so that ranks can exchange them.

    Example: ``RolloutScore("q7", "q7/3", reward=0.0, uses_tool=True, confidence=0.31)``.
    """

    question_id: str
    rollout_id: str
    reward: float
    uses_tool: bool
    confidence: float = float("nan")
    """In [0, 1]; NaN where no tool was called."""


@dataclass(frozen=True)
class ResampleScore:
    """All an algorithm knows of one continuation. Example: ``ResampleScore("q7/3", "q7/3/k1", reward=1.0)``."""

    source_rollout_id: str
    rollout_id: str
    reward: float


@dataclass(frozen=True)
class ResamplePlan:
    """Which thinking prefixes are resampled, best first, K continuations each. GRPO's plan is empty."""

    sources: tuple[RolloutScore, ...] = ()
    num_continuations: int = 0
    """K."""


class RowPart(enum.StrEnum):
    """Which model tokens of a row an advantage applies to."""

    ALL = "all"
    """Every model token of the row."""
    PREFIX = "prefix"
    """Model tokens up to and including the opening ``<tool_call>`` of the first call."""
    CONTINUATION = "continuation"
    """Model tokens after the frozen prefix."""


@dataclass(frozen=True)
class Credit:
    """The one advantage of one row. Example: ``Credit("q7/3", RowPart.PREFIX, 0.866)``."""

    rollout_id: str
    part: RowPart
    advantage: float


# ------------------------------------------------------------------------------------------------ training samples
@dataclass(frozen=True)
class TrainingSample:
    """One row as the actor trains it; every sequence below has the row's length T.

    Position t of ``loss_mask``, ``advantages`` and ``engine_logprobs`` speaks of predicting ``token_ids[t]`` from the
    tokens before it; position 0 is never trained.
    """

    rollout_id: str
    question_id: str
    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    advantages: tuple[float, ...]
    """0.0 where ``loss_mask`` is False."""
    engine_logprobs: tuple[float, ...]
    """0.0 at tokens the policy did not sample."""
    image_ids: tuple[ImageId, ...] = ()
    policy_version: int = 0
    temperature: float = 1.0
    """Sampling temperature: the actor divides its logits by it, so that its log-probs are comparable."""

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        for name in ("loss_mask", "advantages", "engine_logprobs"):
            assert len(getattr(self, name)) == length, f"{name} has {len(getattr(self, name))} entries, the row {length}"


@dataclass(frozen=True)
class TrainBatch:
    """A replica's share of one optimisation step, before it is cut into micro-batches."""

    samples: tuple[TrainingSample, ...]
    num_planned_rollouts: int
    """B·N of the whole job: the constant of ``sequence_mean`` aggregation; extra rows must not dilute the ordinary ones."""
    num_other_tokens: int = 0
    """Unmasked tokens that count and are not in ``samples``: of rows left out because they have no gradient."""

    @property
    def num_loss_tokens(self) -> int:
        """Unmasked tokens. Added up over replicas they are the constant of ``token_mean`` aggregation."""
        return sum(sum(sample.loss_mask) for sample in self.samples) + self.num_other_tokens


def group_rollouts(questions: Sequence[Question], rollouts: Sequence[Rollout]) -> tuple[RolloutGroup, ...]:
    """Groups by question id, in the order of ``questions``; lost rollouts are left out."""
    kept: dict[str, list[Rollout]] = {question.question_id: [] for question in questions}
    for rollout in rollouts:
        if rollout.status is not RolloutStatus.LOST:
            kept[rollout.question_id].append(rollout)
    return tuple(RolloutGroup(question, tuple(kept[question.question_id])) for question in questions)
