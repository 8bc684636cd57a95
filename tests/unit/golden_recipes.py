"""What a recipe sets, key by key, as the golden files hold it; run it to write them anew and review the difference:

python tests/unit/golden_recipes.py
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from nemo_axpo.cli import main
from nemo_axpo.config.load import RECIPES, config_directory, load_config
from nemo_axpo.config.schema import Config
from nemo_axpo.run_directory import changed_keys

GOLDEN = Path(__file__).parent / "golden" / "recipes"


def recipe_names() -> list[str]:
    return sorted(f"{RECIPES}/{path.stem}" for path in (config_directory() / RECIPES).glob("*.yaml"))


BENCHMARKS = [word for name in ("vstar", "visual_probe_hard") for word in ("--benchmark", f"{name}=/lustre/data/{name}")]
"""Where the data of those lie whose rows name image files."""


def golden_text(name: str) -> str:
    """Keys in which the composed recipe differs from the schema's defaults, a line each: ``key: default -> value``."""
    return "".join(f"{line}\n" for line in changed_keys(Config(), load_config(config_name=name)))


def golden_path(name: str) -> Path:
    return GOLDEN / f"{name.removeprefix(RECIPES + '/')}.txt"


def sbatch_text_of(name: str) -> str:
    """The job script of a recipe on a cluster with little said about it."""
    command = "sft" if name.startswith(f"{RECIPES}/sft") else "train"
    words = ["--dry-run", "--set", "mounts=[/lustre]", "--set", "account=account", "--set", "partition=batch", "--"]
    if name.startswith(f"{RECIPES}/eval"):
        words += ["eval", "--checkpoint", "/lustre/models/policy", "--benchmark", "all", *BENCHMARKS, "--config-name", name]
    else:
        words += [command, "--config-name", name, "model.path=/lustre/models/policy"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["submit", *words, "--output-dir", f"/lustre/runs/{name.rpartition('/')[2]}"]) == 0
    return printed.getvalue()


def golden_sbatch_path(name: str) -> Path:
    return golden_path(name).with_suffix(".sbatch")


if __name__ == "__main__":
    for recipe in recipe_names():
        golden_path(recipe).write_text(golden_text(recipe), encoding="utf-8")
        golden_sbatch_path(recipe).write_text(sbatch_text_of(recipe), encoding="utf-8")
