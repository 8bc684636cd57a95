"""Options of the engine contracts: a server that already runs, and where the outcome is recorded."""

from __future__ import annotations

import pytest
from contract_results import ContractResults


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("engine contracts")
    group.addoption("--server", help="URL of a running server, for the suites that need one")
    group.addoption("--tolerance", type=float, default=2e-5, help="of log-probs against such a server, in nats")
    group.addoption("--engine-results", help="JSON file that says which contract suites ran here, and how they ended")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--engine-results", default=None)
    if path:
        config.pluginmanager.register(ContractResults(path, arguments=config.invocation_params.args))


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    """The server of ``--server``."""
    url = request.config.getoption("--server", default=None)
    if not url:
        pytest.fail("this suite needs --server URL (see launcher_scripts/test_trtllm.sh --help)")
    return url
