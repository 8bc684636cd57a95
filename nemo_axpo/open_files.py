"""How many files a process may have open. Many systems begin with 1024, and a leader with a thousand rollouts needs more.

Every request to a server, tool server or judge is a connection, every interpreter of the python tool another one. What exceeds
the limit looks like servers that cannot be reached.
"""

from __future__ import annotations

import resource

WANTED = 65_536
"""Several of each rollout, for more rollouts than a leader has at once."""


def allow_open_files(wanted: int = WANTED) -> int:
    """Raises this process's own limit to ``wanted``, or as far as the system lets it; the limit then. It is never lowered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
