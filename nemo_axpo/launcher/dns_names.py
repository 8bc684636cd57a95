"""Names that Kubernetes takes."""

from __future__ import annotations

import hashlib
import re

MAX_NAME = 44
"""Letters of a job's name. ``NAME-servers`` is a StatefulSet, whose pods carry the label ``NAME-servers-HASH``: 8 letters
and 11 more, of at most 63."""
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_NUM_DIGITS = 6


def is_job_name(name: str) -> bool:
    """Whether ``name`` begins with a letter and holds small letters, digits and hyphens (DNS-1035, what Services and
    Kubeflow's operator ask for), and leaves room for what is added to it."""
    return len(name) <= MAX_NAME and _LABEL.fullmatch(name) is not None


def job_name(name: str, *, run_dir: str) -> str:
    """``name`` where Kubernetes takes it, else what it takes of it and a hash, so that two runs do not become one:

        job_name("axpo-8b", run_dir="/nfs/a") → "axpo-8b"
        job_name("axpo_8B", run_dir="/nfs/a") → "axpo-8b-" + 6 digits that depend on both
    """
    if is_job_name(name):
        return name
    digits = hashlib.sha256(f"{run_dir}\n{name}".encode()).hexdigest()[:_NUM_DIGITS]
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not words[:1].isalpha() or not words.isascii():
        words = f"run-{words}"
    return f"{words[: MAX_NAME - _NUM_DIGITS - 1].rstrip('-')}-{digits}"
