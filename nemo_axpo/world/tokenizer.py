"""A small BPE tokenizer trained on the world's own text, with Qwen's special tokens as single ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nemo_axpo.data.vocabulary import TOKEN_TEXT
from nemo_axpo.world.questions import question_text
from nemo_axpo.world.scene import COLOURS, NUM_COLUMNS, NUM_ROWS
from nemo_axpo.world.trajectories import READING, THOUGHTS, answer_text, call_text

VOCAB_SIZE = 512
"""Rows of the embedding; the tokenizer stays below, so that padded ids exist as they do in real checkpoints."""
_QWEN_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_QWEN_ADDED = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""In the Qwen3 vocabulary these are single tokens but not special: decoding keeps them."""

CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{%- endif %}
    {{- '<tools>' }}
    {%- for tool in tools %}
        {{- '\\n{"name": "' + tool.function.name + '", "arguments": ' }}
        {{- tool.function.parameters.required | list | tojson + '}' }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != 'system' %}
        {{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' }}
        {%- if message.role == 'tool' %}{{- '<tool_response>\\n' }}{%- endif %}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for part in message.content %}
                {%- if part.type == 'image' %}
                    {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
                {%- else %}
                    {{- part.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {%- if message.role == 'tool' %}{{- '\\n</tool_response>' }}{%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer; deterministic, well below a second."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"(?<!_)\d+|\n+|(?:[^\d\n]|(?<=_)\d)+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(_QWEN_SPECIAL) - len(_QWEN_ADDED) - 8,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    fast.add_tokens(list(_QWEN_SPECIAL), special_tokens=True)
    fast.add_tokens(list(_QWEN_ADDED))
    fast.eos_token, fast.pad_token = "<|im_end|>", "<|endoftext|>"
    fast.chat_template = CHAT_TEMPLATE
    assert len(fast) < VOCAB_SIZE and set(TOKEN_TEXT.values()) <= set(fast.get_vocab())
    return fast


def _corpus() -> Iterator[str]:
    """Every phrase of the world, repeated so that whole phrases merge into few tokens."""
    phrases = ['<tools>\n{"name": "image_zoom_in", "arguments": ["bbox_2d", "label"]}\n</tools>']
    phrases += ["system\n", "user\n", "assistant\n", "\n\n", "image 1:", "tool"]
    phrases += list(THOUGHTS) + list(READING)
    for row, column in itertools.product(range(NUM_ROWS), range(NUM_COLUMNS)):
        phrases += [question_text(row=row, column=column), call_text(row=row, column=column)]
    phrases += [answer_text(colour) for colour in COLOURS] * 2
    order = np.random.default_rng(0).permutation(len(phrases) * 40)
    for index in order:
        yield _without_added_tokens(phrases[index % len(phrases)])


def _without_added_tokens(text: str) -> str:
    for token in _QWEN_ADDED:
        text = text.replace(token, "")
    return text
