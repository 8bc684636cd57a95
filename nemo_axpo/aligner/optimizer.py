"""The actor's optimizer and its learning rate, in the form in which NeMo-Aligner's trainers use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class PolicyOptimizer:
    """``zero_grad``, ``step`` and ``param_groups`` of an actor. Gradients are clipped inside of ``step``, as by NeMo's fused Adam."""

    def __init__(self, model: Any) -> None:
        """``model``: has the actor, and says in ``has_gradient`` whether there is anything to step on."""
        self._model = model
        self.param_groups: list[dict[str, float]] = [{"lr": 0.0}]
        self.grad_norm = 0.0
        """Before clipping, of the last step; 0 where no replica had a row."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradient."""
        self._model.actor.zero_gradient()

    def step(self) -> None:
        """One step at ``param_groups[0]["lr"]``; none, on any rank, where no replica had a row."""
        has_gradient = self._model.has_gradient
        self.grad_norm = self._model.actor.take_step(lr=self.param_groups[0]["lr"]) if has_gradient else 0.0


class WarmupScheduler:
    """The main loop's learning rate over optimizer steps."""

    def __init__(self, optimizer: PolicyOptimizer, *, rate: Callable[[int], float]) -> None:
        """``rate``: learning rate after so many optimizer steps."""
        self._optimizer, self._rate = optimizer, rate
        self.move_to(0)

    def step(self) -> None:
        """After an optimizer step."""
        self.move_to(self.last_epoch + 1)

    def move_to(self, num_done: int) -> None:
        """Sets the rate of a run that has taken ``num_done`` optimizer steps."""
        self.last_epoch = num_done
        self._optimizer.param_groups[0]["lr"] = self._rate(num_done)
