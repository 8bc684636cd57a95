"""The directory of one run: who may use it, and where its files lie.

    config.yaml   metrics.jsonl   journal.jsonl   evaluation.json   rollouts/step_00010.jsonl   images/<id>.png
    checkpoints/   tensorboard/   stopped.json (asked to stop, to be resumed)

It belongs to one config for good and to one process at a time. A directory that holds anything else is refused before a
byte of it changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from nemo_axpo.config.load import load_saved_config, save_config
from nemo_axpo.config.schema import Config
from nemo_axpo.errors import ConfigError, RunDirectoryError, rule_message
from nemo_axpo.metrics_log import truncate_metrics
from nemo_axpo.types import ImageId

CONFIG_FILE, LOCK_FILE = "config.yaml", ".lock"
RESUMABLE_CHANGES = (
    "output_dir",
    "loop",
    "train.num_steps",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.checkpoint_async",
    "train.record_every",
    "sft.checkpoint_every",
    "job",
    "logging",
    "actor.tensor_parallel",
    "actor.pipeline_parallel",
    "actor.sequence_parallel",
    "actor.distributed_optimizer",
    "actor.offload_optimizer",
    "actor.recompute",
    "actor.micro_batch_tokens",
    "actor.logprob_chunk_tokens",
    "actor.transformer_impl",
    "actor.packing",
    "engine.servers",
    "engine.request_timeout_s",
    "engine.max_retries",
    "engine.health_every_s",
    "engine.max_outage_s",
    "engine.sync",
    "distill.num_questions",
    "distill.num_concurrent",
    "distill.max_per_question",
    "distill.tool_share",
    "distill.endpoint.url",
    "distill.endpoint.max_concurrent",
    "distill.endpoint.timeout_s",
    "distill.endpoint.max_retries",
    "distill.endpoint.max_time_s",
    "filter.teacher",
    "filter.num_questions",
    "filter.num_concurrent",
    "tools.servers",
)
"""Keys that may differ when a run is resumed: of the numbers of a step they change at most the last digits. A job that is
queued again finds its servers on other hosts."""
_STEP_FILE = re.compile(r"step_(\d+)\.jsonl")


@dataclass(frozen=True)
class RunDirectory:
    """Paths and small files of a run; open one with :func:`open_run_directory`."""

    path: Path

    @property
    def config_path(self) -> Path:
        """Resolved config."""
        return self.path / CONFIG_FILE

    @property
    def metrics_path(self) -> Path:
        """One JSON object a step."""
        return self.path / "metrics.jsonl"

    @property
    def evaluation_path(self) -> Path:
        """Evaluations before and after training."""
        return self.path / "evaluation.json"

    @property
    def journal_path(self) -> Path:
        """Questions consumed and resume marks (``Journal``)."""
        return self.path / "journal.jsonl"

    @property
    def checkpoints_path(self) -> Path:
        """Training checkpoints (``CheckpointStore``)."""
        return self.path / "checkpoints"

    @property
    def tensorboard_path(self) -> Path:
        """TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def stopped_path(self) -> Path:
        """There while the run is neither running nor finished, because it was asked to stop."""
        return self.path / "stopped.json"

    @property
    def has_results(self) -> bool:
        """Whether it holds anything besides its config and lock."""
        return any(path.name not in (CONFIG_FILE, LOCK_FILE) for path in self.path.iterdir())

    def rollouts_path(self, step: int) -> Path:
        """Recorded groups of one step."""
        return self.path / "rollouts" / f"step_{step:05d}.jsonl"

    def image_path(self, image_id: ImageId) -> Path:
        """Picture of a recorded group."""
        return self.path / "images" / f"{image_id}.png"

    def write_groups(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes the recorded groups of a step, one JSON object a line, whole or not at all."""
        text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        _replace_text(self.rollouts_path(step), text)

    def write_image(self, image_id: ImageId, image: Image.Image) -> None:
        """Saves a picture once."""
        path = self.image_path(image_id)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            image.save(path, format="PNG")

    def write_evaluation(self, phase: str, result: Mapping[str, Any]) -> None:
        """Sets ``evaluation.json``'s entry ``phase`` (``initial`` or ``final``) and keeps the other."""
        entries = json.loads(self.evaluation_path.read_text("utf-8")) if self.evaluation_path.exists() else {}
        _replace_text(self.evaluation_path, json.dumps(entries | {phase: dict(result)}, indent=1) + "\n")

    def forget_after(self, step: int) -> None:
        """Drops metrics and records of later steps: a resumed run writes them again."""
        truncate_metrics(self.metrics_path, last_step=step)
        for path in (self.path / "rollouts").glob("step_*.jsonl"):
            match = _STEP_FILE.fullmatch(path.name)
            if match and int(match.group(1)) > step:
                path.unlink()


@contextlib.contextmanager
def open_run_directory(config: Config, *, resume: bool = False) -> Iterator[RunDirectory]:
    """Claims ``config.output_dir`` for this process and this config until the block ends.

    A new or empty directory becomes the run's. With ``resume`` a run of the same config is continued (and started where
    there is none yet). RunDirectoryError for a directory that holds something else, another run, or a finished start of
    this one without ``resume``; also where another process is using it.
    """
    run = RunDirectory(Path(config.output_dir))
    _check_is_ours(run)
    _make(run)
    with (run.path / LOCK_FILE).open("a+", encoding="utf-8") as lock:
        _lock(lock, run=run)
        _check_same_config(run, config=config)
        _check_may_start(run, resume=resume)
        is_new = not run.config_path.exists()
        save_config(config, run.config_path)
        try:
            yield run
        except BaseException:
            # So that a start which failed on a wrong setting can be repeated with the right one.
            if is_new and not run.has_results:
                run.config_path.unlink()
            raise


def check_same_run(config: Config) -> None:
    """RunDirectoryError where ``config.output_dir`` holds something else than a run of ``config``; nothing is written."""
    run = RunDirectory(Path(config.output_dir))
    _check_is_ours(run)
    _check_same_config(run, config=config)


def check_is_run(path: str | Path) -> None:
    """RunDirectoryError for a directory in which no run was ever started."""
    if not RunDirectory(Path(path)).config_path.is_file():
        rule = f"a run directory holds a {CONFIG_FILE}"
        raise RunDirectoryError(rule_message(rule, got=path, cure="give the --output-dir of a run"))


def remove_run(path: str | Path) -> None:
    """Deletes a run, or nothing where there is none. RunDirectoryError for other contents, and while a process uses it."""
    run = RunDirectory(Path(path))
    _check_is_ours(run)
    if run.path.exists():
        with (run.path / LOCK_FILE).open("a+", encoding="utf-8") as lock:
            _lock(lock, run=run)
            shutil.rmtree(run.path)


def changed_keys(old: Config, new: Config) -> list[str]:
    """Dotted keys in which two configs differ, ``key: old -> new``."""
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in sorted(keys)]


def _check_is_ours(run: RunDirectory) -> None:
    if run.path.exists() and not run.path.is_dir():
        raise RunDirectoryError(
            rule_message("output_dir must be a directory", got=run.path, cure="choose another --output-dir")
        )
    if run.path.is_dir() and not run.config_path.exists():
        foreign = sorted(entry.name for entry in run.path.iterdir() if entry.name != LOCK_FILE)
        if foreign:
            raise RunDirectoryError(
                rule_message(
                    "output_dir must be new, empty, or a run",
                    got=f"{run.path}, which holds {', '.join(foreign[:3])} and no {CONFIG_FILE}",
                    cure="choose another --output-dir",
                )
            )


def _lock(lock: TextIO, *, run: RunDirectory) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise RunDirectoryError(
            rule_message(
                "a run directory is used by one process at a time",
                got=f"{run.path}, in use by {lock.read().strip() or 'another process'}",
                cure="wait for it or stop it, or choose another --output-dir",
            )
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()


def _make(run: RunDirectory) -> None:
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        rule = "output_dir must be a place where a directory can be made"
        raise RunDirectoryError(rule_message(rule, got=error, cure="choose another --output-dir")) from None


def _check_same_config(run: RunDirectory, *, config: Config) -> None:
    if not run.config_path.exists():
        return
    try:
        changes = changed_keys(load_saved_config(run.config_path), config)
    except ConfigError as error:
        raise RunDirectoryError(
            rule_message(
                "output_dir must hold a run of this version",
                got=f"{run.config_path} ({error})",
                cure="choose another --output-dir",
            )
        ) from None
    relevant = [change for change in changes if not change.startswith(RESUMABLE_CHANGES)]
    if relevant:
        raise RunDirectoryError(
            rule_message(
                "output_dir must not hold another run",
                got=f"{run.path}, whose config differs in {'; '.join(relevant)}",
                cure="choose another --output-dir, or give the settings of that run",
            )
        )


def _check_may_start(run: RunDirectory, *, resume: bool) -> None:
    if not resume and run.metrics_path.exists():
        raise RunDirectoryError(
            rule_message(
                "output_dir already holds this run",
                got=run.path,
                cure="continue it with --resume (NeMo's exp_manager.resume_if_exists), or choose another --output-dir",
            )
        )


def _flatten(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, prefix=f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _replace_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
