"""A handle on a process that never means another one, as its number does when the process is long gone."""

from __future__ import annotations

import contextlib
import os
import signal


class ProcessHandle:
    """Of a process that is alive now."""

    def __init__(self, pid: int) -> None:
        """ProcessLookupError for a process that is gone."""
        self.pid = pid
        try:
            self._descriptor: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except OSError:  # a kernel without them: the number has to do
            self._descriptor = None
        self._is_open = True

    def kill(self) -> None:
        """Ends it at once, and closes the handle; may be called twice."""
        if not self._is_open:
            return
        self._is_open = False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._descriptor is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        if self._descriptor is not None:
            os.close(self._descriptor)
