"""Batches on a trace of realistic lengths: balancing against verl's, sharing, and padding.

    python -m pip install --no-deps verl==0.9.1
    OMP_NUM_THREADS=1 python benchmarks/balancing.py --output benchmarks/results/balancing.json

The trace is made from a seed (see :func:`build_trace`); ``--trace`` writes it, and the result names its hash. Both sides
get the same list of integers: the floating-point operations of each row in Qwen3-VL-8B by our cost model. Of verl only
``utils/seqlen_balancing.py`` is loaded, from the installed package and unchanged; what it imports for other purposes (its
protocol, tensordict) is replaced by empty modules. Seconds are CPU seconds, the best of ``--repeats``.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from environment import PACKAGES, argument_parser, write_result
from timing import repeated

from nemo_axpo.actors.microbatches import plan_microbatches
from nemo_axpo.actors.packing import PackingCounts, PackingForm, VisionTokens, pack_rows
from nemo_axpo.actors.update_step import packing_metrics
from nemo_axpo.data.balancing import balance, imbalance, imbalance_of_loads
from nemo_axpo.data.minibatches import assign_rows, replica_loads, row_infos
from nemo_axpo.data.row_cost import RowCostModel, row_cost_model
from nemo_axpo.plan.published import published_config
from nemo_axpo.plan.sizes import model_sizes
from nemo_axpo.types import TrainingSample

SIZES = ((2048, 8), (2048, 16), (2048, 32), (2048, 64), (16_384, 64))
IMAGE_TOKEN, ROWS_PER_QUESTION, MAX_ROW, MAX_MICROBATCH = 1, 8, 20_480, 32_768
EMPTY_MODULES = {
    "verl.protocol": ("DataProto",),
    "verl.utils": ("tensordict_utils",),
    "verl.utils.device": ("get_device_name",),
}


@dataclass(frozen=True)
class Row:
    """Lengths of one row in tokens."""

    question: int
    text: int
    """Of the question."""
    images: tuple[int, ...]
    """Of the question."""
    thinking: int
    """Sampled tokens."""
    crop: int
    """Image of the tool's answer; 0 without a call."""


def build_trace(num_rows: int, *, seed: int) -> list[Row]:
    """Questions of 8 rows; a row has at most 20,480 tokens.

    A question has a text of lognormal length (median 148 tokens and 20, sigma 0.6) and 1 to 4 images of 256 to 1280
    tokens. A row's thinking is lognormal (median 2,500, sigma 0.9); 30% of the rows call the tool, which adds a crop of
    256 to 1024 tokens and another lognormal turn (median 600, sigma 0.8).
    """
    rng, rows = random.Random(seed), []
    for question in range(num_rows // ROWS_PER_QUESTION):
        text = int(rng.lognormvariate(5.0, 0.6)) + 20
        images = tuple(rng.randrange(256, 1281) for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 2, 3, 4))))
        for _ in range(ROWS_PER_QUESTION):
            thinking, crop = rng.lognormvariate(7.824, 0.9), 0
            if rng.random() < 0.3:
                thinking, crop = thinking + rng.lognormvariate(6.397, 0.8), rng.randrange(256, 1025)
            room = MAX_ROW - text - sum(images) - len(images) - crop  # a separator after each image
            rows.append(Row(question, text, images, min(int(thinking) + 1, room), crop))
    return rows


def as_sample(row: Row, *, number: int) -> TrainingSample:
    """Token ids of these lengths; rows of a question share its text and images and differ from there on."""
    ids = [100 + row.question] * row.text
    for size in row.images:
        ids += [IMAGE_TOKEN] * size + [2]
    ids += [10 + number % ROWS_PER_QUESTION] * row.thinking + [IMAGE_TOKEN] * row.crop
    num_before = len(ids) - row.thinking - row.crop
    mask = (False,) * num_before + (True,) * row.thinking + (False,) * row.crop
    zeros = (0.0,) * len(ids)
    return TrainingSample(f"{row.question}/{number}", str(row.question), tuple(ids), mask, zeros, zeros)


def cost_model() -> RowCostModel:
    """Of the published 8B."""
    return row_cost_model(model_sizes(published_config("8b")), image_token_id=IMAGE_TOKEN)


def load_verl() -> tuple[Callable[..., list[list[int]]], str]:
    """verl's function and version; SystemExit with the install line where it is missing."""
    found = importlib.util.find_spec("verl")
    if found is None:
        raise SystemExit("verl is not installed: python -m pip install --no-deps verl==0.9.1")
    path = Path(found.submodule_search_locations[0]) / "utils" / "seqlen_balancing.py"
    empty = {"verl": ModuleType("verl")}
    for name, attributes in EMPTY_MODULES.items():
        empty[name] = ModuleType(name)
        vars(empty[name]).update(dict.fromkeys(attributes))
    spec = importlib.util.spec_from_file_location("verl_seqlen_balancing", path)
    module = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, empty):
        spec.loader.exec_module(module)
    return module.get_seqlen_balanced_partitions, importlib.metadata.version("verl")


def best_cpu_seconds(function: Callable[[], Any], *, repeats: int) -> tuple[float, Any]:
    """Of ``repeats`` runs, and the last result."""
    calls = repeated(function, repeats=repeats)
    return min(call.cpu_s for call in calls), calls[-1].result


def compare_balancing(
    costs: Sequence[int], *, num_parts: int, equal_size: bool, verl: Callable, repeats: int
) -> dict[str, Any]:
    """Seconds and imbalance of both."""
    ours_s, ours = best_cpu_seconds(lambda: balance(costs, num_parts=num_parts, equal_size=equal_size), repeats=repeats)
    verl_s, theirs = best_cpu_seconds(lambda: verl(costs, num_parts, equal_size), repeats=repeats)
    return {
        "rows": len(costs),
        "parts": num_parts,
        "equal_size": equal_size,
        "ours_ms": round(ours_s * 1e3, 3),
        "verl_ms": round(verl_s * 1e3, 2),
        "ratio": round(verl_s / ours_s, 1),
        "ours_imbalance": float(f"{imbalance(costs, ours):.3g}"),
        "verl_imbalance": float(f"{imbalance(costs, theirs):.3g}"),
    }


def compare_units(samples: Sequence[TrainingSample], *, num_replicas: int) -> dict[str, Any]:
    """Cost of the slowest replica if it computes what its rows share once: by row, by tokens, by question."""
    rows = row_infos(samples, cost=cost_model())
    tokens = {sample.rollout_id: len(sample.token_ids) for sample in samples}

    def spread(costs: Sequence[float]) -> dict[str, int]:
        parts = balance(costs, num_parts=num_replicas)
        return {rows[index].rollout_id: replica for replica, part in enumerate(parts) for index in part}

    seconds, by_question = best_cpu_seconds(lambda: assign_rows(rows, num_replicas=num_replicas), repeats=3)
    plans = {
        "equal_numbers_of_rows": {row.rollout_id: n % num_replicas for n, row in enumerate(rows)},
        "single_rows_by_tokens": spread([tokens[row.rollout_id] for row in rows]),
        "single_rows_by_cost": spread([row.cost for row in rows]),
        "questions_by_cost": by_question,
    }
    loads = {name: replica_loads(rows, replica_of=plan, num_replicas=num_replicas) for name, plan in plans.items()}
    best = max(loads["questions_by_cost"])
    return {
        "rows": len(rows),
        "replicas": num_replicas,
        "questions_by_cost_ms": round(seconds * 1e3, 2),
        **{
            name: {"slowest_replica": round(max(part) / best, 4), "imbalance": round(imbalance_of_loads(part), 5)}
            for name, part in loads.items()
        },
    }


def packed_counts(samples: Sequence[TrainingSample], *, form: PackingForm, multiple_of: int = 1) -> list[PackingCounts]:
    """Counts of every micro-batch of ``form``. Images count as tokens here."""
    vision = VisionTokens(image_token_id=-1, video_token_id=-1, merge_size=2)
    plan = plan_microbatches(samples, max_tokens=MAX_MICROBATCH, form=form, image_token_id=-1)
    parts = ([samples[index] for index in indices] for indices in plan)
    return [
        pack_rows(part, image_store=None, vision=vision, form=form, multiple_of=multiple_of)[1].counts for part in parts
    ]


def total_counts(counts: Sequence[PackingCounts]) -> PackingCounts:
    """Of micro-batches together."""
    return PackingCounts(*(sum(getattr(count, field.name) for count in counts) for field in fields(PackingCounts)))


def measure_packing(samples: Sequence[TrainingSample], *, form: PackingForm) -> dict[str, Any]:
    """How many micro-batches, and what they waste and save."""
    counts = packed_counts(samples, form=form)
    metrics = {name: round(value, 4) for name, value in packing_metrics(total_counts(counts)).items()}
    return {"rows": len(samples), "micro_batches": len(counts), **metrics}


def measure(trace: Sequence[Row], *, repeats: int) -> dict[str, Any]:
    """All comparisons on one trace."""
    verl, version = load_verl()
    model = cost_model()
    samples = [as_sample(row, number=number) for number, row in enumerate(trace[:2048])]
    costs = [int(model.of_row(as_sample(row, number=number))) for number, row in enumerate(trace)]
    lengths = sorted(len(sample.token_ids) for sample in samples)
    return {
        "verl": version,
        "cost_model": {field.name: getattr(model, field.name) for field in fields(model)},
        "row_tokens": {"median": lengths[len(lengths) // 2], "mean": sum(lengths) // len(lengths), "max": lengths[-1]},
        "balancing": [
            compare_balancing(costs[:rows], num_parts=parts, equal_size=is_equal, verl=verl, repeats=repeats)
            for is_equal in (False, True)
            for rows, parts in SIZES
        ],
        "units": [compare_units(samples[:512], num_replicas=count) for count in (8, 32)],
        "packing": {form: measure_packing(samples[:256], form=form) for form in ("padded", "thd")},
    }


def main() -> None:
    """Builds the trace, measures, and writes both where asked to."""
    parser = argument_parser(__doc__)
    parser.add_argument("--trace", type=Path, help="write the trace here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    trace = build_trace(max(rows for rows, _ in SIZES), seed=options.seed)
    text = json.dumps([astuple(row) for row in trace], separators=(",", ":"))
    if options.trace:
        options.trace.write_text(text)
    results = measure(trace, repeats=options.repeats)
    report = {"trace_sha256": hashlib.sha256(text.encode()).hexdigest(), **results}
    print(json.dumps(report, indent=1))
    write_result(options.output, report, packages=(*PACKAGES, "verl"))


if __name__ == "__main__":
    main()
