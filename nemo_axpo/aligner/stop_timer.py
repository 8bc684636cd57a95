"""The trainer's run timer: SIGUSR1 and ``job.max_time`` end a run after the step under way, which ``fit`` then saves."""

from __future__ import annotations

from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.stopping import StopRequest


class StopTimer:
    """``start_time`` and ``is_finished`` as NeMo-Aligner's ``Timer`` has them; every rank calls both."""

    def __init__(self, request: StopRequest, *, replicas: Replicas) -> None:
        self._request, self._replicas = request, replicas
        self.reason: str | None = None
        """Why the run has to stop."""

    def __repr__(self) -> str:
        return f"StopTimer({self.reason})"  # part of what fit says when it stops

    def start_time(self) -> None:
        """Steps begin."""
        self._request.begin_steps()

    def is_finished(self) -> bool:
        """Whether to stop after the step that has just ended; the same on every rank."""
        self.reason = self._request.after_step(self._replicas)
        return self.reason is not None
