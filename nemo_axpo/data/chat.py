"""Chat messages ⇄ token ids, in the checkpoint's own chat format.

Text becomes tokens exactly once: the prompt when a question starts, an observation when a tool returns. What the model
sampled is kept as ids and never decoded and re-encoded, because re-tokenisation drifts over turns. Every image appears as
``<|vision_start|>`` + one ``<|image_pad|>`` per vision token + ``<|vision_end|>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from nemo_axpo.data.image_sizes import ImageSizes
from nemo_axpo.data.images import ImageStore
from nemo_axpo.data.vocabulary import TOKEN_TEXT, SpecialTokens
from nemo_axpo.types import ImageId, ImagePart, Message, Question, RenderedTokens, TextPart, ToolResult

_MODEL_TURN = "\x00model turn\x00"
"""Stands for a model turn while the text that follows it is rendered; removed before tokenisation."""

_STRUCTURE = tuple(text for text in TOKEN_TEXT.values() if text.startswith("<|"))
"""Tokens that mark turns and images. A conversation's earlier model turns may hold the others (thinking, tool calls)."""


class ChatRenderer:
    """Renders with the tokenizer's chat template, tools in the system turn, thinking opened for the model."""

    def __init__(
        self,
        tokenizer: Any,
        image_store: ImageStore | ImageSizes,
        *,
        tool_schemas: Sequence[dict] = (),
        instructions: str = "",
    ) -> None:
        """``tool_schemas``: OpenAI function-calling dicts. ``instructions``: system text before the tools.

        Raises ValueError where the tokenizer splits a special token, or where its chat template is missing or is not that
        of a thinking model.
        """
        if not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template: copy chat_template.jinja into the checkpoint directory"
            )
        self.special = SpecialTokens.from_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self._images = image_store
        self._tools = list(tool_schemas) or None
        self._instructions = instructions
        self._encode = lru_cache(maxsize=4096)(self._encode_text)
        self._check_template()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a model turn."""
        return (self.special.im_end, self.special.endoftext)

    def prompt(self, question: Question) -> RenderedTokens:
        """Everything before the first model token, through ``<|im_start|>assistant`` and the opened thinking.

        ValueError for a question whose text spells a token that marks turns or images.
        """
        _check_text(question)
        messages = list(question.messages)
        if self._instructions:
            messages.insert(0, Message("system", (TextPart(self._instructions),)))
        return self._tokenize(self._template(messages), question.image_ids)

    def observation(self, result: ToolResult) -> RenderedTokens:
        """What follows the model's ``<|im_end|>``: the tool response (its images included) and the next model turn."""
        parts = (*(ImagePart(i) for i in result.image_ids), *([TextPart(result.text)] if result.text else ()))
        return self._tokenize(self._after_model_turn(Message("tool", parts)), result.image_ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens kept."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of text in which special tokens may be written out."""
        return self._encode(text)

    def _template(self, messages: Sequence[Message]) -> str:
        return self.tokenizer.apply_chat_template(
            [{"role": message.role, "content": _content(message)} for message in messages],
            tools=self._tools,
            add_generation_prompt=True,
            tokenize=False,
        )

    def _after_model_turn(self, message: Message) -> str:
        """What the template writes between a model's ``<|im_end|>`` and its next turn, with ``message`` in between."""
        user, model = Message("user", (TextPart("question"),)), Message("assistant", (TextPart(_MODEL_TURN),))
        _, _, after = self._template([user, model, message]).partition(_MODEL_TURN + TOKEN_TEXT["im_end"])
        return after

    def _check_template(self) -> None:
        """Renders a tool's result, and a question and a result with an image each."""
        image = (ImagePart("image"), TextPart("text"))
        try:
            after = self._after_model_turn(Message("tool", (TextPart("result"),)))
            shown = self._template([Message("user", image)]), self._after_model_turn(Message("tool", image))
        except TemplateError as error:
            raise ValueError(
                f"the chat template must be Jinja that renders; got {error!r}: copy chat_template.jinja from the "
                "checkpoint of a thinking model (Qwen3-VL-*-Thinking)"
            ) from error
        if "result" not in after or not after.rstrip().endswith(TOKEN_TEXT["think"]):
            raise ValueError(
                "the chat template must close a model turn with <|im_end|>, render a tool's result and open the model's "
                f"thinking (<|im_start|>assistant, <think>); after a model turn it renders {after!r}: use the checkpoint "
                "of a thinking model (Qwen3-VL-*-Thinking) with its chat_template.jinja"
            )
        counts = tuple(text.count(TOKEN_TEXT["image_pad"]) for text in shown)
        if counts != (1, 1):
            raise ValueError(
                f"the chat template must show every image of a question and of a tool's result as one "
                f"{TOKEN_TEXT['image_pad']}; got {counts[0]} and {counts[1]}: use a chat template that renders image parts"
            )

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _tokenize(self, text: str, image_ids: tuple[ImageId, ...]) -> RenderedTokens:
        """Encodes the text between placeholders and expands each placeholder to its image's number of tokens."""
        pieces = text.split(TOKEN_TEXT["image_pad"])
        if len(pieces) - 1 != len(image_ids):
            raise ValueError(
                f"the rendered text must have one {TOKEN_TEXT['image_pad']} per image; got {len(pieces) - 1} for "
                f"{len(image_ids)} images: use a chat template that renders image parts"
            )
        token_ids = list(self._encode(pieces[0]))
        for image_id, piece in zip(image_ids, pieces[1:], strict=True):
            token_ids += [self.special.image_pad] * self._images.features(image_id).num_tokens
            token_ids += self._encode(piece)
        return RenderedTokens(tuple(token_ids), image_ids)


def _check_text(question: Question) -> None:
    """A question's text comes from a data file: it must not forge a turn or stand for an image that is not there."""
    text = "".join(part.text for message in question.messages for part in message.parts if isinstance(part, TextPart))
    found = [token for token in _STRUCTURE if token in text]
    if found:
        raise ValueError(
            f"the text of a question must not spell control tokens; question {question.question_id!r} holds "
            f"{', '.join(found)}: remove them from its text (images are given as ImagePart)"
        )


def _content(message: Message) -> str | list[dict[str, str]]:
    """Plain text for a text-only message (what every template accepts), typed parts where there are images."""
    if not message.image_ids:
        return "".join(part.text for part in message.parts if isinstance(part, TextPart))
    return list(_typed_parts(message))


def _typed_parts(message: Message) -> Iterator[dict[str, str]]:
    for part in message.parts:
        yield {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
