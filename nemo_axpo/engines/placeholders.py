"""Prompts on their way to a server and back: one placeholder per image out, and the proof of what it made of them.

Training rows hold every image as its full run of ``<|image_pad|>``. Servers expand the placeholders themselves, and one
that receives an expanded run expands it again without a word; so a run is sent as a single placeholder, and the prompt
that the server says it has sampled from must equal ours, token by token, on every request:

    ours       7 <|vision_start|> I I I I <|vision_end|> 8
    sent       7 <|vision_start|> I       <|vision_end|> 8      + the picture
    returned   7 <|vision_start|> I I I I <|vision_end|> 8
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_axpo.engines.base import PromptMismatchError
from nemo_axpo.errors import rule_message
from nemo_axpo.models.qwen3_vl.positions import image_runs

_RULE = "a server must sample from exactly the prompt it was sent"


def collapse(token_ids: Sequence[int], *, image_token_id: int) -> list[int]:
    """``token_ids`` with one placeholder per unbroken run. Example: ``7 I I I 8 I I 9`` → ``7 I 8 I 9``."""
    ids_P = np.asarray(token_ids, dtype=np.int64)
    is_repeated = np.zeros(ids_P.size, dtype=bool)
    is_repeated[1:] = (ids_P[1:] == image_token_id) & (ids_P[:-1] == image_token_id)
    return ids_P[~is_repeated].tolist()


def require_same_prompt(
    ours: Sequence[int], returned: Sequence[int] | None, *, request_id: str, image_token_id: int
) -> None:
    """PromptMismatchError that names the first difference and its usual cause, unless both are the same ids.

    ``ours``: the expanded prompt; ``returned``: what the server reports, None where it reports nothing.
    """
    if returned is not None and np.array_equal(ours, returned):
        return
    got, cure = _difference(ours, returned, image_token_id=image_token_id)
    raise PromptMismatchError(f"request {request_id!r}: {rule_message(_RULE, got=got, cure=cure)}")


def _difference(ours: Sequence[int], returned: Sequence[int] | None, *, image_token_id: int) -> tuple[str, str]:
    """What differs, and what to do about it."""
    if returned is None:
        return "no prompt token ids", "the server must return them; use a version and a request that do"
    if collapse(ours, image_token_id=image_token_id) == collapse(returned, image_token_id=image_token_id):
        return _image_difference(ours, returned, image_token_id=image_token_id)
    first = next((i for i, (a, b) in enumerate(zip(ours, returned)) if a != b), min(len(ours), len(returned)))
    got = (
        f"{len(returned)} token ids for our {len(ours)}, from token {first} on {list(returned[first : first + 5])} for our "
        f"{list(ours[first : first + 5])}"
    )
    return (
        got,
        "the server tokenised the prompt anew or left an image out; use an endpoint and version that take token ids",
    )


def _image_difference(ours: Sequence[int], returned: Sequence[int], *, image_token_id: int) -> tuple[str, str]:
    """The first image of another length. The two differ in the lengths of runs alone."""
    lengths = [[stop - start for start, stop in _runs(ids, image_token_id)] for ids in (ours, returned)]
    number, (own, other) = next((n, pair) for n, pair in enumerate(zip(*lengths)) if pair[0] != pair[1])
    got = f"{other} placeholders for image {number}, our image processor makes {own}"
    if other == 1:
        return got, "the server reports the prompt as it was sent, which proves nothing; use a version that expands it"
    return got, (
        "give the server the preprocessor_config.json of the policy's checkpoint, and no pixel limits of its own; a sum of "
        "both means that it expanded a run twice"
    )


def _runs(token_ids: Sequence[int], image_token_id: int) -> list[tuple[int, int]]:
    return image_runs(np.asarray(token_ids, dtype=np.int64), image_token_id=image_token_id)
