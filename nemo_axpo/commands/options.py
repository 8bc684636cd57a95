"""What subcommands share: settings of a config, the run directory, the checks before any work."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_axpo.config.schema import Config
    from nemo_axpo.launcher.nemo_keys import NemoRun

_OVERRIDES = (
    "settings as section.key=value or group=option, e.g. algorithm=grpo train.num_steps=10 (every key: nemo-axpo keys; "
    "the groups: conf/)"
)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Settings, and the recipe that they change."""
    parser.add_argument("overrides", nargs="*", metavar="SETTING", help=_OVERRIDES)
    parser.add_argument(
        "--config-name", metavar="NAME", help="recipe: a file of conf/, e.g. recipes/axpo_8b (default: config)"
    )
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="directory of your own recipes")


def add_nemo_config(parser: argparse.ArgumentParser) -> None:
    """A stage of the NeMo launcher instead of a recipe."""
    parser.add_argument(
        "--nemo-config",
        type=Path,
        metavar="FILE",
        help="a stage in NeMo's key names, e.g. conf/axpo/qwen3_vl/8b.yaml; settings are then trainer.axpo.max_steps=10 …",
    )


def add_output_dir(parser: argparse.ArgumentParser) -> None:
    """``--output-dir``, short for the setting ``output_dir``."""
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="run directory (sets output_dir)")


def output_setting(options: argparse.Namespace) -> dict[str, str]:
    """What ``--output-dir`` sets."""
    return {} if options.output_dir is None else {"output_dir": str(options.output_dir)}


def composed_config(options: argparse.Namespace, *, settings: dict[str, str | None]) -> Config:
    """The recipe changed by the command line and ``settings``. ConfigError for what no config has."""
    from nemo_axpo.config.load import load_config, with_settings

    if getattr(options, "nemo_config", None) is not None:
        return with_settings(nemo_run(options).config, settings)
    name = options.config_name or "config"
    return load_config(options.overrides, config_name=name, config_dir=options.config_dir, settings=settings)


def nemo_run(options: argparse.Namespace) -> NemoRun:
    """The stage of ``--nemo-config``, changed by the command line. ConfigError where a recipe is named too."""
    from nemo_axpo.errors import ConfigError, rule_message
    from nemo_axpo.launcher.nemo_keys import load_nemo_run

    if options.config_name or options.config_dir:
        cure = "give one of them"
        raise ConfigError(rule_message("--nemo-config takes the place of a recipe", got="--config-name too", cure=cure))
    return load_nemo_run(options.nemo_config, overrides=options.overrides)


def run_config(run_dir: Path, *, overrides: Sequence[str] = (), settings: dict[str, str]) -> Config:
    """The config a run was started with, changed by value overrides and ``settings``."""
    from nemo_axpo.config.load import load_config
    from nemo_axpo.run_directory import check_is_run

    check_is_run(run_dir)
    return load_config(overrides, config_dir=run_dir, settings=settings)


def check(config: Config, *, needs_policy: bool) -> None:
    """ConfigError for settings that cannot work together, on this many ranks, or without a policy in ``model.path``."""
    from nemo_axpo.config.checks import check_config, check_model_path

    # torchrun and srun wrappers tell the size of the job here.
    check_config(config, world_size=int(os.environ.get("WORLD_SIZE", "1")))
    if needs_policy:
        check_model_path(config)
    layout = {"tensor_parallel": config.actor.tensor_parallel, "pipeline_parallel": config.actor.pipeline_parallel}
    if config.model.path is not None and max(layout.values()) > 1:
        from nemo_axpo.models.qwen3_vl.layout_rules import require_layout

        require_layout(config.model.path, **layout)
