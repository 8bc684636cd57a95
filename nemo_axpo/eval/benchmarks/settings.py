"""The settings that records were made under: a directory keeps one set, so that no score mixes two."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_axpo.config.schema import Config
from nemo_axpo.errors import RunDirectoryError, rule_message
from nemo_axpo.eval.benchmarks.definition import Benchmark, data_path

FILE = "settings.json"
_SAMPLING = (
    "num_rollouts", "temperature", "top_p", "top_k", "presence_penalty", "max_turns", "max_new_tokens", "max_row_tokens",
    "max_time_s", "seed",
)  # fmt: skip
_EDGE_BYTES = 64 * 1024


def told_settings(config: Config) -> dict[str, Any]:
    """What a reader of a result must know: sampling, limits, tools, engine."""
    section = config.benchmarks.model_dump(include=set(_SAMPLING), mode="json")
    judge = {"judge": config.rewards.judge.model} if config.rewards.judge.model else {}
    tools = {"tools": list(config.tools.names), "instructions": config.tools.instructions}
    return {**section, **tools, "engine": config.engine.name, **judge}


def asking_settings(config: Config, *, benchmark: Benchmark) -> dict[str, Any]:
    """What the records of a benchmark hang on; not how many of its questions are asked."""
    return {
        "checkpoint": fingerprint(Path(str(config.model.path))),
        **{name: value for name, value in told_settings(config).items() if name != "engine"},
        "needs_answer_block": config.rewards.needs_answer_block,
        "data": data_path(benchmark),
        "split": benchmark.split,
        "reader": benchmark.reader,
        "verifiers": config.model_dump(mode="json")["rewards"]["sources"][benchmark.name],
        "instruction": benchmark.instruction,
    }


def fix_settings(settings: Mapping[str, Any], *, directory: Path) -> None:
    """Writes them into a directory that has none. RunDirectoryError for one that has others."""
    path = directory / FILE
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")  # another shard may write the same at this moment
        temporary.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        cure = "remove the directory, or choose another --output-dir"
        raise RunDirectoryError(rule_message(f"{path} must be whole", got=error, cure=cure)) from None
    changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
    if changed:
        name = changed[0]
        rule = f"{directory} holds records made with other settings ({', '.join(changed)})"
        got = f"{name}={settings.get(name)!r} instead of {before.get(name)!r}"
        raise RunDirectoryError(
            rule_message(rule, got=got, cure="choose another --output-dir, or restore the settings")
        )


def fingerprint(checkpoint: Path) -> str:
    """Short hash over sizes, first and last bytes of the weight files: another checkpoint under the same path differs."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{path.name}:{size}:".encode() + file.read(_EDGE_BYTES))
            file.seek(max(0, size - _EDGE_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]
