"""Verifiers by data source, as the ``rewards`` section says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from nemo_axpo.config.schema import RewardsConfig
from nemo_axpo.errors import rule_message
from nemo_axpo.remote.answer_cache import AnswerCache
from nemo_axpo.remote.build import build_client
from nemo_axpo.rewards.any_of import AnyOf
from nemo_axpo.rewards.base import Verifier, VerifierRegistry
from nemo_axpo.rewards.exact_match import ExactMatch
from nemo_axpo.rewards.judge import LlmJudge
from nemo_axpo.rewards.math_equality import MathEquality
from nemo_axpo.rewards.multiple_choice import MultipleChoice
from nemo_axpo.rewards.number import NumberEquality
from nemo_axpo.rewards.token_f1 import TokenF1
from nemo_axpo.rewards.workers.pool import CallLimits


def build_verifiers(config: RewardsConfig) -> VerifierRegistry:
    """One object per name, shared by its sources; processes and connections start at the first answer."""
    built = {name: _BUILDERS[name](config) for name in sorted(config.verifiers)}
    return VerifierRegistry({source: _verifier(names, built) for source, names in config.sources.items()})


def key_problems(config: RewardsConfig) -> Iterator[str]:
    """Keys that this machine's environment lacks."""
    variable = config.judge.key_variable
    if "judge" in config.verifiers and variable and not os.environ.get(variable):
        cure = f"export {variable}=..., or set rewards.judge.key_variable=null for an endpoint without a key"
        yield rule_message(f"the judge's key is read from {variable}", got="it is not set", cure=cure)


def _verifier(names: str | tuple[str, ...], built: Mapping[str, Verifier]) -> Verifier:
    members = [built[name] for name in ([names] if isinstance(names, str) else names)]
    return members[0] if len(members) == 1 else AnyOf(members)


def _math(config: RewardsConfig) -> Verifier:
    section = config.math
    limits = CallLimits(cpu_s=section.cpu_s, stall_s=section.stall_s, memory_mib=section.memory_mib)
    return MathEquality(num_workers=section.num_workers, limits=limits, max_answer_chars=section.max_answer_chars)


def _judge(config: RewardsConfig) -> Verifier:
    section = config.judge
    return LlmJudge(
        build_client(section),
        model=section.model,
        body=section.body,
        cache=AnswerCache(section.cache_dir),
        has_rule=section.has_rule,
        max_answer_chars=section.max_answer_chars,
    )


_BUILDERS: Mapping[str, Callable[[RewardsConfig], Verifier]] = {
    "exact_match": lambda _: ExactMatch(),
    "multiple_choice": lambda _: MultipleChoice(),
    "token_f1": lambda config: TokenF1(threshold=config.f1_threshold),
    "number": lambda config: NumberEquality(tolerance=config.number_tolerance),
    "math": _math,
    "judge": _judge,
}
