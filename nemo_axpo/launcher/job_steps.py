"""What runs on the nodes of a job, as bash: the same whoever queues it (``job_script.py``, or NeMo-Run).

The batch script says the addresses (:func:`address_lines`) and decides at its end whether the job goes on
(:func:`requeue_lines`); a step of it is one of the other texts, which read those addresses from the environment.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from nemo_axpo.launcher.job_request import ASKED_AGAIN, JobRequest

PYTHON = "python3"
SIGNALLED = 128 + 10
"""Status of a step that SIGUSR1 ended, as srun reports it."""
_PREFLIGHT_S = 900
"""For the ranks to meet: a node may unpack its image minutes after another one."""
_TOOL_SERVERS_S = 300


def step_options(*, nodes: int, tasks: int) -> list[str]:
    """Options of srun for ``tasks`` tasks on each of ``nodes`` nodes, with all that these have.

    An option that is absent would come from the environment of the job.
    """
    return ["--overlap", "--export=ALL", "--cpu-bind=none", f"--nodes={nodes}", f"--ntasks={nodes * tasks}",
            f"--ntasks-per-node={tasks}", "--distribution=block"]  # fmt: skip


def address_lines(request: JobRequest) -> str:
    """Bash of the batch script: who runs where, and the variables that every step finds in its environment."""
    parts = [
        """\
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
join() { local IFS=,; echo "$*"; }
# Nodes ask each other, not the proxy of the world outside.
no_proxy=${no_proxy:-${NO_PROXY:-}}
no_proxy=$(join ${no_proxy:+"$no_proxy"} "${nodes[@]}")
export no_proxy NO_PROXY=$no_proxy
# The port lies below those that the kernel hands out.
export MASTER_ADDR=${nodes[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))"""
    ]
    if request.has_servers:
        parts.append(_server_addresses(request))
    if request.num_tool_nodes:
        parts.append(_tool_server_addresses(request))
    return "\n".join(parts)


def rank_script(request: JobRequest) -> str:
    """A rank of the trainer: preflight, wait for the servers, train.

    What torchrun would say comes from Slurm's variables; exec, so that signals come to the trainer itself.
    """
    preflight = ["preflight", "--run-dir", request.run_dir, "--timeout-s", _PREFLIGHT_S, *request.settings]
    lines = [
        "trap 'echo \"the time limit came before the trainer had begun\" >&2; exit 1' USR1",
        "export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS",
        f"nemo-axpo {_join(preflight)} || exit",
    ]
    settings = ""
    if request.has_servers:
        seconds = int(60 * request.config.job.servers.start_timeout_min)
        lines.append(f"{_wait_for(seconds)} ${{NEMO_AXPO_SERVERS//,/ }} || exit")
        settings += ' "engine.servers=[$NEMO_AXPO_SERVERS]"'
    if request.num_tool_nodes:
        lines.append(f"{_wait_for(_TOOL_SERVERS_S)} ${{NEMO_AXPO_TOOL_SERVERS//,/ }} || exit")
        entries = ",".join(f"{name}:[$NEMO_AXPO_TOOL_SERVERS]" for name in request.config.job.tool_servers.tools)
        settings += f' "tools.servers={{{entries}}}"'
    return "\n".join([*lines, f"exec nemo-axpo {_join(request.command)}{settings}"])


def server_script(request: JobRequest) -> str:
    """The generation servers of a node; the signal before the time limit is not for them."""
    job, engine = request.config.job, request.config.engine
    servers = job.servers
    words = [
        PYTHON, "-m", "nemo_axpo.launcher.serve_node", "--servers", servers.per_node, "--gpus-each", servers.gpus_each,
        "--first-gpu", 0 if servers.num_nodes else request.config.trainer_gpus, "--first-port", servers.first_port,
        "--checkpoint", request.config.model.path or "", "--dtype", engine.dtype, "--max-model-len", engine.max_model_len,
        "--max-num-seqs", servers.max_num_seqs, "--gpu-memory-utilization", servers.gpu_memory_utilization,
    ]  # fmt: skip
    return f"trap '' USR1\nexec {_join(words)}"


def tool_server_script(request: JobRequest) -> str:
    """The tool server of a node."""
    section, tools = request.config.job.tool_servers, request.config.tools
    options = [f"tools.names=[{','.join(section.tools)}]", f"tools.python.sandbox={tools.python.sandbox}"]
    words = ["nemo-axpo", "tool-server", *options, "--host", "0.0.0.0", "--port", section.port,
             "--max-concurrent-calls", section.max_concurrent_calls]  # fmt: skip
    return f"trap '' USR1\nexec {_join(words)}"


_BY_MARK = (
    "A run that stopped in time goes on in the next job; one that failed does not come back by itself.",
    "((status == 0)) && [[ -e $run/stopped.json ]]",
)
_BY_SIGNAL = (
    "An evaluation keeps what was answered: one that the signal ended (128 + USR1) goes on in the next job.",
    f"((status == {SIGNALLED}))",
)


def requeue_lines(request: JobRequest) -> str:
    """Bash of the batch script: ``requeue_unless_over STATUS`` queues the job again, under its number, where it goes on."""
    why, condition = _BY_SIGNAL if request.command[0] == ASKED_AGAIN else _BY_MARK
    return f"""\
# {why}
run={shlex.quote(request.run_dir)}
requeue_unless_over() {{
  local status=$1
  if {condition}; then scontrol requeue "$SLURM_JOB_ID"; fi
}}"""


def _server_addresses(request: JobRequest) -> str:
    servers = request.config.job.servers
    ports = " ".join(str(servers.first_port + number) for number in range(servers.per_node))
    return f"""\
urls=()
for host in {_hosts(request, count=request.num_server_nodes)}; do for port in {ports}; do urls+=("http://$host:$port"); done; done
NEMO_AXPO_SERVERS=$(join "${{urls[@]}}")
export NEMO_AXPO_SERVERS"""


def _tool_server_addresses(request: JobRequest) -> str:
    """The token is the job's own, and in no log: NeMo-Run's script traces its commands."""
    section = request.config.job.tool_servers
    return f"""\
tool_urls=()
for host in {_hosts(request, count=section.num_nodes)}; do tool_urls+=("http://$host:{section.port}"); done
NEMO_AXPO_TOOL_SERVERS=$(join "${{tool_urls[@]}}")
{{ traced=$-; set +x; }} 2>/dev/null
NEMO_AXPO_TOOL_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
export NEMO_AXPO_TOOL_SERVERS NEMO_AXPO_TOOL_TOKEN
if [[ $traced == *x* ]]; then set -x; fi"""


def _hosts(request: JobRequest, *, count: int) -> str:
    return f'"${{nodes[@]:{request.first_server_node}:{count}}}"'


def _wait_for(seconds: int) -> str:
    return _join([PYTHON, "-m", "nemo_axpo.launcher.wait_for", "--timeout-s", seconds])


def _join(words: Sequence[object]) -> str:
    return shlex.join(str(word) for word in words)
