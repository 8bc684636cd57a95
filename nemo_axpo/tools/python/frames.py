"""Messages between a session and its interpreter: a length of four bytes, then JSON. Never pickle: a cell can write here."""

from __future__ import annotations

import base64
import json
import os
import struct
from typing import Any

HEADER = struct.Struct("<I")
MAX_FRAME_BYTES = 64 * 2**20
"""A longer one ends the session."""


def encode(message: dict[str, Any]) -> bytes:
    """A whole frame."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return HEADER.pack(len(body)) + body


def read_exactly(descriptor: int, num_bytes: int) -> bytes:
    """EOFError where the other end is gone."""
    chunks, missing = [], num_bytes
    while missing:
        chunk = os.read(descriptor, min(missing, 1 << 20))
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)


def receive(descriptor: int) -> dict[str, Any]:
    """The next message; EOFError where the other end is gone."""
    (length,) = HEADER.unpack(read_exactly(descriptor, HEADER.size))
    return json.loads(read_exactly(descriptor, length))


def send(descriptor: int, message: dict[str, Any]) -> None:
    """Writes a whole frame."""
    rest = memoryview(encode(message))
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def pack_bytes(data: bytes) -> str:
    """Bytes as a JSON string."""
    return base64.b64encode(data).decode("ascii")


def unpack_bytes(text: str) -> bytes:
    """ValueError for anything else than base64."""
    return base64.b64decode(text, validate=True)
