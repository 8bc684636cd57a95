"""Records, samples and images as bytes, without pickle: a rank reads data from another, never code.

Records are JSON, in which Python's floats survive bit for bit. A sample is a JSON header and its arrays; log-probs and
advantages travel as float32, the precision in which the actor reads them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from nemo_axpo.types import ImageId, TrainingSample

Record = TypeVar("Record")
_ARRAYS = {"token_ids": np.int32, "loss_mask": np.bool_, "advantages": np.float32, "engine_logprobs": np.float32}
_LENGTH = struct.Struct("<Q")


def pack_records(records: Sequence[Any]) -> bytes:
    """Flat dataclasses of one kind; nothing at all takes no bytes."""
    return json.dumps([astuple(record) for record in records], separators=(",", ":")).encode() if records else b""


def unpack_records(data: bytes, *, kind: type[Record]) -> list[Record]:
    """The inverse of :func:`pack_records`."""
    return [kind(*values) for values in json.loads(data)] if data else []


def pack_samples(samples: Sequence[TrainingSample], *, image_store: Any) -> bytes:
    """Samples with the pixels of their images, each image once; nothing at all takes no bytes."""
    if not samples:
        return b""
    image_ids = dict.fromkeys(image_id for sample in samples for image_id in sample.image_ids)
    images = [_pack_image(image_store.image(image_id), image_id=image_id) for image_id in image_ids]
    return _join([_join([_pack_sample(sample) for sample in samples]), _join(images)])


def unpack_samples(data: bytes, *, image_store: Any) -> list[TrainingSample]:
    """The inverse of :func:`pack_samples`; the images go to ``image_store``."""
    if not data:
        return []
    samples, images = _split(data)
    for image in _split(images):
        _unpack_image(image, image_store=image_store)
    return [_unpack_sample(sample) for sample in _split(samples)]


def _pack_sample(sample: TrainingSample) -> bytes:
    header = {field.name: getattr(sample, field.name) for field in fields(sample) if field.name not in _ARRAYS}
    arrays = [np.asarray(getattr(sample, name), dtype=dtype).tobytes() for name, dtype in _ARRAYS.items()]
    return _join([json.dumps(header).encode(), *arrays])


def _unpack_sample(data: bytes) -> TrainingSample:
    header, *arrays = _split(data)
    values = json.loads(header)
    values["image_ids"] = tuple(values["image_ids"])
    for (name, dtype), array in zip(_ARRAYS.items(), arrays, strict=True):
        values[name] = tuple(np.frombuffer(array, dtype=dtype).tolist())
    return TrainingSample(**values)


def _pack_image(image: Image.Image, *, image_id: ImageId) -> bytes:
    header = {"id": image_id, "size": image.size}
    return _join([json.dumps(header).encode(), image.tobytes()])


def _unpack_image(data: bytes, *, image_store: Any) -> None:
    header, pixels = _split(data)
    values = json.loads(header)
    image_id = image_store.add(Image.frombytes("RGB", tuple(values["size"]), pixels))
    assert image_id == values["id"], f"image {values['id'][:12]} arrived with other pixels"


def _join(parts: Sequence[bytes]) -> bytes:
    """Parts one after another, each behind its length."""
    return b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))


def _split(data: bytes) -> list[bytes]:
    return list(_pieces(data))


def _pieces(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        yield data[start : start + length]
        start += length
