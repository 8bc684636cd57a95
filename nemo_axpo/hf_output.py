"""A Hugging Face checkpoint directory that is whole or absent: written beside its place and renamed into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_axpo.errors import RunDirectoryError, rule_message
from nemo_axpo.models.qwen3_vl import loading


def check_output(output: Path) -> None:
    """RunDirectoryError unless ``output`` is new or an empty directory."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        rule = "--output must be new or an empty directory"
        raise RunDirectoryError(rule_message(rule, got=output, cure="remove it or choose another one"))


def write_whole(named_tensors: Iterable[tuple[str, Tensor]], *, output: Path, hf_config: Any, source: Path) -> None:
    """Writes the model and ``source``'s tokenizer and processor; errors of ``save_hf_checkpoint``, and nothing is left."""
    staging = output.with_name(f".{output.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        loading.save_hf_checkpoint(staging, named_tensors, hf_config=hf_config, source=source)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    os.rename(staging, output)
