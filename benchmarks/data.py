"""Throughput of the readers of data files, and what packing supervised rows wastes.

    OMP_NUM_THREADS=1 python benchmarks/data.py --output benchmarks/results/data.json

Files are written in the published layouts with pictures of 640 × 480 (JPEG), then read: the first
opening converts them to Arrow, the second finds that cached; both check every row. Asking decodes the picture. The rows of
the packing part have the lengths of benchmarks/balancing.py's trace, one row a question, as trajectories have.
"""

from __future__ import annotations

import io
import json
import resource
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from balancing import MAX_MICROBATCH, as_sample, build_trace, packed_counts, total_counts
from environment import argument_parser, write_result
from PIL import Image
from timing import timed

from nemo_axpo.actors.packing import PackingForm
from nemo_axpo.actors.update_step import packing_metrics
from nemo_axpo.config.schema import DataConfig, DataFileConfig
from nemo_axpo.data.audit import audit
from nemo_axpo.data.file_questions import build_file_questions
from nemo_axpo.data.images import ImageStore
from nemo_axpo.data.question_table import QuestionTable
from nemo_axpo.data.tables import open_streams
from nemo_axpo.models.qwen3_vl.tiny import tiny_image_processor
from nemo_axpo.types import TrainingSample

READERS = ("schema", "virl39k", "fvqa", "pyvision", "mmfinereason_hard")
SIZE = (640, 480)
BATCHES = (32, 64, 128)
NUM_PACKED = 640


def jpeg(seed: int) -> bytes:
    """A picture with structure at every scale, as a photograph has."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((SIZE[1], SIZE[0], 3))
    for cells, weight in ((8, 0.6), (40, 0.25), (200, 0.15)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        canvas += weight * np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    Image.fromarray(canvas.astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_files(directory: Path, *, num_rows: int) -> dict[str, DataFileConfig]:
    """One file per layout; the pictures are 64 different ones, used in turn."""
    pictures = [jpeg(seed) for seed in range(64)]
    (directory / "images").mkdir()
    for number in range(num_rows):
        (directory / f"images/{number}.jpg").write_bytes(pictures[number % 64])
    rows = [_rows(number, pictures[number % 64]) for number in range(num_rows)]
    configs = {}
    for reader in READERS:
        is_json = reader in ("schema", "pyvision")
        path = directory / f"{reader}.{'json' if is_json else 'parquet'}"
        own = [row[reader] for row in rows]
        if is_json:
            path.write_text(json.dumps(own), encoding="utf-8")
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(own), path, row_group_size=256)
        configs[reader] = DataFileConfig(path=str(path), reader=reader, source=reader)
    return configs


def _rows(number: int, picture: bytes) -> dict[str, dict[str, Any]]:
    """Question ``number`` in every layout."""
    text, path = f"What is shown at place {number} of the picture, and how many of it?", f"images/{number}.jpg"
    embedded = {"bytes": picture, "path": None}
    return {
        "schema": {"id": str(number), "question": text, "images": [path], "answer": "4", "kind": "count"},
        "virl39k": {"qid": str(number), "question": f"<image>{text}", "answer": "\\boxed{4}", "image": [path],
                    "category": "count", "PassRate_32BTrained": 0.5},
        "fvqa": {"data_id": str(number), "prompt": [{"role": "user", "content": text}], "images": [embedded],
                 "reward_model": {"ground_truth": "4", "candidate_answers": '["four"]', "style": "rule"},
                 "category": "search_free"},
        "pyvision": {"id": str(number), "question": text, "answer": "4", "ability": "count", "data_source": "x",
                     "image_path": path},
        "mmfinereason_hard": {"id": str(number), "question": f"<image>{text}", "answer": "4", "image": embedded,
                              "pass_rate": 0.0, "source": "x", "qwen3vl_235b_thinking_response": "think " * 500},
    }  # fmt: skip


def measure_reader(config: DataFileConfig, *, cache_dir: str, num_rows: int) -> dict[str, float]:
    """Rows or questions per second of every way to read a file."""
    first_s, again_s = (timed(lambda: QuestionTable([config], cache_dir=cache_dir)).wall_s for _ in range(2))
    streaming = timed(lambda: sum(1 for s in open_streams(config.path) for _ in s.rows()))
    images = ImageStore(tiny_image_processor())
    data = DataConfig(name="files", files=[config], held_out=0.0, cache_dir=cache_dir)
    questions = build_file_questions(data, stream="train", seed=0, images=images)
    asked = min(500, num_rows)
    asking = timed(lambda: [(questions.take(index, 1), images.retain(())) for index in range(asked)])
    assert streaming.result == num_rows
    return {
        "first_opening_rows_per_s": round(num_rows / first_s),
        "opening_again_rows_per_s": round(num_rows / again_s),
        "streaming_rows_per_s": round(num_rows / streaming.wall_s),
        "asking_questions_per_s": round(asked / asking.wall_s),
    }


def measure_packing(samples: Sequence[TrainingSample], *, batch_size: int, form: PackingForm) -> dict[str, Any]:
    """Micro-batches of an epoch in batches; waste is the share of attention's queries that no token stands behind."""
    counts, fills, seconds = [], [], 0.0
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        packing = timed(partial(packed_counts, batch, form=form, multiple_of=8))
        packed = packing.result
        seconds += packing.wall_s
        counts += packed
        fills.append(sum(count.num_row_tokens for count in packed) / (len(packed) * MAX_MICROBATCH))
    total = total_counts(counts)
    return {
        "form": form,
        "batch_size": batch_size,
        "micro_batches": len(counts),
        "padding": round(packing_metrics(total)["batch/padding"], 5),
        "fill": round(sum(fills) / len(fills), 4),
        "tokens_per_s": round(total.num_row_tokens / seconds),
    }


def supervised_rows() -> list[TrainingSample]:
    """One row a question."""
    rows = build_trace(NUM_PACKED * 8, seed=0)[::8]
    return [as_sample(replace(row, question=number), number=number) for number, row in enumerate(rows)]


def measure(num_rows: int) -> Mapping[str, Any]:
    """Readers, the audit, and packing."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        configs = write_files(directory, num_rows=num_rows)
        cache_dir = str(directory / "cache")
        readers = {
            reader: measure_reader(config, cache_dir=cache_dir, num_rows=num_rows) for reader, config in configs.items()
        }
        check = {}
        for num_threads in (1, 2):
            checking = timed(partial(audit, [configs["fvqa"]], cache_dir=cache_dir, num_threads=num_threads))
            check[f"images_per_s_{num_threads}_threads"] = round(num_rows / checking.wall_s)
    samples = supervised_rows()
    lengths = sorted(len(sample.token_ids) for sample in samples)
    forms: tuple[PackingForm, ...] = ("padded", "thd")
    return {
        "readers": readers,
        "check_data": check,
        "row_tokens": {"median": lengths[len(lengths) // 2], "mean": sum(lengths) // len(lengths), "max": lengths[-1]},
        "packing": [measure_packing(samples, batch_size=size, form=form) for form in forms for size in BATCHES],
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    """Measures, and writes the result where asked to."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=2000, help="rows of every file (default: %(default)s)")
    options = parser.parse_args()
    results = measure(options.rows)
    print(json.dumps(results, indent=1))
    write_result(options.output, results)


if __name__ == "__main__":
    main()
