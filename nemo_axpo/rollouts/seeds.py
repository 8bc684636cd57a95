"""Seeds derived from what they are for, so that a rollout does not depend on what else runs, where, or when."""

from __future__ import annotations

import hashlib

ORIGINAL = -1
"""Branch of an ordinary rollout; a continuation's branch is its k."""


def derive_seed(*parts: int | str) -> int:
    """A seed from integers and strings: equal parts give equal seeds in every process and on every platform.

    Non-negative and below 2**63: serving engines read seeds as signed 64-bit integers.
    """
    text = "".join(f"{type(part).__name__}:{len(str(part))}:{part};" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def turn_seed(seed: int, *, question_id: str, rollout: int, branch: int, turn: int) -> int:
    """A completion's seed. ``seed``: of run, step; ``rollout``: n; ``branch``: k or ORIGINAL; ``turn``: 0, 1, …"""
    return derive_seed(seed, question_id, rollout, branch, turn)
