"""What an image must be able to do, run inside it: imports, versions, one optimizer step on the CPU, one on the GPU.

    python containers/smoke.py            the step on the GPU is left out, and said so, where there is none
    python containers/smoke.py --gpu      a GPU must be there
    python containers/smoke.py --no-steps imports and versions alone, as in a build, where no GPU is
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from nemo_axpo.launcher.preflight import versions

_MODULES = ("torch", "megatron.core", "transformers", "nemo_axpo.train", "nemo_axpo.engines.vllm_server.client",
            "nemo_aligner.models.alignable_interface")  # fmt: skip
_DISTRIBUTIONS = {"torch": "torch", "megatron.core": "megatron-core", "transformers": "transformers"}
_STEP = ("sft.num_steps=1", "sft.batch_size=4", "eval.window_questions=0", "logging.tensorboard=false")


def main() -> int:
    """0 when everything works; the first failure ends it with its own message."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", action="store_true", help="fail where there is no GPU")
    parser.add_argument("--no-steps", action="store_true", help="imports and versions alone")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
    for module in _MODULES:
        importlib.import_module(module)
    check_copies()
    print("versions:", ", ".join(f"{name} {version}" for name, version in versions().items()))
    if options.no_steps:
        return 0
    step("cpu")
    import torch

    if torch.cuda.is_available():
        step("cuda")
    elif options.gpu:
        print("smoke: --gpu needs a GPU, and torch sees none", file=sys.stderr)
        return 1
    else:
        print("no GPU: its step was left out")
    return 0


def check_copies() -> None:
    """AssertionError where another copy than the installed one is imported, as from a PYTHONPATH of the base image."""
    for module, distribution in _DISTRIBUTIONS.items():
        found, installed = importlib.import_module(module), importlib.metadata.version(distribution)
        assert _public(found.__version__) == _public(installed), (
            f"{module} {found.__version__} of {found.__file__} is imported, and {installed} is installed: "
            f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
        )


def _public(version: str) -> str:
    """Without the name of a build: 2.13.0+cpu is 2.13.0."""
    return str(version).partition("+")[0]


def step(device: str) -> None:
    """One optimizer step of the tiny model in a process of its own; CalledProcessError where it fails."""
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        words = ["sft", "--output-dir", str(run), f"device={device}", *_STEP]
        subprocess.run([sys.executable, "-m", "nemo_axpo.cli", *words], check=True, stdout=subprocess.DEVNULL)
        assert (run / "hf" / "model.safetensors").is_file(), "the step left no policy"
    print(f"one step on {device}: done")


if __name__ == "__main__":
    sys.exit(main())
