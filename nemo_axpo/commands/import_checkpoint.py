"""``nemo-axpo import``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``import`` and its options."""
    parser = subparsers.add_parser(
        "import",
        help="write a Megatron checkpoint as a Hugging Face checkpoint",
        description="Writes a checkpoint of Megatron-Bridge (torch_dist) as one that model.path takes.",
        epilog="example: nemo-axpo import results/qwen3_vl_8b_sft --model-files Qwen3-VL-8B-Instruct --output sft_8b",
    )
    parser.add_argument("path", type=Path, metavar="CHECKPOINT", help="an iter_… directory, or its parent: the latest")
    parser.add_argument("--model-files", type=Path, metavar="DIR", required=True,
                        help="Hugging Face directory of the model: config, tokenizer, processor; no weights needed")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="directory to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: that of the checkpoint")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from nemo_axpo.importing.convert import import_checkpoint

    import_checkpoint(options.path, model_files=options.model_files, output=options.output, dtype=options.dtype)
