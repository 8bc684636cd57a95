"""From ``conf/``, a command line or a saved run to a validated :class:`Config`.

Hydra composes the files (config groups such as ``algorithm=grpo``); value overrides (``train.num_steps=10``) are laid over
them; the schema then judges the whole, so a misspelt key gets the same answer whether it stood in a file or on the command
line.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from nemo_axpo.config.messages import describe_validation_error, did_you_mean
from nemo_axpo.config.schema import Config
from nemo_axpo.errors import ConfigError, rule_message

RECIPES = "recipes"
"""Directory of ``conf/`` with complete jobs on real models: ``--config-name recipes/axpo_8b``."""
_HYDRA_LOCK = threading.Lock()
"""Hydra composes in one global state: two threads at once would refuse each other."""


def config_directory() -> Path:
    """Where the shipped ``conf/`` lies: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def load_config(
    overrides: Sequence[str] = (),
    *,
    config_name: str = "config",
    config_dir: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Config:
    """Composes ``conf/<config_name>.yaml`` with Hydra-style overrides.

    ``config_dir`` is a directory of your own: its files come first, the shipped groups stay available. ``settings`` maps
    dotted keys to values and is laid over everything, unparsed (paths may hold any character). ConfigError for anything
    that does not fit the schema.
    """
    directory = Path(config_dir).resolve() if config_dir else config_directory()
    _check_config_file(directory, config_name=config_name)
    parsed = _parse_overrides(overrides)
    groups = _config_groups(directory, config_directory())
    composed = _compose(directory, config_name=config_name, choices=[o for o in parsed if _is_choice(o, groups=groups)])
    for override in parsed:
        if not _is_choice(override, groups=groups):
            _set(composed, key=override.key_or_group, value=override.value())
    for key, value in (settings or {}).items():
        _set(composed, key=key, value=value)
    return validate_config(_resolved(composed))


def config_from_values(values: Mapping[str, Any]) -> Config:
    """Nested plain values laid over the schema's defaults, as a recipe's are; ConfigError as for a recipe."""
    return validate_config(_resolved(OmegaConf.create(dict(values))))


def validate_config(values: Mapping[str, Any]) -> Config:
    """The schema's judgement on plain values; ConfigError names every offending key."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, values=values)) from None


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """``config`` with other values at dotted keys, judged anew."""
    changed = OmegaConf.create(config.model_dump(mode="json"))
    for key, value in settings.items():
        _set(changed, key=key, value=value)
    return validate_config(OmegaConf.to_container(changed))


def save_config(config: Config, path: str | Path) -> None:
    """Writes the resolved config, every default included, so that ``load_saved_config`` returns an equal one."""
    path = Path(path)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def load_saved_config(path: str | Path) -> Config:
    """The config that ``save_config`` wrote; FileNotFoundError, or ConfigError for a file that does not fit the schema."""
    try:
        loaded = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ConfigError(rule_message(f"{path} must be a YAML file", got=error, cure="repair or remove it")) from None
    return validate_config(_resolved(loaded))


def _check_config_file(directory: Path, *, config_name: str) -> None:
    files = [*directory.glob("*.yaml"), *(directory / RECIPES).glob("*.yaml")]
    names = sorted(str(path.relative_to(directory).with_suffix("")) for path in files)
    if config_name.removesuffix(".yaml") not in names:
        cure = did_you_mean(config_name, names) or f"there are: {', '.join(names) or 'none'}"
        raise ConfigError(rule_message(f"--config-name must name a file of {directory}", got=config_name, cure=cure))


def _config_groups(*directories: Path) -> dict[str, list[str]]:
    """Options of every config group by group name (``algorithm`` → ``axpo``, ``grpo``)."""
    groups: dict[str, set[str]] = {}
    for directory in directories:
        for path in directory.glob("*/*.yaml"):
            groups.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(options) for group, options in groups.items()}


def _parse_overrides(overrides: Sequence[str]) -> list[Override]:
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            rule_message("an override has the form section.key=value", got=reason, cure="quote or correct it")
        ) from None
    for override in parsed:
        if override.is_sweep_override() or override.is_delete():
            raise ConfigError(
                rule_message("an override sets one value", got=override.input_line, cure="give one value per key")
            )
    return parsed


def _is_choice(override: Override, *, groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether it chooses an option of a config group; ConfigError for an option the group does not have."""
    group, value = override.key_or_group, override.value()
    if group not in groups or not isinstance(value, str):
        return False
    if value not in groups[group]:
        options = ", ".join(groups[group])
        raise ConfigError(rule_message(f"{group} must be one of: {options}", got=value, cure="choose one of these"))
    return True


def _compose(directory: Path, *, config_name: str, choices: Sequence[Override]) -> DictConfig:
    lines = [choice.input_line for choice in choices]
    if directory != config_directory():
        lines.append(f"hydra.searchpath=['file://{config_directory()}']")
    try:
        with _HYDRA_LOCK, initialize_config_dir(config_dir=str(directory), version_base="1.3"):
            composed = compose(config_name=config_name, overrides=lines)
    except (HydraException, OmegaConfBaseException) as error:
        where = f"{directory / config_name}.yaml"
        raise ConfigError(rule_message(f"{where} must compose", got=error, cure="correct its defaults list")) from None
    OmegaConf.set_struct(composed, False)
    return composed


def _set(config: DictConfig, *, key: str, value: Any) -> None:
    try:
        OmegaConf.update(config, key, value, merge=True, force_add=True)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError(rule_message("an override names a key of a section", got=f"{key}={value} ({error})",
                                       cure="write section.key=value")) from None  # fmt: skip


def _resolved(config: DictConfig) -> dict[str, Any]:
    """Plain values with every interpolation resolved; interpolations see the schema's defaults too."""
    try:
        defaults = OmegaConf.create(Config().model_dump(mode="json", exclude={"algorithm"}))
        merged = OmegaConf.merge(defaults, config)
        return OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            rule_message("every section and interpolation must resolve", got=error, cure="correct the key it names")
        ) from None
