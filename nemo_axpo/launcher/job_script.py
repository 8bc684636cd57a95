"""A job as sbatch takes it: trainer, generation servers and tool servers in one script.

The script waits on processes and on answers of servers, never for a time; it ends what it started, by process id.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nemo_axpo.config.schema import Config
from nemo_axpo.launcher.cluster import ClusterConfig

PYTHON = "python3"


@dataclass(frozen=True)
class JobRequest:
    """One command of ``nemo-axpo`` on a cluster."""

    name: str
    command: tuple[str, ...]
    """Words after ``nemo-axpo``, as they run on every rank."""
    config: Config
    """What the command composes."""
    cluster: ClusterConfig
    run_dir: str
    """Absolute, on a file system of all nodes."""
    dependency: str | None = None
    """As sbatch takes it: ``afterok:123``."""
    settings: tuple[str, ...] = ()
    """The recipe and the settings of the command, for other commands that read the same config."""

    @property
    def num_trainer_nodes(self) -> int:
        return self.config.job.num_nodes or 1

    @property
    def num_server_nodes(self) -> int:
        """Nodes that are the servers' own."""
        return self.config.job.servers.num_nodes if self.has_servers else 0

    @property
    def has_servers(self) -> bool:
        return self.config.job.servers.per_node > 0

    @property
    def num_nodes(self) -> int:
        return self.num_trainer_nodes + self.num_server_nodes


def sbatch_text(request: JobRequest) -> str:
    """The whole script."""
    parts = [
        _header(request),
        _PROLOGUE.format(run=shlex.quote(request.run_dir)),
        _environment(request),
        _hosts(request),
        _preflight(request),
        *([_generation_servers(request)] if request.has_servers else []),
        *([_tool_servers(request)] if request.config.job.tool_servers.num_nodes else []),
        _trainer(request),
        _epilogue(request),
    ]
    return "\n".join(parts)


def _header(request: JobRequest) -> str:
    cluster = request.cluster
    options: dict[str, str | int | bool | None] = {
        "job-name": request.name,
        "account": cluster.account,
        "partition": cluster.partition,
        "nodes": request.num_nodes,
        "gpus-per-node": cluster.gpus_per_node,
        "exclusive": True,
        "mem": 0,
        "time": cluster.time_limit,
        "signal": f"B:USR1@{cluster.signal_before_s}",
        "requeue": True,
        "open-mode": "append",
        "output": f"{request.run_dir}.%j.log",
        "dependency": request.dependency,
        **cluster.sbatch,
    }
    lines = [f"#SBATCH --{key}" + ("" if value is True else f"={shlex.quote(str(value))}")
             for key, value in options.items() if value is not None and value is not False]  # fmt: skip
    return "\n".join(["#!/bin/bash", *lines])


_PROLOGUE = """
set -euo pipefail
run={run}

# What is started below ends with this script, by process id; nothing else is touched.
children=()
end_children() {{
  local child
  for child in ${{children[@]+"${{children[@]}}"}}; do kill "$child" 2>/dev/null || true; done
  wait
}}
trap end_children EXIT
join() {{ local IFS=,; echo "$*"; }}
"""


def _environment(request: JobRequest) -> str:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in request.cluster.env.items()]
    return "\n".join([*request.cluster.setup, *lines])


def _hosts(request: JobRequest) -> str:
    trainers = request.num_trainer_nodes
    return f"""
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
trainers=("${{nodes[@]:0:{trainers}}}")
servers=("${{nodes[@]:{trainers if request.num_server_nodes else 0}:{request.num_server_nodes or trainers}}}")
export MASTER_ADDR=${{trainers[0]}} MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))"""


def _preflight(request: JobRequest) -> str:
    """One rank a GPU of the trainer: the collective is the one that the trainer will need."""
    words = ["preflight", "--run-dir", request.run_dir, *request.settings]
    return f"""
# Before anything is started: GPUs, NCCL, shared memory, mounts, versions. It names what is wrong, and on which node.
{_srun(request, tasks=_ranks(request), hosts="trainers")} \\
  bash -c {shlex.quote(_ranked(words))}"""


def _generation_servers(request: JobRequest) -> str:
    job, engine, cluster = request.config.job, request.config.engine, request.cluster
    servers = job.servers
    first_gpu = 0 if servers.num_nodes else request.config.trainer_gpus
    words = [
        PYTHON, "-m", "nemo_axpo.launcher.serve_node",
        "--servers", servers.per_node, "--gpus-each", servers.gpus_each, "--first-gpu", first_gpu,
        "--first-port", servers.first_port, "--checkpoint", request.config.model.path or "",
        "--dtype", engine.dtype, "--max-model-len", engine.max_model_len, "--max-num-seqs", servers.max_num_seqs,
        "--gpu-memory-utilization", servers.gpu_memory_utilization,
    ]  # fmt: skip
    ports = " ".join(str(servers.first_port + number) for number in range(servers.per_node))
    wait = [PYTHON, "-m", "nemo_axpo.launcher.wait_for", "--timeout-s", int(60 * servers.start_timeout_min)]
    start = _srun(request, tasks=1, hosts="servers", image=cluster.server_image)
    asking = _srun(request, tasks=1, hosts="trainers", num_nodes=1)
    return f"""
# Generation servers; the trainer begins when every one of them answers.
urls=()
for host in "${{servers[@]}}"; do for port in {ports}; do urls+=("http://$host:$port"); done; done
{start} \\
  {_join(words)} &
children+=("$!")
{asking} \\
  {_join(wait)} "${{urls[@]}}\""""


def _tool_servers(request: JobRequest) -> str:
    section, cluster = request.config.job.tool_servers, request.cluster
    tools = request.config.tools
    options = [f"tools.names=[{','.join(section.tools)}]", f"tools.python.sandbox={tools.python.sandbox}"]
    words = ["nemo-axpo", "tool-server", *options, "--host", "0.0.0.0", "--port", section.port,
             "--max-concurrent-calls", section.max_concurrent_calls]  # fmt: skip
    serving = _srun(request, tasks=1, hosts="tool_hosts", image=cluster.tools_image)
    wait = [PYTHON, "-m", "nemo_axpo.launcher.wait_for", "--path", "/health", "--timeout-s", 300]
    asking = _srun(request, tasks=1, hosts="trainers", num_nodes=1)
    return f"""
# Tool servers, on the CPUs of the nodes that sample. The token is the job's own.
tool_hosts=("${{servers[@]:0:{section.num_nodes}}}")
NEMO_AXPO_TOOL_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
export NEMO_AXPO_TOOL_TOKEN
tool_urls=()
for host in "${{tool_hosts[@]}}"; do tool_urls+=("http://$host:{section.port}"); done
{serving} \\
  {_join(words)} &
children+=("$!")
{asking} \\
  {_join(wait)} "${{tool_urls[@]}}\""""


def _trainer(request: JobRequest) -> str:
    settings = []
    if request.has_servers:
        settings.append('"engine.servers=[$(join "${urls[@]}")]"')
    tools = request.config.job.tool_servers
    if tools.num_nodes:
        entries = ",".join(f'{name}:[$(join "${{tool_urls[@]}}")]' for name in tools.tools)
        settings.append(f'"tools.servers={{{entries}}}"')
    return f"""
# The trainer, a task a rank. Slurm's USR1 comes to this script, which hands it to srun, and srun to every rank.
command=({_join(request.command)}{"".join(f" {setting}" for setting in settings)})
{_srun(request, tasks=_ranks(request), hosts="trainers")} \\
  bash -c {shlex.quote(_ranked_array())} nemo-axpo "${{command[@]}}" &
trainer=$!
children+=("$trainer")
is_signalled=0
trap 'is_signalled=1; kill -USR1 "$trainer" 2>/dev/null || true' USR1
status=0
wait "$trainer" || status=$?
while kill -0 "$trainer" 2>/dev/null; do  # a signal ends wait, not the trainer
  status=0
  wait "$trainer" || status=$?
done"""


_BY_MARK = (
    "A run that stopped in time goes on in the next job; one that failed does not come back by itself.",
    "((status == 0)) && [[ -e $run/stopped.json ]]",
)
_BY_SIGNAL = (
    "An evaluation keeps what was answered: ended before its time limit, it goes on in the next job.",
    "((status != 0 && is_signalled))",
)
_EPILOGUE = """
# {why}
if {condition}; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def _epilogue(request: JobRequest) -> str:
    why, condition = _BY_SIGNAL if request.command[0] == "eval" else _BY_MARK
    return _EPILOGUE.format(why=why, condition=condition)


def _ranks(request: JobRequest) -> int:
    """Trainer ranks on a node."""
    return request.config.job.gpus_per_node if request.config.job.num_nodes else 1


_RANK = "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec nemo-axpo"
"""What torchrun would say, from Slurm's variables; exec, so that signals come to the trainer itself."""


def _ranked(words: Sequence[object]) -> str:
    return f"{_RANK} {_join(words)}"


def _ranked_array() -> str:
    return f'{_RANK} "$@"'


def _srun(
    request: JobRequest,
    *,
    tasks: int,
    hosts: str,
    num_nodes: int | None = None,
    image: str | None = None,
) -> str:
    """An srun on the hosts of one of the script's arrays."""
    cluster = request.cluster
    nodelist = f'"${{{hosts}[0]}}"' if num_nodes == 1 else f'"$(join "${{{hosts}[@]}}")"'
    count = "1" if num_nodes == 1 else f'"${{#{hosts}[@]}}"'
    words = [
        f"srun --overlap --kill-on-bad-exit=1 --cpu-bind=none --nodes={count} --nodelist={nodelist} --ntasks-per-node={tasks}"
    ]
    chosen = image or cluster.image
    words += _container(cluster, image=chosen) if chosen else [f"--chdir={shlex.quote(cluster.workdir)}"]
    words += [shlex.join(cluster.srun_args)] if cluster.srun_args else []
    return " \\\n  ".join(words)


def _container(cluster: ClusterConfig, *, image: str) -> Iterator[str]:
    yield f"--container-image={shlex.quote(image)} --container-workdir={shlex.quote(cluster.workdir)}"
    if cluster.mounts:
        mounts = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in cluster.mounts)
        yield f"--container-mounts={shlex.quote(mounts)}"


def _join(words: Sequence[object]) -> str:
    return shlex.join(str(word) for word in words)
