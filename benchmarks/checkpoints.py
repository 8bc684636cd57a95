"""Seconds to save and load a training checkpoint of the quickstart's model on one process, on local disk.

    OMP_NUM_THREADS=1 python benchmarks/checkpoints.py --output benchmarks/results/checkpoints.json

Beside it megatron's own writer with its default settings on the same state: what it costs to start processes for a
model this small.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from environment import argument_parser, write_result
from timing import repeated

from nemo_axpo.actors.actor import Actor

# isort: split
from megatron.core import dist_checkpointing

from nemo_axpo.actors.optimizer import AdamSettings
from nemo_axpo.actors.random_states import random_states
from nemo_axpo.checkpoints.store import CheckpointStore
from nemo_axpo.data.images import ImageStore, load_image_processor
from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer


class Saves:
    """The same state, saved in several ways."""

    def __init__(self, directory: Path, *, checkpoint: Path) -> None:
        self.actor = Actor(
            checkpoint, image_store=ImageStore(load_image_processor(checkpoint)), banned_token_ids=(),
            optimizer=AdamSettings(1e-3),
        )  # fmt: skip
        self._directory, self._step = directory, 0

    def store(self, name: str) -> CheckpointStore:
        """Checkpoints of one way of saving."""
        return CheckpointStore(self._directory / name, is_async=name == "async")

    def save(self, store: CheckpointStore) -> None:
        """One save; an asynchronous one is still to be finished."""
        self._step += 1
        state = {"actor": self.actor.state_values()}
        store.save(self._step, tensors=self.actor.sharded_state(), state=state, random_states=random_states())

    def load(self, store: CheckpointStore) -> None:
        """Reads the newest checkpoint, every checksum included."""
        saved = store.read()
        self.actor.load_state(saved.load_tensors(self.actor.sharded_state(is_loading=True)), saved.state["actor"])

    def save_with_megatron(self) -> None:
        """Megatron's default writer; no checksums, no state of ours."""
        self._step += 1
        path = self._directory / f"megatron_{self._step}"
        path.mkdir()
        dist_checkpointing.save(dict(self.actor.sharded_state()), str(path))


def seconds(action: Callable[[], object], *, repeats: int, after: Callable[[], object] | None = None) -> dict:
    """First and best wall seconds, as other work on a machine only adds; ``after`` is not counted."""
    times = [call.wall_s for call in repeated(action, repeats=repeats, after=after)]
    return {"first_s": times[0], "best_s": min(times)}


def measure(directory: Path, *, checkpoint: Path, repeats: int) -> dict[str, object]:
    """Every way of saving, and loading."""
    saves = Saves(directory, checkpoint=checkpoint)
    plain, background = saves.store("sync"), saves.store("async")
    results: dict[str, object] = {
        "save": seconds(lambda: saves.save(plain), repeats=repeats),
        "async_save_returns": seconds(lambda: saves.save(background), repeats=repeats, after=background.finish),
        "load": seconds(lambda: saves.load(plain), repeats=repeats),
        "megatron_default_writer": seconds(saves.save_with_megatron, repeats=repeats),
    }
    newest = plain.path_of(plain.steps()[-1])
    results["num_bytes"] = sum(path.stat().st_size for path in newest.iterdir())
    results["num_parameters"] = sum(tensor.numel() for _, tensor in saves.actor.hf_tensors())
    return results


def main() -> None:
    """Measures, prints and writes."""
    parser = argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = save_tiny_checkpoint(
            Path(directory) / "model", tokenizer=build_tokenizer(), vocab_size=VOCAB_SIZE, seed=0
        )
        results = measure(Path(directory), checkpoint=checkpoint, repeats=arguments.repeats)
    print(json.dumps(results, indent=1))
    write_result(arguments.output, {"results": results})


if __name__ == "__main__":
    main()
