"""``nemo-axpo`` that is killed at a moment named on its command line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from nemo_axpo import cli, loop
from nemo_axpo.actors.actor import Actor
from nemo_axpo.checkpoints.sharded_files import ShardedSave

_MOMENTS = {
    "between the optimizer steps of step 2": (Actor, "update", 3),
    "while the checkpoint of step 2 is written": (ShardedSave, "write", 2),
    "before the first checkpoint": (loop.TrainingLoop, "explore", 1),
}
"""The method whose n-th call is the last."""


def dies(method: Callable[..., Any], *, after: int) -> Callable[..., Any]:
    """``method``, whose caller is killed after that many calls."""
    num_calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        result = method(*arguments, **options)
        if num_calls == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def main() -> int:
    """``MOMENT COMMAND…``."""
    owner, name, after = _MOMENTS[sys.argv[1]]
    setattr(owner, name, dies(getattr(owner, name), after=after))
    return cli.main(sys.argv[2:])
