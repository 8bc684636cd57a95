"""The policy's weights on their way out of the actor: every rank of a replica takes part in putting them together."""

from __future__ import annotations

from collections import deque
from typing import Any

from nemo_axpo.engines.base import Engine


def sync_weights(actor: Any, engine: Engine | None) -> None:
    """Brings the policy to this rank's engine, which samples it from here on; None on ranks that do not sample."""
    if engine is None:
        take_part(actor)
    else:
        engine.load_weights(actor.hf_tensors(), policy_version=actor.policy_version)


def take_part(actor: Any) -> None:
    """This rank's share in tensors that another rank of the replica wants."""
    deque(actor.hf_tensors(), maxlen=0)
