"""A real checkpoint for whoever needs one."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with random weights."""
    from scripted_agent import tokenizer

    from nemo_axpo.models.qwen3_vl.tiny import save_tiny_checkpoint
    from nemo_axpo.world.tokenizer import VOCAB_SIZE

    path = tmp_path_factory.mktemp("random_weights")
    return save_tiny_checkpoint(path, tokenizer=tokenizer(), vocab_size=VOCAB_SIZE, seed=0)
