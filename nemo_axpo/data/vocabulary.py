"""The tokenizer, and its special tokens by id: looked up once and refused where they are not single tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

_MAJOR = int(transformers.__version__.partition(".")[0])

TOKEN_TEXT = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "endoftext": "<|endoftext|>",
    "think": "<think>",
    "think_end": "</think>",
    "tool_call": "<tool_call>",
    "tool_call_end": "</tool_call>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
    "video_pad": "<|video_pad|>",
}


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that steer a rollout. A thinking prefix is cut at an id, so every one must be a single token."""

    im_start: int
    im_end: int
    endoftext: int
    think: int
    think_end: int
    tool_call: int
    tool_call_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> SpecialTokens:
        """Looks every token up. ValueError naming the text and the ids it splits into, with the cure."""
        return cls(**{field.name: _single_id(tokenizer, TOKEN_TEXT[field.name]) for field in fields(cls)})


def load_tokenizer(checkpoint: str | Path) -> Any:
    """The tokenizer of a checkpoint directory. ValueError where its files are missing or broken."""
    path = Path(checkpoint)
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(
            f"a checkpoint needs its tokenizer (tokenizer.json); {path} has none: copy it from the model's original "
            "checkpoint"
        )
    try:
        return _read_tokenizer(path)
    except Exception as error:  # broken files surface as anything from TypeError to a plain Exception of tokenizers
        raise ValueError(
            f"the tokenizer files in {path} must be whole; transformers cannot load them ({error!r}): copy them from the "
            "model's original checkpoint"
        ) from error


def _read_tokenizer(path: Path) -> Any:
    """Files written by transformers 5 are read by 4.57 too: there a class is unknown, and a list was a mapping."""
    file = path / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    extra, options = settings.get("extra_special_tokens"), {}
    if isinstance(extra, list) and _MAJOR < 5:
        options = {"extra_special_tokens": {}, "additional_special_tokens": extra}
    is_unknown = settings.get("tokenizer_class") == "TokenizersBackend" and _MAJOR < 5
    kind = PreTrainedTokenizerFast if is_unknown else AutoTokenizer
    return kind.from_pretrained(str(path), **options)


def _single_id(tokenizer: Any, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1 or tokenizer.unk_token_id in ids:
        raise ValueError(
            f"{text} must be a single token, but this tokenizer encodes it as {ids}: use a Qwen3-VL tokenizer, or add it "
            f"with tokenizer.add_tokens([{text!r}], special_tokens=True) and resize the embeddings"
        )
    return ids[0]


def banned_token_ids(tokenizer: Any, *, vocab_size: int) -> tuple[int, ...]:
    """Ids the policy must never sample: vision placeholders and embedding rows without a token.

    ``vocab_size``: rows of the embedding (padded beyond the tokenizer). The engine and the trainer mask the same ids, so
    that their distributions agree; a sampled placeholder would be taken for an image in the next turn.
    """
    special = SpecialTokens.from_tokenizer(tokenizer)
    placeholders = {special.image_pad, special.video_pad, special.vision_start, special.vision_end}
    return tuple(sorted(placeholders | set(range(len(tokenizer), vocab_size))))
