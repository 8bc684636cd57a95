"""NeMo's precision keys (``megatron_gpt_config.yaml``) as settings of the actor's section.

    fp8_from_nemo({"fp8": True, "fp8_hybrid": True, "fp8_margin": 0})
    → {"transformer_impl": "transformer_engine", "fp8": {"recipe": "delayed", "format": "hybrid", "margin": 0}}

A key that means nothing here is an error, not a silence: a run must not train at another precision than its file says.
Source: NeMo 1.23 ``MegatronBaseModel.build_transformer_config`` and its config's section "Transformer Engine".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_axpo.config.messages import did_you_mean
from nemo_axpo.errors import ConfigError, rule_message

_FORMATS = {"fp8_e4m3": "e4m3", "fp8_hybrid": "hybrid"}
_RENAMED = {
    "fp8_recipe": "recipe",
    "fp8_margin": "margin",
    "fp8_amax_history_len": "amax_history_len",
    "fp8_amax_compute_algo": "amax_compute_algo",
    "fp8_wgrad": "wgrad",
    "first_last_layers_bf16": "first_last_layers_bf16",
    "num_layers_at_start_in_bf16": "num_layers_at_start_in_bf16",
    "num_layers_at_end_in_bf16": "num_layers_at_end_in_bf16",
}
_FIXED: dict[str, tuple[Any, str]] = {
    "fp8_interval": (1, "Transformer Engine finds scales at every step since 1.8"),
    "reduce_amax": (True, "maxima are always those of all ranks that share an activation"),
    "fp8_params": (False, "weights are kept in bf16, with float32 master weights, and rounded for each product"),
    "fp8_dot_product_attention": (False, "attention is computed in bf16"),
    "fp8_multi_head_attention": (False, "attention is computed in bf16"),
    "ub_tp_comm_overlap": (False, "communication of tensor parallelism is not overlapped"),
    "use_emha": (False, "attention over packed rows has its own kernel"),
}
"""Keys with one possible value, and why."""
_WITHOUT_EFFECT = ("use_te_rng_tracker",)
"""Either value gives the same run."""
_SWITCHES = ("transformer_engine", "fp8")

FP8_KEYS: dict[str, str] = {
    "transformer_engine": "actor.transformer_impl: true is transformer_engine, false local; without it auto",
    "fp8": "true: actor.fp8.recipe is delayed unless fp8_recipe says otherwise; false: bf16",
    **{key: f"true: actor.fp8.format is {name}" for key, name in _FORMATS.items()},
    **{key: f"actor.fp8.{ours}" for key, ours in _RENAMED.items()},
    **{key: f"{str(value).lower()}: {reason}" for key, (value, reason) in _FIXED.items()},
    **{key: "either value: no layer draws random numbers" for key in _WITHOUT_EFFECT},
}
"""What each key says here, by name, without the prefix ``model.`` of a stage."""


def fp8_from_nemo(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Values for the section ``actor``: ``transformer_impl``, and ``fp8`` with the keys that were given.

    As in NeMo, formats and histories of a model with ``fp8: false`` are not used. ConfigError names a key that is unknown,
    has no counterpart, or contradicts another.
    """
    _check_known(keys)
    _check_fixed(keys)
    is_fp8, has_engine = bool(keys.get("fp8", False)), keys.get("transformer_engine")
    if is_fp8 and has_engine is False:
        rule = "fp8 runs in Transformer Engine's layers"
        raise ConfigError(rule_message(rule, got="fp8: true, transformer_engine: false", cure="set both, or neither"))
    impl = "transformer_engine" if is_fp8 or has_engine else "auto" if has_engine is None else "local"
    if not is_fp8:
        return {"transformer_impl": impl, "fp8": {"recipe": None}}
    given = {ours: keys[theirs] for theirs, ours in _RENAMED.items() if theirs in keys}
    return {"transformer_impl": impl, "fp8": {"recipe": "delayed", "format": _format(keys), **given}}


def _format(keys: Mapping[str, Any]) -> str:
    chosen = [name for name in _FORMATS if keys.get(name, False)]
    if len(chosen) != 1:
        rule = "fp8: true needs exactly one of fp8_e4m3 and fp8_hybrid"
        got = " and ".join(chosen) if chosen else "neither"
        raise ConfigError(rule_message(rule, got=got, cure="set one of them to true and the other to false"))
    return _FORMATS[chosen[0]]


def _check_known(keys: Mapping[str, Any]) -> None:
    known = [*_SWITCHES, *_FORMATS, *_RENAMED, *_FIXED, *_WITHOUT_EFFECT]
    for key in keys:
        if key not in known:
            cure = did_you_mean(key, known) or f"remove it; known are {', '.join(sorted(known))}"
            raise ConfigError(rule_message("unknown precision key of NeMo", got=f"{key}: {keys[key]!r}", cure=cure))


def _check_fixed(keys: Mapping[str, Any]) -> None:
    for key, (value, reason) in _FIXED.items():
        if key in keys and keys[key] != value:
            rule = f"{key} can only be {str(value).lower()}: {reason}"
            raise ConfigError(
                rule_message(rule, got=repr(keys[key]), cure=f"set it to {str(value).lower()}, or remove it")
            )
