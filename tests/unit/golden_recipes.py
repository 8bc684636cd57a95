"""What a recipe sets, key by key, as the golden files hold it; run it to write them anew and review the difference:

    python tests/unit/golden_recipes.py
"""

from __future__ import annotations

from pathlib import Path

from nemo_axpo.config.load import RECIPES, config_directory, load_config
from nemo_axpo.config.schema import Config
from nemo_axpo.run_directory import changed_keys

GOLDEN = Path(__file__).parent / "golden" / "recipes"


def recipe_names() -> list[str]:
    return sorted(f"{RECIPES}/{path.stem}" for path in (config_directory() / RECIPES).glob("*.yaml"))


def golden_text(name: str) -> str:
    """Keys in which the composed recipe differs from the schema's defaults, a line each: ``key: default -> value``."""
    return "".join(f"{line}\n" for line in changed_keys(Config(), load_config(config_name=name)))


def golden_path(name: str) -> Path:
    return GOLDEN / f"{name.removeprefix(RECIPES + '/')}.txt"


if __name__ == "__main__":
    for recipe in recipe_names():
        golden_path(recipe).write_text(golden_text(recipe), encoding="utf-8")
