"""The cost model against hand-computed numbers, and against the operations counted while a model runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_axpo.data.packing_order import packing_order
from nemo_axpo.data.row_cost import image_spans, row_cost_model
from nemo_axpo.plan.sizes import ModelSizes, VisionSizes
from nemo_axpo.types import TrainingSample

IMAGE = 90
SIZES = ModelSizes(
    vocab=7, hidden=4, intermediate=5, num_layers=2, num_heads=2, num_groups=1, head_dim=3, is_tied=False,
    vision=VisionSizes(
        depth=2, hidden=3, intermediate=6, num_heads=1, patch_values=10, num_positions=9, patches_per_token=4,
        num_deepstack=1,
    ),
)  # fmt: skip


def row(*token_ids, trained=1, image_ids=(), name="q/0"):
    mask = (False,) * (len(token_ids) - trained) + (True,) * trained
    zeros = (0.0,) * len(token_ids)
    return TrainingSample(name, "q", token_ids, mask, zeros, zeros, image_ids)


def test_coefficients_by_hand():
    cost = row_cost_model(SIZES, image_token_id=IMAGE)
    # per layer: query 4x6, key and value 4x3 each, output 6x4, gate, up and down 4x5 each: 72 + 60 weights, two layers
    assert cost.token == 6 * 2 * (72 + 60)
    assert cost.pair == 12 * 2 * 6
    assert cost.output == 6 * 4 * 7
    # patch embedding 30; per block 4 · 9 + 2 · 18 = 72; a merger 12x12 + 12x4 per 4 patches = 48, and there are two
    assert cost.patch == 6 * (30 + 2 * 72 + 2 * 48)
    assert cost.patch_pair == 12 * 2 * 3


def test_a_row_by_hand():
    cost = row_cost_model(SIZES, image_token_id=IMAGE)
    text = row(1, 2, 3, 4, trained=2)
    assert cost.of_row(text) == 4 * cost.token + 10 * cost.pair + 2 * cost.output
    # images of 1 and 2 tokens: 4 and 8 patches
    shown = row(1, IMAGE, 2, IMAGE, IMAGE, trained=0, image_ids=("a", "b"))
    assert cost.of_row(shown) == 5 * cost.token + 15 * cost.pair + 12 * cost.patch + (16 + 64) * cost.patch_pair
    assert (
        cost.of_beginning(shown.token_ids[:2]) == 2 * cost.token + 3 * cost.pair + 4 * cost.patch + 16 * cost.patch_pair
    )
    assert cost.of_beginning(()) == 0.0


def test_a_frozen_tower_has_no_backward_pass():
    cost, frozen = (row_cost_model(SIZES, image_token_id=IMAGE, is_vision_frozen=f) for f in (False, True))
    assert (frozen.patch * 3, frozen.patch_pair * 3) == (cost.patch, cost.patch_pair) and frozen.token == cost.token


def test_spans_of_images():
    assert list(image_spans((IMAGE, 1, 2, IMAGE, IMAGE), image_token_id=IMAGE)) == [(0, 1), (3, 5)]
    assert list(image_spans((1, 2), image_token_id=IMAGE)) == []


def test_the_example_of_packing_order():
    a, b, c, d, e, f, g = range(7)
    order = packing_order([row(a, b, d, f, g), row(a, b, c), row(a, b, d, e)], image_token_id=IMAGE)
    assert [(place.index, place.num_shared) for place in order] == [(1, 0), (2, 2), (0, 3)]


def test_tokens_of_different_images_are_not_shared():
    rows = [row(1, IMAGE, 2, image_ids=(name,)) for name in ("x", "y", "x")]
    order = packing_order(rows, image_token_id=IMAGE)
    assert sorted(place.num_shared for place in order) == [0, 1, 3]
    assert packing_order([], image_token_id=IMAGE) == []


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=7))
def test_the_neighbour_shares_the_most(rows):
    order = packing_order([row(*tokens, trained=0) for tokens in rows], image_token_id=IMAGE)
    assert sorted(place.index for place in order) == list(range(len(rows)))
    seen = set()
    for place in order:
        beginnings = {tuple(rows[place.index][:length]) for length in range(1, len(rows[place.index]) + 1)}
        assert place.num_shared == len(beginnings & seen)
        seen |= beginnings


def test_coefficients_are_the_operations_a_model_counts():
    torch = pytest.importorskip("torch")
    from tiny_qwen3_vl import IMAGE as PLACEHOLDER
    from tiny_qwen3_vl import RandomImages, sample, tiny_config, tiny_model, transformers_logits
    from torch.utils.flop_counter import FlopCounterMode

    from nemo_axpo.plan.sizes import model_sizes

    config = tiny_config()
    shown = sample(1, 2, "4x6/a", 3, 4, 5, trained=3)
    cost = row_cost_model(model_sizes(config), image_token_id=PLACEHOLDER)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        transformers_logits(tiny_model(config), shown, images=RandomImages())
    num_tokens, num_heads_pairs = len(shown.token_ids), len(shown.token_ids) ** 2
    # A forward pass is a third; transformers computes logits of every token and both halves of the attention.
    full = (
        num_tokens * (cost.token + cost.output)
        + num_heads_pairs * cost.pair
        + 24 * cost.patch
        + 24**2 * cost.patch_pair
    )
    assert counter.get_total_flops() == pytest.approx(full / 3, rel=0.02)
