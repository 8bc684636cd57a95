"""A command of nemo-axpo as a NeMo-Run experiment, on Slurm or on this machine:

    python launcher_scripts/nemo_run_job.py --executor slurm --cluster mine.yaml --dry-run -- \
        train --config-name recipes/axpo_8b model.path=/lustre/sft_8b/hf --output-dir /lustre/runs/axpo_8b
    python launcher_scripts/nemo_run_job.py --executor local -- sft --output-dir /tmp/sft

On Slurm the steps are those of `nemo-axpo submit`: the trainer, and where the recipe has them generation servers and tool
servers, as a group of tasks in one job. What decides whether the job is queued again is `submit`'s own, in the script's
set-up lines: NeMo-Run itself queues again what failed, and a run that stopped in time has not.
Written for nemo_run 0.11.1 (pip install nemo_run==0.11.1 leptonai==0.27.3).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from nemo_axpo.launcher.job_request import JobRequest

_LOOK_EVERY_S = 10
"""NeMo-Run's script looks so often whether a task of a group has ended."""


@dataclasses.dataclass(frozen=True)
class Role:
    """A task of the job: one srun."""

    name: str
    script: str
    """Bash."""
    first_node: int
    num_nodes: int
    tasks_per_node: int
    image: str | None


def roles(request: JobRequest) -> list[Role]:
    """The trainer first: NeMo-Run takes the options of the job from the first task."""
    from nemo_axpo.launcher import job_steps

    cluster, first = request.cluster, request.first_server_node
    script = job_steps.rank_script(request)
    found = [Role(request.command[0], script, 0, request.num_trainer_nodes, request.ranks_per_node, cluster.image)]
    if request.has_servers:
        image = cluster.server_image or cluster.image
        found.append(Role("servers", job_steps.server_script(request), first, request.num_server_nodes, 1, image))
    if request.num_tool_nodes:
        image = cluster.tools_image or cluster.image
        found.append(Role("tools", job_steps.tool_server_script(request), first, request.num_tool_nodes, 1, image))
    return found


def slurm_executor(request: JobRequest, role: Role, *, job_dir: str) -> Any:
    """``nemo_run.SlurmExecutor`` with what the cluster's file says; the same options as `nemo-axpo submit`."""
    import nemo_run as run

    from nemo_axpo.launcher import job_steps

    cluster = request.cluster
    srun = [*job_steps.step_options(nodes=role.num_nodes, tasks=role.tasks_per_node), f"--relative={role.first_node}",
            "--wait=0", *(cluster.container_args if role.image else ()), *cluster.srun_args]  # fmt: skip
    # An option that is false in the cluster's file is left out.
    chosen = {key.replace("-", "_"): None if value is False else value for key, value in cluster.sbatch.items()}
    fields = {field.name for field in dataclasses.fields(run.SlurmExecutor) if field.init}
    options = {
        "account": cluster.account,
        "partition": cluster.partition,
        "nodes": request.num_nodes,
        "ntasks_per_node": role.tasks_per_node,
        "gpus_per_node": cluster.gpus_per_node,
        "time": cluster.time_limit,
        "mem": "0",
        "exclusive": True,
        "signal": f"USR1@{cluster.signal_before_s}",  # to the ranks; servers ignore it
    }
    return run.SlurmExecutor(
        **options | {key: value for key, value in chosen.items() if key in fields},
        additional_parameters={key: value for key, value in chosen.items() if key not in fields and value is not None},
        container_image=role.image,
        container_mounts=list(cluster.mount_pairs),
        container_env=list(cluster.env) or None,
        srun_args=srun,
        setup_lines=setup_lines(request),
        monitor_group_job_wait_time=_LOOK_EVERY_S,
        wait_time_for_group_job=0,
        job_name_prefix="nemo_axpo-",
        tunnel=run.LocalTunnel(job_dir=job_dir),
        packager=run.Packager(),
    )


def setup_lines(request: JobRequest) -> str:
    """Bash of the batch script before its first step. NeMo-Run would write values of its ``env_vars`` without quotes."""
    from nemo_axpo.launcher import job_steps

    cluster = request.cluster
    exports = [f"export {name}={shlex.quote(value)}" for name, value in cluster.env.items()]
    return "\n".join([
        *cluster.setup,
        *exports,
        job_steps.address_lines(request),
        job_steps.requeue_lines(request),
        "trap 'requeue_unless_over \"$?\"' EXIT",
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or queues the experiment; 1 where a job on this machine failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executor", choices=("slurm", "local"), required=True)
    parser.add_argument("--cluster", default="slurm", metavar="FILE", help="a file like conf/cluster/slurm.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the cluster's file")
    parser.add_argument("--job-dir", default="outputs/nemo_run", help="where NeMo-Run keeps its files")
    parser.add_argument("--dry-run", action="store_true", help="show the job; queue nothing")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- train|sft|eval and its options")
    options = parser.parse_args(arguments)
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    return experiment(options, words)


def experiment(options: argparse.Namespace, words: Sequence[str]) -> int:
    """One experiment of one job."""
    _require_nemo_run()
    import nemo_run as run

    is_local = options.executor == "local"
    tasks = _local_tasks(words) if is_local else _slurm_tasks(options, words)
    with run.Experiment("nemo_axpo") as trial:
        _add(trial, tasks, name=words[0])
        if options.dry_run:
            trial.dryrun(delete_exp_dir=False)
            return 0
        trial.run(detach=not is_local)
    # A job on this machine is waited for at the end of the block.
    return int(is_local and trial.jobs[0].state.name != "SUCCEEDED")


def _add(trial: Any, tasks: Sequence[tuple[Any, Any]], *, name: str) -> None:
    if len(tasks) == 1:
        trial.add(tasks[0][0], executor=tasks[0][1], name=name, tail_logs=True)
    else:
        trial.add([script for script, _ in tasks], executor=[executor for _, executor in tasks], name=name)


def _local_tasks(words: Sequence[str]) -> list[tuple[Any, Any]]:
    """The command here; a run that stopped goes on when it is started again."""
    import nemo_run as run

    from nemo_axpo.cli import parse_arguments
    from nemo_axpo.launcher.submission import resumed_words

    script = run.Script(
        path="nemo_axpo.cli", args=resumed_words(words, parse_arguments(words)), entrypoint="python", m=True
    )
    return [(script, run.LocalExecutor())]


def _check_spaces(request: JobRequest, *, job_dir: str) -> None:
    """ConfigError for words that NeMo-Run's script would take for several."""
    from nemo_axpo.errors import ConfigError, rule_message

    cluster = request.cluster
    images = [role.image or "" for role in roles(request)]
    for word in (job_dir, *images, *cluster.mounts, *cluster.container_args, *cluster.srun_args):
        if any(character.isspace() for character in word):
            rule, cure = "NeMo-Run writes options of srun without quotes", "use names without spaces, or nemo-axpo submit"
            raise ConfigError(rule_message(rule, got=repr(word), cure=cure))


def _slurm_tasks(options: argparse.Namespace, words: Sequence[str]) -> list[tuple[Any, Any]]:
    import nemo_run as run

    request = _request(options, words)
    job_dir, workdir = str(Path(options.job_dir).absolute()), shlex.quote(request.cluster.workdir)
    _check_spaces(request, job_dir=job_dir)
    return [(run.Script(inline=f"cd {workdir} || exit\n{role.script}\n"), slurm_executor(request, role, job_dir=job_dir))
            for role in roles(request)]  # fmt: skip


def _request(options: argparse.Namespace, words: Sequence[str]) -> JobRequest:
    from nemo_axpo.cli import parse_arguments
    from nemo_axpo.errors import ConfigError, rule_message
    from nemo_axpo.launcher.cluster import load_cluster
    from nemo_axpo.launcher.submission import check_command, check_place, job_request

    check_command(words)
    cluster = load_cluster(options.cluster, changes=options.set)
    request = job_request(words, parse_arguments(words), cluster=cluster, start=Path(cluster.workdir))
    if request.is_plain:
        cure = f"nemo-axpo submit -- {words[0]} …"
        raise ConfigError(rule_message("an experiment has a trainer or an evaluation", got=words[0], cure=cure))
    check_place(request)
    return request


def _require_nemo_run() -> None:
    """MissingExtraError with the install line."""
    if importlib.util.find_spec("nemo_run") is None:
        from nemo_axpo.errors import MissingExtraError

        line = "pip install nemo_run==0.11.1 leptonai==0.27.3, or use `nemo-axpo submit`, which needs neither"
        raise MissingExtraError(f"this script needs NeMo-Run, which is not installed: {line}")


def _told(function: Any) -> int:
    """What the user can cure is one message, as of the nemo-axpo command."""
    from nemo_axpo.cli import USER_ERROR, is_user_error
    from nemo_axpo.errors import ConfigError

    try:
        return function()
    except Exception as error:
        if not isinstance(error, ConfigError) and not is_user_error(error):
            raise
        print(f"nemo_run_job.py: error: {error}", file=sys.stderr)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(_told(main))
