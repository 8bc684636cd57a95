"""Generation under NeMo-Aligner: the ``refit / generate / free`` surface of its ``GPTGenerateTRTLLM``, around our engines.

An agent's rollout is many completions with tool calls between them, and its prompt holds pictures, so ``generate`` takes
work on the engine instead of a tensor of prompts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from nemo_axpo.training_parts import TrainingParts

Result = TypeVar("Result")


class AgentGeneration:
    """One rank's access to the engine, from code that is not asynchronous. Every rank calls ``refit``."""

    def __init__(self, parts: TrainingParts) -> None:
        self._parts = parts
        self._runner = asyncio.Runner()
        self._version: int | None = None

    def refit(self, model: Any) -> dict[str, float]:
        """Brings the policy of ``model``, its attribute ``actor``, to the engines; nothing where they hold it already.

        Metrics of the transfer. After the first one of this process the proof that engine and trainer agree runs as often as
        the config says, counted over the whole run.
        """
        assert model.actor is self._parts.actor, "an engine samples the policy it was built for"
        if self._version == model.actor.policy_version:
            return {}
        sync = self._parts.weight_sync
        num_steps = model.actor.policy_version // self._parts.config.actor.num_minibatches
        metrics = sync.push() if self._version is None else self.generate(sync.after_update(num_steps - 1))
        self._version = model.actor.policy_version
        return metrics

    def generate(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs work on the engine to its end; what it started meanwhile goes on at the next call."""
        return self._runner.run(work)

    def free(self) -> None:
        """Between two rollout stages: the engine keeps its weights' memory (``unload_engine_train`` is refused)."""

    def close(self) -> None:
        """Ends the engine's work."""
        self.generate(self._parts.close())
        self._runner.close()
