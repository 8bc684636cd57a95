"""Equal and similar images over data sets, by perceptual hash (imagehash): what occurs twice, what an evaluation shows too.

``phash`` is 64 bits of the image's low frequencies: a copy in another size or format differs in a few bits, another
photograph in about 32. Drawings on white differ in fewer; whoever reads the report sees the distance of every pair.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import imagehash
from PIL import Image

from nemo_axpo.data.images import upright_rgb

NUM_BITS = 64
MAX_DISTANCE = 4
"""Bits in which a copy may differ."""


@dataclass(frozen=True)
class HashedImage:
    """One image of one question."""

    question_id: str
    index: int
    """Of the image within its question."""
    bits: int
    """64-bit perceptual hash."""


@dataclass(frozen=True)
class SimilarPair:
    """Two images that show the same, or nearly."""

    first: HashedImage
    second: HashedImage

    @property
    def distance(self) -> int:
        """Bits in which their hashes differ."""
        return (self.first.bits ^ self.second.bits).bit_count()


def perceptual_hash(image: Image.Image) -> int:
    """64-bit hash of what a viewer sees: rotation by EXIF, transparency and mode do not matter."""
    return int(str(imagehash.phash(upright_rgb(image))), 16)


def similar_pairs(images: Sequence[HashedImage], *, max_distance: int = MAX_DISTANCE) -> list[SimilarPair]:
    """Pairs of ``images`` of different questions within ``max_distance`` bits, in order."""
    return _pairs(images, images, max_distance=max_distance, is_same=True)


def leaked_pairs(
    train: Sequence[HashedImage], evaluation: Sequence[HashedImage], *, max_distance: int = MAX_DISTANCE
) -> list[SimilarPair]:
    """Pairs of a training image and an evaluation image within ``max_distance`` bits, in order."""
    return _pairs(train, evaluation, max_distance=max_distance, is_same=False)


def _pairs(
    one: Sequence[HashedImage], other: Sequence[HashedImage], *, max_distance: int, is_same: bool
) -> list[SimilarPair]:
    """Hashes within d bits agree in at least one of d + 1 bands, so only images that share a band are compared."""
    bands = _bands(max_distance + 1)
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, image in enumerate(other):
        for key in _keys(image.bits, bands):
            buckets[key].append(index)
    found = []
    for index, image in enumerate(one):
        near = {match for key in _keys(image.bits, bands) for match in buckets.get(key, ())}
        for match in sorted(near):
            if is_same and (match <= index or other[match].question_id == image.question_id):
                continue
            if (image.bits ^ other[match].bits).bit_count() <= max_distance:
                found.append(SimilarPair(image, other[match]))
    return found


def _bands(count: int) -> list[tuple[int, int]]:
    """(shift, mask) of ``count`` parts of the hash."""
    edges = [NUM_BITS * number // count for number in range(count + 1)]
    return [(start, (1 << (stop - start)) - 1) for start, stop in itertools.pairwise(edges)]


def _keys(bits: int, bands: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for number, (shift, mask) in enumerate(bands):
        yield number, bits >> shift & mask
