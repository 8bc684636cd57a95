"""Small data files in the layouts of published data sets, with real pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image


def picture(seed: int = 0, *, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture of smooth random blobs: perceptual hashes of different seeds differ, as those of photographs do."""
    coarse = np.random.default_rng(seed).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], *, row_group_size: int | None = None) -> str:
    """Columns as Arrow infers them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=row_group_size)
    return str(path)


def schema_rows(count: int, *, source: str = "mine") -> list[dict[str, Any]]:
    """Questions without images."""
    return [{"id": f"q{i}", "question": f"{i}+1?", "answer": i + 1, "source": source} for i in range(count)]


def virl39k_rows(directory: Path, count: int = 3) -> list[dict[str, Any]]:
    """As in 39Krelease.parquet; their pictures are written below ``directory``."""
    (directory / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        name = f"images/Processed-{i}-0.jpg"
        (directory / name).write_bytes(encoded(picture(i), "JPEG"))
        rows.append(
            {
                "question": f"<image>\nHow many blobs are in picture {i}?",
                "answer": f"\\boxed{{{i}^\\circ}}",
                "PassRate_32BTrained": 0.5,
                "PassRate_7BBase": 0.25,
                "category": "Tables/Diagrams/Charts",
                "source": "Processed",
                "qid": f"Processed-{i}",
                "image": [name],
            }
        )
    return rows


def fvqa_rows(count: int = 2) -> list[dict[str, Any]]:
    """As in fvqa_train.parquet."""
    return [
        {
            "prompt": [{"content": "Where is this place located?", "role": "user"}],
            "images": [{"bytes": encoded(picture(100 + i)), "path": None}],
            "reward_model": {
                "candidate_answers": '["Södertälje", "Södertälje, Sweden"]',
                "ground_truth": "södertälje",
                "style": "rule",
            },
            "data_source": "mmsearch_r1/fvqa_train",
            "image_urls": None,
            "data_id": f"fvqa_train_{i}",
            "category": "search_required",
        }
        for i in range(count)
    ]


def pyvision_rows(directory: Path, count: int = 2) -> list[dict[str, Any]]:
    """As in pyvision_image_rl_data.json; their pictures are written below ``directory``."""
    (directory / "deepeyes").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        (directory / f"deepeyes/{i}.png").write_bytes(encoded(picture(200 + i)))
        rows.append(
            {
                "id": str(i),
                "question": "What is the material of the glove?\n(A) rubber\n(B) cotton",
                "answer": "A",
                "ability": "visual_search",
                "data_source": "deepeyes",
                "image_path": f"deepeyes/{i}.png",
            }
        )
    return rows


def mmfinereason_rows(pass_rates: Sequence[float] = (0.0, 0.75, 0.0)) -> list[dict[str, Any]]:
    """As in the Parquet shards of the 123K release, where all pass rates are 0, and of the full one."""
    return [
        {
            "source": "Geometry3K",
            "id": f"{i}",
            "original_question": "Find x.",
            "original_answer": "60",
            "image": {"bytes": encoded(picture(300 + i)), "path": None},
            "question": "<image>\nFind x.",
            "answer": "60",
            "caption": "A triangle.",
            "qwen3vl_235b_thinking_response": "<think>…</think>",
            "pass_rate": rate,
            "is_consistent": True,
            "consistency_analysis": "",
        }
        for i, rate in enumerate(pass_rates)
    ]
