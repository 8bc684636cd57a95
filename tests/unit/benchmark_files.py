"""Small copies of published benchmarks, in the layout of their files (the sources stand in their readers)."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_files import encoded, picture, write_jsonl, write_parquet


def image(seed: int) -> dict[str, Any]:
    """As HF datasets stores a picture."""
    return {"bytes": encoded(picture(seed)), "path": f"{seed}.png"}


def mathvision_row(**changes: Any) -> dict[str, Any]:
    row = {
        "id": "4", "question": "Which bike is the dearest?\n<image1>", "options": ["A", "B", "C", "D", "E"],
        "image": "images/4.jpg", "decoded_image": image(4), "answer": "A", "solution": None, "level": 2,
        "subject": "combinatorics",
    }  # fmt: skip
    return row | changes


def write_mathvision(directory: Path) -> Path:
    free = mathvision_row(id="7", question="How many blobs?", options=[], answer="\\frac{7}{2}", subject="counting")
    named = mathvision_row(
        id="9", question="<image1> is turned, as in <image2>. Which way?", options=["left", "right"], answer="B"
    )
    write_parquet(directory / "data/testmini-00000-of-00001-f8ff.parquet", [mathvision_row(), free, named])
    write_parquet(directory / "data/test-00000-of-00001-3532.parquet", [mathvision_row(id="1000")])
    return directory


def write_dynamath(directory: Path) -> Path:
    base = {
        "image": "images/1.png", "decoded_image": image(1), "subject": "puzzle test", "knowledge_level": "high school",
    }  # fmt: skip
    rows = [
        {"id": "1", "question": "Which one grows? choice: (A) the red one (B) the blue one", "ground_truth": "B",
         "answer_type": "multiple choice", **base},
        {"id": "2", "question": "What is the slope?", "ground_truth": "0.333", "answer_type": "float", **base},
    ]  # fmt: skip
    write_parquet(directory / "data/sample_variant1-00000-of-00001.parquet", rows)
    write_parquet(directory / "data/sample_variant10-00000-of-00001.parquet", [rows[0] | {"id": "10"}])
    return directory


def math_vr_row(**changes: Any) -> dict[str, Any]:
    row = {
        "id": 0, "question": "In <image2> and <image1>, what is x?", "answers": "x = 3", "number_of_answers": 1,
        "category": "multimodal", "total_score": 10, "scoring_points": ["p1"], "scores": [10],
        **{f"image{n}": image(n) if n < 3 else None for n in range(1, 9)},
    }  # fmt: skip
    return row | changes


def write_math_vr(directory: Path) -> Path:
    text = math_vr_row(id=1, question="2+2?", answers="4", category="text", image1=None, image2=None)
    write_parquet(directory / "data/test-00000-of-00001.parquet", [math_vr_row(), text])
    return directory


VSTAR_TEXT = (
    "What is the material of the glove?\n(A) rubber\n(B) cotton\n"
    "Answer with the option's letter from the given choices directly."
)


def write_vstar(directory: Path) -> Path:
    rows = []
    for category in ("direct_attributes", "relative_position"):
        (directory / category).mkdir(parents=True)
        (directory / category / "sa_4690.jpg").write_bytes(encoded(picture(3), "JPEG"))
        (directory / category / "sa_4690.json").write_text(json.dumps({"question": "annotation of the authors"}))
        rows.append(
            {"image": f"{category}/sa_4690.jpg", "text": VSTAR_TEXT, "category": category, "label": "A",
             "question_id": "4690"}
        )  # fmt: skip
    write_jsonl(directory / "test_questions.jsonl", rows)
    return directory


def write_visual_probe(directory: Path) -> Path:
    """Its paths begin with the name of the data set's own directory."""
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "0.jpg").write_bytes(encoded(picture(5), "JPEG"))
    path = f"{directory.name}/data/0.jpg"
    rows = [
        {"images": [path], "problem": "<image>\nWhat is on the sign?", "solution": "<answer> stop </answer>",
         "doc_id": "hard_0", "data_source": "visual_probe"},
        {"images": ["data/0.jpg"], "problem": "What colour has it?", "solution": "red", "doc_id": "hard_1",
         "data_source": "visual_probe"},
    ]  # fmt: skip
    (directory / "val.json").write_text(json.dumps(rows))
    return directory


def hr_bench_rows() -> list[Mapping[str, Any]]:
    """Two questions, each in four orders of its options."""
    words = ["red", "blue", "green", "white"]
    return [
        {"index": 4 * number + cycle, "question": f"Which colour has door {number}?",
         **dict(zip("ABCD", words[cycle:] + words[:cycle], strict=True)), "answer": "ADCB"[cycle],
         "category": ("single", "cross")[number], "cycle_category": str(cycle),
         "image": base64.b64encode(encoded(picture(number), "JPEG")).decode()}
        for number in range(2) for cycle in range(4)
    ]  # fmt: skip


def write_hr_bench(directory: Path, *, size: str = "4k") -> Path:
    write_parquet(directory / f"hr_bench_{size}.parquet", hr_bench_rows())
    return directory


def write_hr_mmsearch(directory: Path) -> Path:
    row = {
        "sample_id": "sports_1", "query": "Who won here in 2024?", "query_image": image(6), "ground_truth": "The blue team",
        "difficulty": "hard", "category": "sports",
    }  # fmt: skip
    write_parquet(directory / "data/train-00000-of-00002.parquet", [row])
    write_parquet(directory / "data/train-00001-of-00002.parquet", [row | {"sample_id": "sports_2"}])
    return directory


def mmsearch_row(**changes: Any) -> dict[str, Any]:
    row = {
        "sample_id": "news_0", "query": "Which club is this?", "query_image": image(8), "image_search_result": image(9),
        "area": "news", "subfield": "sports", "timestamp": "2024-08", "gt_requery": "club crest",
        "gt_answer": "Real Madrid", "alternative_gt_answers": ["Real Madrid CF", "Real Madrid"],
    }  # fmt: skip
    return row | changes


def write_mmsearch(directory: Path) -> Path:
    bare = mmsearch_row(sample_id="knowledge_1", query_image=None, area="knowledge", alternative_gt_answers=[])
    write_parquet(directory / "end2end.parquet", [mmsearch_row(), bare])
    return directory


WRITERS = {
    "mathvision": write_mathvision,
    "dynamath": write_dynamath,
    "math_vr": write_math_vr,
    "vstar": write_vstar,
    "visual_probe_hard": write_visual_probe,
    "hr_bench_4k": write_hr_bench,
    "hr_bench_8k": lambda directory: write_hr_bench(directory, size="8k"),
    "hr_mmsearch": write_hr_mmsearch,
    "mmsearch": write_mmsearch,
}
"""By benchmark, in the order of the paper."""
