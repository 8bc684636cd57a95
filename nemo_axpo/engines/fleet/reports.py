"""What happened on the servers since the last step, and its names in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class ServerReport:
    """One server as one replica saw it since its last report."""

    server: str
    """URL."""
    is_up: bool
    num_requests: int = 0
    """Requests it was sent, those that failed included."""
    num_failures: int = 0
    """Requests it did not serve; each went to another server, or was tried again."""
    num_lost: int = 0
    """Requests given up for good, counted where they failed last."""
    num_mismatches: int = 0
    """Prompts it reported to be others than those it was sent."""
    num_taken_out: int = 0
    num_readmitted: int = 0
    max_in_flight: int = 0


@runtime_checkable
class HasServers(Protocol):
    """An engine that samples on servers."""

    def take_server_reports(self) -> tuple[ServerReport, ...]:
        """What happened on every server since the last call."""


def server_metrics(reports: Sequence[ServerReport]) -> dict[str, float]:
    """Metrics of a step over the reports of all replicas; none without servers. Replicas may share servers.

    ``engine/load_imbalance``: requests of the busiest server over the mean of all; 1 is even.
    """
    if not reports:
        return {}
    servers = {report.server for report in reports}
    down = {report.server for report in reports if not report.is_up}
    requests = [sum(r.num_requests for r in reports if r.server == server) for server in servers]
    metrics = {
        "servers": len(servers),
        "servers_up": len(servers) - len(down),
        "requests": sum(requests),
        "retries": sum(report.num_failures - report.num_lost for report in reports),
        "lost": sum(report.num_lost for report in reports),
        "prompt_mismatches": sum(report.num_mismatches for report in reports),
        "taken_out": sum(report.num_taken_out for report in reports),
        "readmitted": sum(report.num_readmitted for report in reports),
        "in_flight_max": max(report.max_in_flight for report in reports),
        "load_imbalance": max(requests) * len(servers) / max(1, sum(requests)),
    }
    return {f"engine/{name}": float(value) for name, value in metrics.items()}
