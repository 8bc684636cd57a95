"""What a training step leaves for the report: its trees and every image in them, full and as the model sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nemo_axpo.report.model_view import model_view, view_id
from nemo_axpo.report.tree_records import TreeRecord
from nemo_axpo.run_directory import RunDirectory


def record_trees(
    run: RunDirectory, trees: Sequence[TreeRecord], *, step: int, image_store: Any, image_processor: Any
) -> None:
    """Writes the images first, so that a tree on disk never names one that is missing.

    ``image_store`` must still hold the images of the trees; an image that is on disk already is not written again.
    """
    for image_id in dict.fromkeys(image for tree in trees for image in tree.all_images):
        if not run.image_path(image_id).exists():
            run.write_image(image_id, image_store.image(image_id))
        if not run.image_path(view_id(image_id)).exists():
            view = model_view(image_store.features(image_id), image_processor=image_processor)
            run.write_image(view_id(image_id), view)
    run.write_groups(step, [asdict(tree) for tree in trees])
