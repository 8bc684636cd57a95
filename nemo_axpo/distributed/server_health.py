"""Health and load of all generation servers of a job, as the metrics of a step."""

from __future__ import annotations

from nemo_axpo.distributed.replicas import Replicas
from nemo_axpo.engines.base import Engine
from nemo_axpo.engines.fleet.reports import HasServers, ServerReport, server_metrics


def samples_on_servers(engine: Engine | None) -> bool:
    """Whether what ``engine`` samples goes on while this process waits."""
    return isinstance(engine, HasServers)


def take_server_metrics(engine: Engine | None, *, replicas: Replicas) -> dict[str, float]:
    """What happened since the last call, equal on all ranks; nothing where engines have no servers.

    ``engine``: None on ranks that do not sample. Every rank calls it.
    """
    reports = engine.take_server_reports() if samples_on_servers(engine) else ()
    return server_metrics(replicas.gather(reports, kind=ServerReport))
