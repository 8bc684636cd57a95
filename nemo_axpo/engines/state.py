"""What every engine knows of itself: which weights it holds, and whether it is closed."""

from __future__ import annotations

from nemo_axpo.engines.base import EngineError, require_idle


class EngineState:
    """Base of the engines."""

    def __init__(self) -> None:
        self._policy_version: int | None = None
        """Of complete weights; None without any."""
        self._is_closed = False

    @property
    def policy_version(self) -> int:
        """Version of the weights in use; -1 before the first ``load_weights``."""
        return -1 if self._policy_version is None else self._policy_version

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError("the engine is closed; create a new one")

    def _check_ready(self) -> None:
        self._check_open()
        if self._policy_version is None:
            raise EngineError("the engine holds no complete weights; call load_weights with a whole checkpoint first")

    def _forget_weights(self, *, num_in_flight: int) -> None:
        """Before new ones are taken in: until these are complete it serves nothing. EngineError while requests run."""
        self._check_open()
        require_idle(num_in_flight)
        self._policy_version = None
