"""From a command line to a queued job: the request is checked here, before it waits for hours."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nemo_axpo.commands.options import composed_config, nemo_run, output_setting
from nemo_axpo.config.checks import config_problems
from nemo_axpo.config.schema import Config
from nemo_axpo.engines.names import SERVER_ENGINES
from nemo_axpo.errors import ConfigError, RunFailedError, rule_message
from nemo_axpo.launcher.cluster import ClusterConfig
from nemo_axpo.launcher.job_script import JobRequest

RESUMED = ("train", "sft")
"""Commands that go on where they stopped (``--resume``)."""
COMMANDS = (*RESUMED, "eval")


def job_request(
    words: Sequence[str],
    options: argparse.Namespace,
    *,
    cluster: ClusterConfig,
    start: Path,
    name: str | None = None,
    dependency: str | None = None,
) -> JobRequest:
    """The job of ``nemo-axpo WORDS``, whose parsed form is ``options``; relative run directories begin at ``start``.

    ConfigError for a config that cannot run on the nodes it asks for.
    """
    command = words[0]
    config = composed_config(options, settings=_settings(command, options))
    _check(config, cluster=cluster, command=command)
    run_dir = start / (getattr(options, "output_dir", None) or config.output_dir)
    return JobRequest(
        name or run_dir.name,
        tuple(_command_words(words, options, run_dir=run_dir)),
        config,
        cluster,
        str(run_dir),
        dependency=dependency,
        settings=tuple(_config_words(options, config=config)),
    )


def check_command(words: Sequence[str]) -> None:
    """ConfigError for a command that is no job."""
    if not words or words[0] not in COMMANDS:
        rule, got = f"what is queued is one of: {', '.join(COMMANDS)}", words[0] if words else "nothing"
        raise ConfigError(rule_message(rule, got=got, cure="nemo-axpo submit -- train --config-name recipes/..."))


def submit(request: JobRequest, text: str) -> str:
    """Writes the script beside the run directory and gives it to sbatch; returns the job's number."""
    path = Path(f"{request.run_dir}.sbatch")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    try:
        done = subprocess.run(["sbatch", "--parsable", str(path)], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        cure = f"run it where sbatch is, or take {path} there"
        raise RunFailedError(rule_message("jobs are queued by sbatch", got="no such command here", cure=cure)) from None
    if done.returncode:
        raise RunFailedError(f"sbatch {path}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]


def _settings(command: str, options: argparse.Namespace) -> dict[str, str | None]:
    settings: dict[str, str | None] = dict(output_setting(options)) if command in RESUMED else {}
    return settings | ({"model.path": str(options.checkpoint)} if command == "eval" else {})


def _config_words(options: argparse.Namespace, *, config: Config) -> list[str]:
    """The recipe, the settings and the model, as a command line."""
    named = {"--config-name": options.config_name, "--config-dir": options.config_dir,
             "--nemo-config": getattr(options, "nemo_config", None)}  # fmt: skip
    words = [word for option, value in named.items() if value is not None for word in (option, str(value))]
    words += options.overrides
    if getattr(options, "checkpoint", None) is not None:
        words.append(f"model.path={config.model.path}")
    return words


def _command_words(words: Sequence[str], options: argparse.Namespace, *, run_dir: Path) -> list[str]:
    kept = list(words)
    if getattr(options, "output_dir", None) is None:
        kept += ["--output-dir", str(run_dir)]
    if words[0] in RESUMED and not options.resume and not _resumes_itself(options):
        kept.append("--resume")
    return kept


def _resumes_itself(options: argparse.Namespace) -> bool:
    return getattr(options, "nemo_config", None) is not None and nemo_run(options).resume


def _check(config: Config, *, cluster: ClusterConfig, command: str) -> None:
    job = config.job
    problems = []
    if job.num_nodes is None:
        cure = "use one of recipes/, or set job.num_nodes and job.gpus_per_node"
        problems.append(rule_message("a queued job says its nodes", got="job.num_nodes: null", cure=cure))
    else:
        problems += config_problems(config, world_size=job.world_size or 1)
    if config.engine.name in SERVER_ENGINES and not config.engine.servers and not job.servers.per_node:
        rule = f"engine.name={config.engine.name} needs generation servers"
        problems.append(rule_message(rule, got="none", cure="set job.servers.per_node, or name running ones"))
    if job.servers.per_node and config.engine.name != "vllm_server":
        rule = "a job starts servers of vLLM"
        cure = "set engine=vllm_server, or job.servers.per_node=0 and engine.servers"
        problems.append(rule_message(rule, got=f"engine.name={config.engine.name}", cure=cure))
    asked = job.servers.per_node * job.servers.gpus_each + (0 if job.servers.num_nodes else config.trainer_gpus)
    if max(asked, config.trainer_gpus) > cluster.gpus_per_node:
        rule = f"a node has {cluster.gpus_per_node} GPUs (cluster gpus_per_node)"
        problems.append(rule_message(rule, got=asked, cure="lower job.gpus_per_node or job.servers.per_node"))
    if job.tool_servers.num_nodes > (job.servers.num_nodes or job.num_nodes or 1):
        rule = "tool servers run on the nodes of generation servers"
        problems.append(rule_message(rule, got=job.tool_servers.num_nodes, cure="lower job.tool_servers.num_nodes"))
    if config.model.path is None:
        cure = "model.path=DIR, on a file system of all nodes"
        problems.append(rule_message("a queued job names its model", got="model.path: null", cure=cure))
    if problems:
        raise ConfigError("\n".join(problems))
