"""What training a row costs, in floating-point operations, from the sizes of the model.

A forward pass multiplies and adds once per weight and token (2 operations) and the backward pass twice as often, so a
linear layer costs 6 operations per weight and token. Attention costs 12 · (query channels) per layer for every query and
key that see each other: scores and weighted values, 2 operations each, forward and twice more backward. A row of S tokens,
L of them trained, with images of P patches costs::

    token · S  +  pair · S (S + 1) / 2  +  output · L  +  Σ_images (patch · P + patch_pair · P²)

The vision tower costs a third where it is frozen: there is no backward pass. Recomputation in the backward pass adds to
every term alike and norms are left out: only the ratio of costs matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nemo_axpo.plan.sizes import ModelSizes, VisionSizes
from nemo_axpo.types import TrainingSample

_PER_WEIGHT = 6
_PER_PAIR_CHANNEL = 12


@dataclass(frozen=True)
class RowCostModel:
    """Cost of forward and backward passes over a row, in floating-point operations."""

    token: int
    """Per token: the linear layers of the text model."""
    pair: int
    """Per query and key that see each other."""
    output: int
    """Per trained token: the output projection; logits exist for those alone."""
    patch: int
    """Per image patch: the linear layers of the vision tower and its mergers."""
    patch_pair: int
    """Per pair of patches of one image."""
    patches_per_token: int
    image_token_id: int

    def of_row(self, sample: TrainingSample) -> float:
        """Of the whole row, computed alone."""
        return self.of_beginning(sample.token_ids) + float(self.output * sum(sample.loss_mask))

    def of_beginning(self, token_ids: Sequence[int]) -> float:
        """Of these first tokens of a row, without the output layer: what rows that share them pay once."""
        num_tokens = len(token_ids)
        images = 0
        for start, stop in image_spans(token_ids, image_token_id=self.image_token_id):
            num_patches = (stop - start) * self.patches_per_token
            images += self.patch * num_patches + self.patch_pair * num_patches**2
        return float(self.token * num_tokens + self.pair * num_tokens * (num_tokens + 1) // 2 + images)


def row_cost_model(sizes: ModelSizes, *, image_token_id: int, is_vision_frozen: bool = False) -> RowCostModel:
    """Coefficients of a model of these ``sizes``."""
    attention = 2 * sizes.hidden * (sizes.query_width + sizes.group_width)  # query and output, key and value
    mlp = 3 * sizes.hidden * sizes.intermediate  # gate, up, down
    vision = sizes.vision
    passes = 3 if is_vision_frozen else 1
    return RowCostModel(
        token=_PER_WEIGHT * sizes.num_layers * (attention + mlp),
        pair=_PER_PAIR_CHANNEL * sizes.num_layers * sizes.query_width,
        output=_PER_WEIGHT * sizes.hidden * sizes.vocab,
        patch=_PER_WEIGHT * _vision_weights_per_patch(vision, out_hidden=sizes.hidden) // passes,
        patch_pair=_PER_PAIR_CHANNEL * vision.depth * vision.hidden // passes,
        patches_per_token=vision.patches_per_token,
        image_token_id=image_token_id,
    )


def _vision_weights_per_patch(vision: VisionSizes, *, out_hidden: int) -> int:
    """Weights a patch meets; a merger's weights meet every ``patches_per_token``-th patch."""
    block = 4 * vision.hidden**2 + 2 * vision.hidden * vision.intermediate
    merged = vision.hidden * vision.patches_per_token
    mergers = (1 + vision.num_deepstack) * merged * (merged + out_hidden) // vision.patches_per_token
    return vision.patch_values * vision.hidden + vision.depth * block + mergers


def image_spans(token_ids: Sequence[int], *, image_token_id: int) -> Iterator[tuple[int, int]]:
    """Start and stop of every run of placeholders, one per image: vision-start and vision-end tokens part neighbours."""
    num_left, stop = token_ids.count(image_token_id), 0
    while num_left:
        start = stop = token_ids.index(image_token_id, stop)
        while stop < len(token_ids) and token_ids[stop] == image_token_id:
            stop += 1
        num_left -= stop - start
        yield start, stop
