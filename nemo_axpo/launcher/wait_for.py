"""Waits until servers answer:  python -m nemo_axpo.launcher.wait_for --timeout-s 1800 http://host:8000 http://host:8001"""

from __future__ import annotations

import argparse
import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Nodes ask each other; a proxy of the environment is for the world outside."""


def wait_for(urls: Sequence[str], *, path: str = "/health", timeout_s: float) -> list[str]:
    """Returns when ``url + path`` of every server has answered with status 200; those that had not in time, with why."""
    end, pause = time.monotonic() + timeout_s, _FIRST_PAUSE_S
    missing = {url: "never asked" for url in urls}
    while True:
        for url in list(missing):
            reason = _problem_of(url + path)
            if reason is None:
                del missing[url]
            else:
                missing[url] = reason
        left = end - time.monotonic()
        if not missing or left <= 0:
            return [f"{url}: {reason}" for url, reason in missing.items()]
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _problem_of(url: str) -> str | None:
    try:
        with _DIRECT.open(url, timeout=5.0) as response:
            return None if response.status == 200 else f"status {response.status}"
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        return str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all answer, 1 with their names when some do not in time."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--path", default="/health")
    parser.add_argument("--timeout-s", type=float, default=1800.0)
    options = parser.parse_args(arguments)
    missing = wait_for(options.urls, path=options.path, timeout_s=options.timeout_s)
    for line in missing:
        print(f"wait_for: no answer within {options.timeout_s:g} s: {line}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
