"""From a command line to a queued job: the request is checked here, before it waits for hours."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemo_axpo.commands.options import composed_config, nemo_run, output_setting
from nemo_axpo.config.checks import config_problems
from nemo_axpo.config.schema import Config
from nemo_axpo.engines.names import SERVER_ENGINES
from nemo_axpo.errors import ConfigError, rule_message
from nemo_axpo.eval.benchmarks.definition import data_path, load_benchmarks
from nemo_axpo.launcher.cluster import ClusterConfig
from nemo_axpo.launcher.job_request import COMMANDS, PLAIN, RESUMED, JobRequest
from nemo_axpo.launcher.slurm_queue import queue_script


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
    if command == PLAIN:
        run_dir = start / options.output
        return JobRequest(name or run_dir.name, tuple(words), Config(), cluster, str(run_dir), dependency=dependency)
    config = composed_config(options, settings=_settings(command, options))
    _check_benchmarks(options)
    problems = list(_config_problems(config, cluster=cluster))
    if problems:
        raise ConfigError("\n".join(problems))
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


def _check_benchmarks(options: argparse.Namespace) -> None:
    """ConfigError for a benchmark that is not known, or has no data."""
    words = getattr(options, "benchmark", None) or ()
    # A file of one's own may lie where only the job sees it.
    known = [word for word in words if not word.partition("=")[0].endswith((".yaml", ".yml"))]
    for benchmark in load_benchmarks(known):
        data_path(benchmark)


def check_command(words: Sequence[str]) -> None:
    """ConfigError for a command that is no job."""
    if not words or words[0] not in COMMANDS:
        rule, got = f"what is queued is one of: {', '.join(COMMANDS)}", words[0] if words else "nothing"
        raise ConfigError(rule_message(rule, got=got, cure="nemo-axpo submit -- train --config-name recipes/..."))


def check_place(request: JobRequest) -> None:
    """ConfigError for a run directory that a container of the job would keep to itself."""
    cluster = request.cluster
    if not cluster.has_mounted(request.run_dir):
        rule = "the run directory lies in a mount of the container: what is written elsewhere is lost with it"
        got = f"{request.run_dir}, and mounts [{', '.join(cluster.mounts)}]"
        cure = "add its file system to mounts of the cluster's file, or give an --output-dir in one of them"
        raise ConfigError(rule_message(rule, got=got, cure=cure))


def submit(request: JobRequest, text: str) -> str:
    """Writes the script beside the run directory and gives it to sbatch; returns the job's number.

    ConfigError where the script cannot be written, RunFailedError where sbatch is absent or refuses it.
    """
    path = script_path(request)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        rule, cure = "the job's script is written beside its run directory", "give --output-dir on a shared file system"
        raise ConfigError(rule_message(rule, got=error, cure=cure)) from None
    return queue_script(path)


def script_path(request: JobRequest) -> Path:
    """Of the job script, beside the run directory."""
    return Path(f"{request.run_dir}.sbatch")


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
    named = [] if getattr(options, "output_dir", None) is not None else ["--output-dir", str(run_dir)]
    return resumed_words([*words, *named], options)


def resumed_words(words: Sequence[str], options: argparse.Namespace) -> list[str]:
    """``words``, whose parsed form is ``options``, so that a run that is there goes on and a new one starts."""
    is_said = words[0] not in RESUMED or options.resume or _resumes_itself(options)
    return [*words] if is_said else [*words, "--resume"]


def _resumes_itself(options: argparse.Namespace) -> bool:
    return getattr(options, "nemo_config", None) is not None and nemo_run(options).resume


def _config_problems(config: Config, *, cluster: ClusterConfig) -> Iterator[str]:
    job = config.job
    if job.num_nodes is None:
        cure = "use one of recipes/, or set job.num_nodes and job.gpus_per_node"
        yield rule_message("a queued job says its nodes", got="job.num_nodes: null", cure=cure)
    else:
        yield from config_problems(config, world_size=job.world_size or 1)
    if config.model.path is None:
        cure = "model.path=DIR, on a file system of all nodes"
        yield rule_message("a queued job names its model", got="model.path: null", cure=cure)
    yield from server_problems(config)
    yield from _node_problems(config, cluster=cluster)


def server_problems(config: Config) -> Iterator[str]:
    """What is wrong with the servers that a job would start: an engine without any, servers of another engine, more tool
    servers than nodes to run them."""
    job = config.job
    if config.engine.name in SERVER_ENGINES and not config.engine.servers and not job.servers.per_node:
        rule = f"engine.name={config.engine.name} needs generation servers"
        yield rule_message(rule, got="none", cure="set job.servers.per_node, or name running ones")
    if job.servers.per_node and not config.engine.servers and config.engine.name != "vllm_server":
        cure = "set engine=vllm_server, or job.servers.per_node=0 and engine.servers"
        yield rule_message("a job starts servers of vLLM", got=f"engine.name={config.engine.name}", cure=cure)
    sampling = 0 if config.engine.servers else job.servers.num_nodes
    if job.tool_servers.num_nodes > (sampling or job.num_nodes or 1):
        rule = "tool servers run on the nodes of generation servers"
        yield rule_message(rule, got=job.tool_servers.num_nodes, cure="lower job.tool_servers.num_nodes")


def _node_problems(config: Config, *, cluster: ClusterConfig) -> Iterator[str]:
    """GPUs that the trainer and the servers beside it ask of one node."""
    servers = config.job.servers
    beside = 0 if servers.num_nodes else config.trainer_gpus
    asked = max(servers.per_node * servers.gpus_each + beside, config.trainer_gpus)
    if asked > cluster.gpus_per_node:
        rule = f"a node has {cluster.gpus_per_node} GPUs (cluster gpus_per_node)"
        yield rule_message(rule, got=asked, cure="lower job.gpus_per_node or job.servers.per_node")
