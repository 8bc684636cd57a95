"""Options of the engine contracts: a server that already runs."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("engine contracts")
    group.addoption("--server", help="URL of a running server, for the suites that need one")
    group.addoption("--tolerance", type=float, default=2e-5, help="of log-probs against such a server, in nats")


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    """The server of ``--server``."""
    url = request.config.getoption("--server", default=None)
    if not url:
        pytest.fail("this suite needs --server URL (see launcher_scripts/test_trtllm.sh --help)")
    return url
