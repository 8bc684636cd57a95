"""The engine protocol: token ids (+ images) in, token ids + log-probs out, load weights, close."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from nemo_axpo.types import Completion, GenerationRequest


class EngineError(RuntimeError):
    """The engine could not serve a request (infrastructure, not the policy): the rollout is lost and retried."""


class PromptMismatchError(EngineError):
    """A server sampled from another prompt than the one it was sent: trying again would change nothing."""


def require_idle(num_in_flight: int) -> None:
    """EngineError while requests run: new weights under them would give a completion two policies."""
    if num_in_flight:
        raise EngineError(
            f"load_weights needs an idle engine, got {num_in_flight} requests in flight: a completion has one "
            "policy version; await or cancel them first"
        )


@runtime_checkable
class Engine(Protocol):
    """What the rollouts need of a generation engine; ``hf``, vLLM and TRT-LLM implement it.

    Contract: ``generate`` may be awaited by any number of tasks of one event loop at once; the completion depends on the
    request and the weights alone (its seed, not its neighbours); sampling bans the ids the engine was built with; the
    returned log-probs are those of the distribution sampled from, in natural log.
    """

    @property
    def policy_version(self) -> int:
        """Version of the weights in use."""

    async def generate(self, request: GenerationRequest) -> Completion:
        """Samples one completion. ValueError for a request that cannot be served as asked; EngineError when down."""

    def load_weights(self, named_tensors: Iterable[tuple[str, object]], *, policy_version: int) -> None:
        """Replaces the weights (HF names, full tensors), drops every cache and raises ``policy_version``."""

    async def close(self) -> None:
        """Aborts what runs and frees memory."""
