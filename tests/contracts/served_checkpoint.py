"""The contract's model as a checkpoint, for servers that are started by hand.

    python tests/contracts/served_checkpoint.py DIRECTORY

Its heads are wide enough for the attention kernels of GPUs; its tokenizer knows a word per id.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from picture_store import tiny_processor
from tiny_engine_model import (
    IM_END,
    IMAGE,
    TOOL_CALL,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCAB_SIZE,
    tiny_config,
    tiny_model,
)
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig

HEAD_DIM, HIDDEN = 64, 256
INITIAL_SEED = 7
"""Not the weights that the contract pushes."""
_SPECIAL = {
    IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>", VISION_START: "<|vision_start|>", VISION_END: "<|vision_end|>",
    IM_END: "<|im_end|>", TOOL_CALL: "<tool_call>",
}  # fmt: skip


def served_config() -> Qwen3VLConfig:
    """Of the served model."""
    return tiny_config(head_dim=HEAD_DIM, hidden=HIDDEN)


def write_checkpoint(path: Path) -> Path:
    """Configuration, weights, tokenizer and image processor."""
    config = served_config()
    tiny_model(config, seed=INITIAL_SEED).save_pretrained(path)
    return write_checkpoint_files(path, config=config)


def write_checkpoint_files(path: Path, *, config: Qwen3VLConfig) -> Path:
    """Configuration, tokenizer and image processor, for an engine whose weights come later."""
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    config.save_pretrained(path)
    tiny_processor().save_pretrained(path)
    _tokenizer().save_pretrained(path)
    return path


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {_SPECIAL.get(token, f"w{token}"): token for token in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL.values()])
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=template)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the contract's checkpoint.")
    parser.add_argument("directory", type=Path)
    print(write_checkpoint(parser.parse_args().directory))
