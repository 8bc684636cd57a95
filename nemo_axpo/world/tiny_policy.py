"""The embedded world's policy before any training: the tiny model with random weights and the world's tokenizer."""

from __future__ import annotations

from pathlib import Path

from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
from nemo_axpo.world.tokenizer import VOCAB_SIZE, build_tokenizer

DIRECTORY = "random_weights"


def tiny_policy(run_path: Path, *, seed: int) -> Path:
    """Writes the checkpoint below a run directory, where it is not there yet, and returns its directory."""
    path = run_path / DIRECTORY
    if not (path / "model.safetensors").is_file():
        save_tiny_checkpoint(path, tokenizer=build_tokenizer(), vocab_size=VOCAB_SIZE, seed=seed)
    return path
