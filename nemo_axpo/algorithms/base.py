"""What the loop asks of an algorithm: a plan of what to resample, then exactly one advantage per row.

An algorithm sees scalars only, so every rank can gather all scores, run the same pure function and reach the same
answer: no result depends on the order in which the scores arrive. Ties are broken by rollout id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from nemo_axpo.types import Credit, ResamplePlan, ResampleScore, RolloutScore


class Algorithm(Protocol):
    """Contract: ``plan`` and ``credit`` are pure; each arrived row gets exactly one :class:`Credit`."""

    @property
    def num_rollouts(self) -> int:
        """N: ordinary rollouts per question."""

    def plan(self, scores: Sequence[RolloutScore]) -> ResamplePlan:
        """Thinking prefixes to resample, given the ordinary rollouts of the whole step in any order."""

    def certain_plan(
        self, finished: Sequence[RolloutScore], *, num_running: Mapping[str, int], num_unknown: int = 0
    ) -> ResamplePlan:
        """What :meth:`plan` will select among complete questions, however the rest of the step turns out.

        ``num_running``: by question id, how many of its rollouts are not in ``finished`` yet; an absent question is
        complete. ``num_unknown``: questions of the step of which nothing is known.
        """

    def credit(
        self, scores: Sequence[RolloutScore], plan: ResamplePlan, resamples: Sequence[ResampleScore]
    ) -> tuple[Credit, ...]:
        """Credits of every ordinary rollout and every continuation, sorted by rollout id."""


_ALGORITHMS: dict[str, Callable[..., Algorithm]] = {}
_Factory = TypeVar("_Factory", bound=Callable[..., Algorithm])


def register_algorithm(name: str) -> Callable[[_Factory], _Factory]:
    """Class decorator that makes an algorithm available as ``name``; ValueError when the name is taken."""

    def register(factory: _Factory) -> _Factory:
        if name in _ALGORITHMS:
            raise ValueError(f"an algorithm name is registered once; {name!r} is taken: choose another name")
        _ALGORITHMS[name] = factory
        return factory

    return register


def get_algorithm(name: str) -> Callable[..., Algorithm]:
    """The constructor registered as ``name``; ValueError that lists the known names otherwise."""
    if name not in _ALGORITHMS:
        known = ", ".join(sorted(_ALGORITHMS))
        raise ValueError(f"the algorithm must be one of: {known}; got {name!r}: use one of these or register yours")
    return _ALGORITHMS[name]


def check_group_size(*, num_questions: int, num_rollouts: int) -> None:
    """ValueError unless B >= 1 and N >= 2: in a group of one the reward equals its mean and nothing is learned."""
    if num_questions < 1:
        raise ValueError(f"a step needs B >= 1 questions; got B={num_questions}: raise the number of questions")
    if num_rollouts < 2:
        raise ValueError(
            f"group-relative advantages need N >= 2 rollouts per question; got N={num_rollouts}: "
            "raise the number of rollouts (the paper uses 8)"
        )
