"""The batched vision tower against transformers' tower, which runs image by image."""

from __future__ import annotations

import torch
from tiny_qwen3_vl import RandomImages, tiny_config, tiny_model

from nemo_axpo.models.qwen3_vl.inputs import ImageBatch
from nemo_axpo.models.qwen3_vl.vision import VisionTower, resampling_table


def theirs_of(tower, features):
    patches = torch.cat([image.pixel_values_PD for image in features])
    output = tower(patches, grid_thw=torch.tensor([image.grid_thw for image in features]))
    if isinstance(output, tuple):  # transformers 4.57
        return output
    return output.pooler_output, output.deepstack_features


@torch.no_grad()
def test_equal_to_transformers_for_several_grids():
    reference = tiny_model(tiny_config()).model.visual
    tower = VisionTower(tiny_config().vision_config)
    tower.load_state_dict(reference.state_dict())
    images = RandomImages()
    names = [["2x8/a", "2x8/b"], ["6x4/c"], ["10x14/d", "10x14/e", "10x14/f"]]
    features = [[images.features(name) for name in group] for group in names]
    batches = [ImageBatch(group[0].grid_thw, torch.stack([i.pixel_values_PD for i in group])) for group in features]
    merged, levels = tower(batches)
    their_merged, their_levels = theirs_of(reference, [image for group in features for image in group])
    torch.testing.assert_close(merged, their_merged, atol=1e-5, rtol=1e-5)
    assert len(levels) == len(their_levels) == 2
    for ours, theirs in zip(levels, their_levels):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_resampling_a_grid_of_its_own_size_changes_nothing():
    index, weight = resampling_table(4, 4, merge_size=2, side=4)
    # merge-block order of a 4 × 4 grid: the four patches of a 2 × 2 square follow each other
    order = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert index[0].tolist() == order
    assert weight[0].tolist() == [1.0] * 16 and weight[1:].abs().max() == 0
