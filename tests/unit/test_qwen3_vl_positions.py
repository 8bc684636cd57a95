"""Multimodal rotary positions: hand-computed, equal to transformers on random layouts; and their angles."""

from __future__ import annotations

import inspect
import random

import numpy as np
import pytest
import torch
from tiny_qwen3_vl import IMAGE, MERGE, VISION_END, VISION_START, tiny_config, tiny_model

from nemo_axpo.models.qwen3_vl.mrope import InterleavedRope
from nemo_axpo.models.qwen3_vl.positions import position_ids


def test_hand_computed_row():
    # 7 8 [2 × 3 merged patches] 9: the image begins at position 2, spans max(2, 3) = 3 positions, text goes on at 5
    is_image = np.array([[False, False, *[True] * 6, False]])
    assert position_ids(is_image, grids=[(1, 4, 6)], merge_size=MERGE)[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_config()).model


def random_row(rng: random.Random) -> tuple[list[int], list[tuple[int, int, int]]]:
    ids, grids = [], []
    for _ in range(rng.randint(0, 3)):
        ids += [rng.randrange(80) for _ in range(rng.randint(0, 6))]
        height, width = 2 * rng.randint(1, 5), 2 * rng.randint(1, 5)
        grids.append((1, height, width))
        ids += [VISION_START, *[IMAGE] * (height * width // MERGE**2), VISION_END]
    return ids + [rng.randrange(80) for _ in range(rng.randint(1, 6))], grids


def transformers_positions(model, ids: list[int], grids: list[tuple[int, int, int]]) -> np.ndarray:
    tokens = torch.tensor([ids])
    arguments = {"image_grid_thw": torch.tensor(grids) if grids else None, "attention_mask": torch.ones_like(tokens)}
    if "mm_token_type_ids" in inspect.signature(model.get_rope_index).parameters:
        arguments["mm_token_type_ids"] = (tokens == IMAGE).int()
    return model.get_rope_index(tokens, **arguments)[0][:, 0].numpy()


def test_equal_to_transformers_on_random_layouts(model):
    rng = random.Random(0)
    rows = [random_row(rng) for _ in range(60)]
    width = max(len(ids) for ids, _ in rows)
    is_image = np.array([[i == IMAGE for i in ids] + [False] * (width - len(ids)) for ids, _ in rows])
    grids = [grid for _, row_grids in rows for grid in row_grids]
    ours = position_ids(is_image, grids=grids, merge_size=MERGE)
    for number, (ids, row_grids) in enumerate(rows):
        theirs = transformers_positions(model, ids, row_grids)
        assert np.array_equal(ours[:, number, : len(ids)], theirs), (ids, row_grids)


def test_angles_equal_transformers(model):
    positions = torch.randint(0, 200, (3, 50), generator=torch.Generator().manual_seed(0))
    rope = InterleavedRope(head_dim=16, theta=10000.0, sections=(4, 2, 2))
    cos, sin = rope(positions, dtype=torch.float32)
    their_cos, their_sin = model.language_model.rotary_emb(torch.zeros(1), positions.unsqueeze(1))
    torch.testing.assert_close(cos[:, 0, 0], their_cos[0])
    torch.testing.assert_close(sin[:, 0, 0], their_sin[0])
