"""A launcher-style stage (``run``, ``trainer``, ``exp_manager``, ``pretrained_checkpoint``, ``model``) as a config of ours.

    run_from_nemo({"trainer": {"num_nodes": 2, "devices": 8}, "model": {"tensor_model_parallel_size": 4}, ...})
    → NemoRun(config with job.num_nodes 2, actor.tensor_parallel 4, ..., resume=True)

Every key is read, or refused: a run must not do something else than its file says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_axpo.config.load import config_directory, config_from_values
from nemo_axpo.config.messages import did_you_mean
from nemo_axpo.config.nemo_precision import fp8_from_nemo
from nemo_axpo.config.schema import Config
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.launcher.key_tables import (
    COMPUTED,
    COPIES,
    FIXED,
    FP8_PREFIXES,
    REFUSED_SECTIONS,
    RENAMED,
    SECTIONS,
    WITHOUT_EFFECT,
)
from nemo_axpo.launcher.resolvers import register_resolvers

_DTYPES = {"bf16": "bfloat16", "bf16-mixed": "bfloat16", "bf16-true": "bfloat16", "32": "float32", "32-true": "float32"}
_DEVICES = {"gpu": "cuda", "cuda": "cuda", "cpu": "cpu"}
_OPTIMIZERS = {"distributed_fused_adam": True, "mcore_distributed_optim": True, "fused_adam": False, "adamw": False}
_ALGORITHMS = {"axpo": "axpo", "grpo": "grpo"}
_GRANULARITIES = {None: "none", "selective": "selective", "full": "full"}
RESAMPLING = ("num_continuations", "resample_ratio")
"""Of the algorithm's keys those that GRPO does not have."""


@dataclass(frozen=True)
class NemoRun:
    """What a stage asks for."""

    config: Config
    resume: bool
    """``exp_manager.resume_if_exists``: continue the run in its directory where there is one."""


def load_nemo_run(path: str | Path, *, overrides: Sequence[str] = (), base_results_dir: str = "outputs") -> NemoRun:
    """The stage file at ``path``, as it is in ``conf/axpo`` or as the launcher saved it, changed by ``trainer.x=y``.

    ``base_results_dir`` is what the launcher's config says under this name. ConfigError for keys that are not read, and for
    interpolations that do not resolve.
    """
    register_resolvers()
    _check_is_stage(Path(path))
    try:
        stage = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        whole = OmegaConf.create({"base_results_dir": base_results_dir, "axpo": stage})
        values = OmegaConf.to_container(whole.axpo, resolve=True)
    except OmegaConfBaseException as error:
        cure = "correct the key it names"
        raise ConfigError(rule_message(f"{path} must be a stage that resolves", got=error, cure=cure)) from None
    return run_from_nemo(values)


def _check_is_stage(path: Path) -> None:
    """ConfigError for a file that is not there, and for a recipe of our own."""
    if not path.is_file():
        shipped = config_directory() / "axpo" / "qwen3_vl"
        known = ", ".join(sorted(file.name for file in shipped.glob("*.yaml")))
        raise ConfigError(rule_message("a stage is a YAML file", got=path, cure=f"in {shipped} there are {known}"))
    if "defaults" in OmegaConf.load(path):
        cure = "give it as --config-name, relative to conf and without .yaml"
        raise ConfigError(rule_message("a stage in NeMo's keys has no defaults list", got=f"{path}, a recipe", cure=cure))


def run_from_nemo(stage: Mapping[str, Any]) -> NemoRun:
    """The run that a resolved stage describes; ConfigError for each key that is unknown or cannot be honoured."""
    keys = dict(_flatten(stage))
    fp8 = {key.removeprefix("model."): keys.pop(key) for key in list(keys) if _is_fp8(key)}
    own = {
        section: stage["model"]["axpo"][section] for section in SECTIONS if f"model.axpo.{section}" in _sections(stage)
    }
    keys = {key: value for key, value in keys.items() if not key.startswith(tuple(f"model.axpo.{s}." for s in own))}
    problems = [*_unknown(keys), *_refused(keys), *_unequal_copies(keys)]
    if problems:
        raise ConfigError("\n".join(problems))
    values = _data_recipe(keys.get("model.data.recipe"))
    for key, value in keys.items():
        for target in RENAMED.get(key, ()):
            _put(values, target, value)
    for target, value in _computed(keys).items():
        _put(values, target, value)
    for section, entries in own.items():
        values[section] = {**values.get(section, {}), **entries}
    if values["algorithm"]["name"] == "grpo":  # so that two runs may differ by this one word
        for key in RESAMPLING:
            values["algorithm"].pop(key, None)
    if fp8:
        values.setdefault("actor", {}).update(fp8_from_nemo(fp8))
    return NemoRun(config_from_values(values), resume=bool(keys.get("exp_manager.resume_if_exists", False)))


def _data_recipe(name: str | None) -> dict[str, Any]:
    """The sections of ``conf/data/NAME.yaml``: questions and how their answers are judged."""
    if name is None:
        return {}
    directory = config_directory() / "data"
    path = directory / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in directory.glob("*.yaml")))
        raise ConfigError(rule_message("model.data.recipe is a file of conf/data", got=name, cure=f"there: {known}"))
    sections = OmegaConf.to_container(OmegaConf.load(path))
    is_global = path.read_text(encoding="utf-8").startswith("# @package _global_")
    return sections if is_global else {"data": sections}


def _computed(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Our keys whose values follow from several of NeMo's."""
    dtype = _choice(keys, "trainer.precision", _DTYPES, default="bf16")
    _check_max_input(keys)
    _check_master_weights(keys, dtype=dtype)
    _check_max_steps(keys)
    _check_constant_rate(keys)
    is_served_by_trtllm = bool(keys.get("trainer.axpo.trt_llm.enable", False))
    granularity = _choice(keys, "model.activations_checkpoint_granularity", _GRANULARITIES, default=None)
    scheme = keys.get("model.peft.peft_scheme")
    return {
        "algorithm.name": _choice(keys, "trainer.axpo.algorithm", _ALGORITHMS, default="axpo"),
        "device": _choice(keys, "trainer.accelerator", _DEVICES, default="gpu"),
        "actor.dtype": dtype,
        "engine.dtype": dtype,
        "engine.name": "trtllm" if is_served_by_trtllm else "vllm_server",
        "actor.recompute": granularity,
        "actor.distributed_optimizer": _choice(
            keys, "model.optim.name", _OPTIMIZERS, default="mcore_distributed_optim"
        ),
        "actor.peft": None if scheme in (None, "none") else scheme,
        **_batches(keys),
        **_time_limit(keys),
    }


def _batches(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of a micro-batch in tokens; rows of an optimizer step as a number of steps."""
    found: dict[str, Any] = {}
    length = keys.get("model.encoder_seq_length")
    if length and keys.get("model.micro_batch_size"):
        found["actor.micro_batch_tokens"] = length * keys["model.micro_batch_size"]
    size = keys.get("model.global_batch_size")
    if size:
        questions, rollouts = (
            keys.get("model.axpo.num_rollout_samples"),
            keys.get("trainer.axpo.num_rollouts_per_prompt"),
        )
        if not questions or not rollouts or (questions * rollouts) % size:
            rule = "model.global_batch_size must divide model.axpo.num_rollout_samples x trainer.axpo.num_rollouts_per_prompt"
            got = f"{size} for {questions} x {rollouts}"
            raise ConfigError(rule_message(rule, got=got, cure="correct one of them"))
        found["actor.num_minibatches"] = questions * rollouts // size
    return found


def _check_constant_rate(keys: Mapping[str, Any]) -> None:
    """A learning rate that stays what it is after the warm-up; other schedules are refused."""
    name, lr = keys.get("model.optim.sched.name"), keys.get("model.optim.lr")
    is_constant = name == "CosineAnnealing" and keys.get("model.optim.sched.min_lr") == lr
    if name not in (None, "WarmupPolicy") and not is_constant:
        rule = "the learning rate is constant after its warm-up"
        cure = "set model.optim.sched to null or {name: WarmupPolicy}, or min_lr of CosineAnnealing to lr"
        raise ConfigError(rule_message(rule, got=f"model.optim.sched.name: {name}", cure=cure))


def _time_limit(keys: Mapping[str, Any]) -> dict[str, Any]:
    limits = [keys.get(name) for name in ("trainer.max_time", "exp_manager.max_time_per_run")]
    given = sorted({limit for limit in limits if limit is not None})
    if len(given) > 1:
        rule = "trainer.max_time and exp_manager.max_time_per_run are one limit"
        raise ConfigError(rule_message(rule, got=" and ".join(given), cure="set one of them"))
    return {"job.max_time": given[0]} if given else {}


def _check_max_steps(keys: Mapping[str, Any]) -> None:
    """Lightning's own limit is a copy of the algorithm's, which must be a number: there is no end of the data."""
    steps = keys.get("trainer.axpo.max_steps")
    if steps is not None and steps < 1:
        rule = "trainer.axpo.max_steps must be a number of steps"
        cure = "give it; one pass over the questions is their number / model.axpo.num_rollout_samples"
        raise ConfigError(rule_message(rule, got=steps, cure=cure))
    if keys.get("trainer.max_steps") not in (None, -1, steps):
        rule = "trainer.max_steps is a copy of trainer.axpo.max_steps"
        got = f"{keys['trainer.max_steps']} and {steps}"
        raise ConfigError(rule_message(rule, got=got, cure="set trainer.max_steps=${.axpo.max_steps}"))


def _check_master_weights(keys: Mapping[str, Any], *, dtype: str) -> None:
    if dtype == "bfloat16" and keys.get("model.megatron_amp_O2", True) is not True:
        rule = "bf16 is trained with float32 master weights: model.megatron_amp_O2 must be true"
        raise ConfigError(rule_message(rule, got="false", cure="set it to true, or trainer.precision=32"))


def _check_max_input(keys: Mapping[str, Any]) -> None:
    """Servers take whole rows, as their own flags say; NeMo-Aligner's default, the difference, asks for no less."""
    key, length, turn = "trainer.axpo.trt_llm.max_input_len", "model.encoder_seq_length", "model.axpo.length_params.max_length"
    given, least = keys.get(key), keys.get(length, 0) - keys.get(turn, 0)
    if given is not None and given < least:
        rule = f"{key} must be at least {length} - {turn}: servers are asked for whole rows"
        raise ConfigError(rule_message(rule, got=f"{given} < {least}", cure="remove it; servers have flags of their own"))


def _unequal_copies(keys: Mapping[str, Any]) -> Iterator[str]:
    for copy, original in COPIES.items():
        for key in (name for name in keys if _is_in(name, (copy,))):
            source = original.removesuffix("*") + key.removeprefix(copy.removesuffix("*")) if "*" in copy else original
            if keys[key] != keys.get(source):
                got = f"{keys[key]} and {keys.get(source)}"
                yield rule_message(f"{key} is a copy of {source}", got=got, cure=f"set {key}=${{{source}}}")


def _choice(keys: Mapping[str, Any], key: str, meanings: Mapping[Any, Any], *, default: Any) -> Any:
    value = keys.get(key, default)
    word = value if value is None else str(value)
    if word not in meanings:
        rule = f"{key} must be one of {', '.join('null' if word is None else str(word) for word in meanings)}"
        raise ConfigError(rule_message(rule, got=value, cure="choose one of them"))
    return meanings[word]


def _unknown(keys: Mapping[str, Any]) -> Iterator[str]:
    known = {*RENAMED, *FIXED, *COPIES, *WITHOUT_EFFECT, *COMPUTED}
    for key, value in keys.items():
        is_empty_section = not value and any(name.startswith(f"{key}.") for name in known)
        if _is_in(key, known) or _is_in(key, REFUSED_SECTIONS) or is_empty_section:
            continue
        section = key.rpartition(".")[0]
        siblings = sorted(name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section)
        cure = (
            did_you_mean(key, known) or f"remove it; known in {section or 'a stage'}: {', '.join(siblings) or 'none'}"
        )
        yield rule_message("unknown key of a stage", got=f"{key}: {value!r}", cure=cure)


def _is_in(key: str, names: Collection[str]) -> bool:
    """Whether ``key`` is one of ``names``, or stands in a section ``name.*`` of them."""
    parts = key.split(".")
    return key in names or any(f"{'.'.join(parts[:count])}.*" in names for count in range(1, len(parts)))


def _refused(keys: Mapping[str, Any]) -> Iterator[str]:
    for section, reason in REFUSED_SECTIONS.items():
        found = [key for key in keys if _is_in(key, (section,))]
        if found:
            yield rule_message(f"{section.removesuffix('.*')} has no meaning here: {reason}", got=", ".join(found), cure="remove it")
    for key, (values, reason) in FIXED.items():
        if key in keys and not any(keys[key] == value and type(keys[key]) in _kinds(value) for value in values):
            allowed = " or ".join("null" if value is None else str(value).lower() for value in values)
            yield rule_message(f"{key} must be {allowed}: {reason}", got=repr(keys[key]), cure="change or remove it")


def _kinds(value: Any) -> tuple[type, ...]:
    """1 is no True, but 1 is 1.0."""
    return (int, float) if isinstance(value, int | float) and not isinstance(value, bool) else (type(value),)


def _is_fp8(key: str) -> bool:
    return key.startswith(tuple(f"model.{prefix}" for prefix in FP8_PREFIXES))


def _sections(stage: Mapping[str, Any]) -> set[str]:
    """Which of our own sections stand under ``model.axpo``."""
    own = (stage.get("model") or {}).get("axpo") or {}
    return {f"model.axpo.{name}" for name, value in own.items() if isinstance(value, Mapping) and value}


def _flatten(values: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys; an empty section stays, so that it can be refused or let through."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, prefix=f"{prefix}{name}.")
        else:
            yield prefix + str(name), value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key; a null of NeMo leaves our default, unless it says something here."""
    if value is None and key not in ("model.path", "actor.virtual_pipeline", "actor.peft"):
        return
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[leaf] = value
