"""Rotary positions of one row and of what follows it: hand-computed, and equal to transformers on random layouts."""

from __future__ import annotations

import inspect
import random

import numpy as np
import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLModel

from nemo_axpo.models.qwen3_vl.positions import image_runs, row_positions

IMAGE, START, END = 50, 51, 52
MERGE = 2


def test_hand_computed_row():
    # 7 8 [2 × 3 merged patches] 9: the image begins at position 2, spans max(2, 3) = 3 positions, text goes on at 5
    ids = np.array([7, 8, *[IMAGE] * 6, 9])
    runs = image_runs(ids, image_token_id=IMAGE)
    positions, following = row_positions(ids == IMAGE, grids=[(1, 4, 6)], merge_size=MERGE)
    assert runs == [(2, 8)]
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert following == 6


@pytest.fixture(scope="module")
def hf_model() -> Qwen3VLModel:
    text = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 16, "rope_theta": 10000.0, "max_position_embeddings": 256,
        "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "patch_size": 2, "out_hidden_size": 16,
        "spatial_merge_size": MERGE, "num_position_embeddings": 16, "deepstack_visual_indexes": [],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=53,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    return Qwen3VLModel(config)


@pytest.mark.parametrize("seed", range(20))
def test_equals_transformers_on_random_layouts(hf_model, seed):
    rng = random.Random(seed)
    grids = [(1, 2 * rng.randrange(1, 5), 2 * rng.randrange(1, 5)) for _ in range(rng.randrange(0, 5))]
    row = [rng.randrange(40) for _ in range(rng.randrange(1, 6))]
    for _, height, width in grids:
        row += [START, *[IMAGE] * (height * width // MERGE**2), END]
        row += [rng.randrange(40) for _ in range(rng.randrange(0, 6))]
    ids = torch.tensor([row])
    inputs = {"image_grid_thw": torch.tensor(grids)} if grids else {}
    if "mm_token_type_ids" in inspect.signature(hf_model.get_rope_index).parameters:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    expected, shift = hf_model.get_rope_index(ids, **inputs)
    positions, following = row_positions(np.array(row) == IMAGE, grids=grids, merge_size=MERGE)
    assert positions.tolist() == expected[:, 0].tolist()
    assert following == len(row) + int(shift)
