"""Whether the weights of a directory are still those a run started from, without reading all of them again."""

from __future__ import annotations

import hashlib
from pathlib import Path

_PIECE, _NUM_PIECES = 1 << 20, 64


def fingerprint(path: str | Path) -> str:
    """A digest of ``config.json`` and of every safetensors file of a checkpoint directory.

    Of each file: its name, its size and 64 pieces of 1 MiB at even distances, both ends among them; files of up to
    64 MiB whole. So another set of weights differs, while a change of single bytes between the pieces of a large file
    goes unseen.
    """
    path, digest = Path(path), hashlib.sha256()
    for file in [path / "config.json", *sorted(path.glob("*.safetensors"))]:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for start in _starts(size):
                stream.seek(start)
                digest.update(stream.read(_PIECE))
    return digest.hexdigest()


def _starts(size: int) -> list[int]:
    """Where the pieces begin."""
    if size <= _PIECE * _NUM_PIECES:
        return list(range(0, size, _PIECE))
    return [(size - _PIECE) * number // (_NUM_PIECES - 1) for number in range(_NUM_PIECES)]
