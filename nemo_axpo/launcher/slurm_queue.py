"""Slurm's queue: a script goes in, and the jobs of this user that are in it."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_axpo.errors import RunFailedError, rule_message

_OF_THE_SITE = ("SLURM_CONF", "SLURM_CLUSTERS")
"""Say which cluster is asked."""


def queue_script(path: Path) -> str:
    """Gives a job script to sbatch; returns the job's number. RunFailedError where sbatch is absent or refuses it."""
    answer = _run(["sbatch", "--parsable", str(path)], rule="jobs are queued by sbatch", cure=f"or take {path} there")
    return answer.strip().partition(";")[0]


def queued_jobs() -> dict[str, str]:
    """Names of this user's jobs that wait or run, by number. RunFailedError where squeue is absent or fails."""
    command = ["squeue", f"--user={getpass.getuser()}", "--noheader", "--format=%i|%j"]
    lines = _run(command, rule="squeue says which jobs are queued", cure="nothing was queued").splitlines()
    return dict(line.strip().split("|", 1) for line in lines if "|" in line)


def environment_of_jobs(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the variables of a job that this process may run in: the steps of another one would take them for theirs."""
    return {name: value for name, value in environment.items() if not name.startswith("SLURM_") or name in _OF_THE_SITE}


def _run(command: Sequence[str], *, rule: str, cure: str) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment_of_jobs(os.environ))
    except FileNotFoundError:
        cure = f"run it where {command[0]} is; {cure}"
        raise RunFailedError(rule_message(rule, got="no such command here", cure=cure)) from None
    if done.returncode:
        raise RunFailedError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
