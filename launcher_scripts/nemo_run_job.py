"""A command of nemo-axpo as a NeMo-Run experiment, on Slurm or on this machine:

    python launcher_scripts/nemo_run_job.py --executor slurm --cluster mine.yaml --dry-run -- \
        train --config-name recipes/axpo_8b model.path=/lustre/sft_8b/hf 'engine.servers=[http://host:8000]'
    python launcher_scripts/nemo_run_job.py --executor local -- sft --output-dir /tmp/sft

NeMo-Run starts the trainer alone: generation servers run already (``engine.servers``), or the engine is embedded.
`nemo-axpo submit` starts servers too. Written for nemo_run 0.11.1 (pip install nemo_run==0.11.1 leptonai==0.27.3).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from nemo_axpo.launcher.job_request import JobRequest

_RANK = "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS"


def slurm_executor(request: JobRequest, *, job_dir: str) -> Any:
    """``nemo_run.SlurmExecutor`` with what the cluster's file says; the same options as `nemo-axpo submit`."""
    import nemo_run as run

    cluster, job = request.cluster, request.config.job
    return run.SlurmExecutor(
        account=cluster.account,
        partition=cluster.partition,
        nodes=request.num_trainer_nodes,
        ntasks_per_node=job.gpus_per_node if job.num_nodes else 1,
        gpus_per_node=cluster.gpus_per_node,
        time=cluster.time_limit,
        mem="0",
        exclusive=True,
        signal=f"USR1@{cluster.signal_before_s}",  # to the ranks: they are the only tasks
        container_image=cluster.image,
        container_mounts=[mount if ":" in mount else f"{mount}:{mount}" for mount in cluster.mounts],
        srun_args=[*cluster.srun_args, "--cpu-bind=none"],
        env_vars=dict(cluster.env),
        # head_node_ip is set by NeMo-Run's own lines, which come first.
        setup_lines="export MASTER_ADDR=$head_node_ip MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
        additional_parameters={"requeue": True, **cluster.sbatch},
        job_name_prefix="nemo_axpo-",
        tunnel=run.LocalTunnel(job_dir=job_dir),
        packager=run.Packager(),
    )


def slurm_command(request: JobRequest) -> str:
    """One rank's command: what torchrun would say comes from Slurm's variables."""
    import shlex

    return f"cd {shlex.quote(request.cluster.workdir)} && {_RANK} exec nemo-axpo {shlex.join(request.command)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs or queues the experiment."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executor", choices=("slurm", "local"), required=True)
    parser.add_argument("--cluster", default="slurm", metavar="FILE", help="a file like conf/cluster/slurm.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the cluster's file")
    parser.add_argument("--job-dir", default="outputs/nemo_run", help="where NeMo-Run keeps its files")
    parser.add_argument("--dry-run", action="store_true", help="show the job; queue nothing")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- train|sft|eval and its options")
    options = parser.parse_args(arguments)
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    experiment(options, words)


def experiment(options: argparse.Namespace, words: Sequence[str]) -> None:
    """One experiment of one task."""
    import nemo_run as run

    if options.executor == "local":
        script = run.Script(path="nemo_axpo.cli", args=list(words), entrypoint="python", m=True)
        executor = run.LocalExecutor()
    else:
        request = _request(options, words)
        script = run.Script(inline=slurm_command(request))
        executor = slurm_executor(request, job_dir=str(Path(options.job_dir).absolute()))
    with run.Experiment("nemo_axpo", executor=executor) as trial:
        trial.add(script, executor=executor, name=words[0], tail_logs=True)
        if options.dry_run:
            trial.dryrun(delete_exp_dir=False)
        else:
            trial.run(detach=options.executor == "slurm")


def _request(options: argparse.Namespace, words: Sequence[str]) -> JobRequest:
    from nemo_axpo.cli import parse_arguments
    from nemo_axpo.launcher.cluster import load_cluster
    from nemo_axpo.launcher.submission import check_command, job_request

    check_command(words)
    cluster = load_cluster(options.cluster, changes=options.set)
    # The servers run already; the job starts none.
    words = [*words, "job.servers.per_node=0"]
    return job_request(words, parse_arguments(words), cluster=cluster, start=Path(cluster.workdir))


if __name__ == "__main__":
    main()
