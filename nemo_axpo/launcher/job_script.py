"""A job as sbatch takes it: trainer, generation servers and tool servers in one script.

The script waits on processes, never for a time; it ends what it started, by process id. What the processes do is in
``job_steps.py``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from nemo_axpo.launcher import job_steps
from nemo_axpo.launcher.cluster import ClusterConfig
from nemo_axpo.launcher.job_request import JobRequest


def sbatch_text(request: JobRequest) -> str:
    """The whole script."""
    if request.is_plain:
        step = f"{_srun(request, nodes=1, tasks=1)} \\\n  nemo-axpo {shlex.join(request.command)}\n"
        return "\n".join([_header(request), _PROLOGUE, _environment(request.cluster), step])
    parts = [
        _header(request),
        _PROLOGUE,
        _environment(request.cluster),
        job_steps.address_lines(request),
        _CHILDREN,
        *([_generation_servers(request)] if request.has_servers else []),
        *([_tool_servers(request)] if request.num_tool_nodes else []),
        _trainer(request),
        job_steps.requeue_lines(request),
        'requeue_unless_over "$status"\nexit "$status"\n',
    ]
    return "\n".join(parts)


def _header(request: JobRequest) -> str:
    cluster = request.cluster
    output = f"{request.run_dir.replace('%', '%%')}.%j.log"  # Slurm reads a single % as a symbol
    options: dict[str, str | int | bool | None] = {
        "job-name": request.name,
        "account": cluster.account,
        "partition": cluster.partition,
        "nodes": request.num_nodes,
        **({} if request.is_plain else _whole_nodes(cluster)),
        "time": cluster.time_limit,
        "open-mode": "append",
        "output": output,
        "dependency": request.dependency,
        # What waits for a job that failed would wait for ever.
        "kill-on-invalid-dep": "yes" if request.dependency else None,
        **cluster.sbatch,
    }
    lines = [f"#SBATCH --{key}" + ("" if value is True else f"={shlex.quote(str(value))}")
             for key, value in options.items() if value is not None and value is not False]  # fmt: skip
    return "\n".join(["#!/bin/bash", *lines])


def _whole_nodes(cluster: ClusterConfig) -> dict[str, str | int | bool | None]:
    return {
        "gpus-per-node": cluster.gpus_per_node,
        "exclusive": True,
        "mem": 0,
        "signal": f"B:USR1@{cluster.signal_before_s}",
        "requeue": True,
    }


_PROLOGUE = """
set -eo pipefail"""

_CHILDREN = """
# What is started below ends with this script, by process id; nothing else is touched.
children=() servers=()
is_alive() { kill -0 "$1" 2>/dev/null; }
end_children() {
  local child
  for child in ${children[@]+"${children[@]}"}; do kill "$child" 2>/dev/null || true; done
  wait
}
trap end_children EXIT"""


def _environment(cluster: ClusterConfig) -> str:
    """Lines of the site first: those of modules and of conda read variables that are not set."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in cluster.env.items()]
    return "\n".join([*cluster.setup, "set -u", *exports, ""])


def _generation_servers(request: JobRequest) -> str:
    srun = _srun(request, first=request.first_server_node, nodes=request.num_server_nodes, tasks=1,
                 image=request.cluster.server_image)  # fmt: skip
    return f"""
# Generation servers.
{_step(srun, job_steps.server_script(request))} &
children+=("$!") servers+=("$!")"""


def _tool_servers(request: JobRequest) -> str:
    srun = _srun(request, first=request.first_server_node, nodes=request.num_tool_nodes, tasks=1,
                 image=request.cluster.tools_image)  # fmt: skip
    return f"""
# Tool servers, on the CPUs of the nodes that sample.
{_step(srun, job_steps.tool_server_script(request))} &
children+=("$!") servers+=("$!")"""


def _trainer(request: JobRequest) -> str:
    srun = _srun(request, nodes=request.num_trainer_nodes, tasks=request.ranks_per_node)
    return f"""
# The trainer, a task a rank. Slurm's USR1 comes to this script, which hands it to srun, and srun to every rank.
{_step(srun, job_steps.rank_script(request))} &
trainer=$!
children+=("$trainer")
trap 'kill -USR1 "$trainer" 2>/dev/null || true' USR1

# A signal ends a wait, not a step. Servers that end before the trainer are the end of the job.
check_servers() {{
  local server code
  for server in ${{servers[@]+"${{servers[@]}}"}}; do
    if is_alive "$trainer" && ! is_alive "$server"; then
      code=0
      wait "$server" || code=$?
      echo "servers ended before the trainer, with status $code: what they said is above" >&2
      exit 1
    fi
  done
}}
status=0
while is_alive "$trainer"; do
  check_servers  # first: a wait does not return for one that has ended before it
  status=0
  wait -n || status=$?
done
known=0
wait "$trainer" || known=$?
if ((known != 127)); then status=$known; fi  # 127: bash has forgotten it, and the last wait said it
"""


def _step(srun: str, script: str) -> str:
    """A step that runs a script of bash."""
    return f"""\
script=$(cat <<'STEP'
{script}
STEP
)
{srun} \\
  bash -c "$script\""""


def _srun(request: JobRequest, *, nodes: int, tasks: int, first: int = 0, image: str | None = None) -> str:
    """srun on some nodes of the job, with all that they have; an option that is absent would come from the environment."""
    cluster = request.cluster
    where = "" if request.is_plain else f' --nodelist="$(join "${{nodes[@]:{first}:{nodes}}}")"'
    chosen = image or cluster.image
    options = [
        f"srun --kill-on-bad-exit=1 {' '.join(job_steps.step_options(nodes=nodes, tasks=tasks))}{where}",
        *(_container(cluster, image=chosen) if chosen else [f"--chdir={shlex.quote(cluster.workdir)}"]),
        *([shlex.join(cluster.srun_args)] if cluster.srun_args else []),
    ]
    return " \\\n  ".join(options)


def _container(cluster: ClusterConfig, *, image: str) -> Iterator[str]:
    yield f"--container-image={shlex.quote(image)} --container-workdir={shlex.quote(cluster.workdir)}"
    if cluster.mounts:
        yield f"--container-mounts={shlex.quote(','.join(cluster.mount_pairs))}"
    if cluster.env:
        # The image's own values would hold otherwise.
        yield f"--container-env={','.join(cluster.env)}"
    if cluster.container_args:
        yield shlex.join(cluster.container_args)
