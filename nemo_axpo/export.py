"""``nemo-axpo export``: the policy of a training checkpoint as a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from nemo_axpo.assembly import DTYPES
from nemo_axpo.checkpoints.store import CheckpointStore
from nemo_axpo.config.load import load_saved_config
from nemo_axpo.config.schema import Config
from nemo_axpo.errors import CheckpointError, RunDirectoryError, rule_message
from nemo_axpo.hf_output import check_output, write_whole
from nemo_axpo.models.qwen3_vl import loading
from nemo_axpo.run_directory import RunDirectory, check_is_run


def export_checkpoint(run_dir: str | Path, *, output: str | Path, step: int | None = None) -> Path:
    """Writes the policy after ``step`` steps (default: the newest checkpoint) to the directory ``output``.

    Tokenizer and image processor are those the run started with. Only weights are read, a layer at a time and from
    whichever layout: a machine too small to train the model can export it. ValueError for a directory that is no run, a run without that checkpoint, a damaged
    checkpoint, and an ``output`` that holds anything; ``output`` is then as it was.
    """
    run, output = RunDirectory(Path(run_dir)), Path(output).resolve()
    check_is_run(run.path)
    config = load_saved_config(run.config_path)
    check_output(output)
    store = CheckpointStore(run.checkpoints_path)
    step = _chosen_step(step, store=store, run=run)
    source = _source(config)
    policy = _policy(config, store=store, step=step, source=source)
    write_whole(policy, output=output, hf_config=loading.load_hf_config(source), source=source)
    print(f"exported the policy of {run.path} after step {step} to {output}")
    return output


def _source(config: Config) -> Path:
    """Where the run's weights once came from: its tokenizer, image processor and config are the policy's."""
    source = config.model.path
    if source is None or not (Path(source) / "config.json").is_file():
        raise RunDirectoryError(
            rule_message(
                "an export takes tokenizer and image processor from the checkpoint the run started with (model.path)",
                got=f"{source}, which is not there",
                cure="restore it, or export from the directory in which the run was started",
            )
        )
    return Path(source)


def _chosen_step(step: int | None, *, store: CheckpointStore, run: RunDirectory) -> int:
    steps = store.steps()
    if not steps:
        finished = run.path / "hf"
        cure = "train on to the first one (train.checkpoint_every, or the end of the run)"
        cure = f"{finished} holds the policy already" if finished.is_dir() else cure
        rule = "an export needs a training checkpoint"
        raise CheckpointError(rule_message(rule, got=f"none in {run.checkpoints_path}", cure=cure))
    if step is not None and step not in steps:
        rule = f"--step must be one of {', '.join(map(str, steps))}"
        raise CheckpointError(rule_message(rule, got=step, cure="choose one of these, or leave it out for the newest"))
    return steps[-1] if step is None else step


def _policy(config: Config, *, store: CheckpointStore, step: int, source: Path) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's weights under their Hugging Face names."""
    from nemo_axpo.actors.saved_policy import saved_policy

    hf_config = loading.load_hf_config(source)
    return saved_policy(store.read(step), hf_config=hf_config, dtype=DTYPES[config.actor.dtype])
