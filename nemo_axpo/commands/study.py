"""``nemo-axpo study``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_axpo.launcher.job_request import JobRequest
    from nemo_axpo.launcher.study import Step, Study, StudyJob


def add(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``study`` and its options."""
    parser = subparsers.add_parser(
        "study",
        help="queue the whole study on a Slurm cluster, or the rest of it",
        description="For every size the warm start, GRPO and AXPO from it, the nine benchmarks of base and all three, and one "
        "table and figure, as jobs with dependencies. Called again it queues what is neither finished nor in the queue; runs "
        "that were cut off go on where they were. A job that fails takes those that wait for it out of the queue.",
        epilog="example: nemo-axpo study --cluster mine.yaml --models /lustre/models --results /lustre/study --dry-run",
    )
    parser.add_argument(
        "--cluster", required=True, metavar="FILE", help="a file like conf/cluster/slurm.yaml, filled in"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the cluster's file")
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="holds Qwen3-VL-2B-Thinking, …-4B-…")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="a directory in it for every job")
    parser.add_argument("--sizes", default="2b 4b 8b 32b", metavar="LIST", help="default: %(default)s")
    parser.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where the data of one of the nine lie; may be repeated (default: their place on the hub)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done; write and queue nothing")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="-- settings of every training job, e.g. seed=3")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from nemo_axpo.launcher.slurm_queue import queued_jobs
    from nemo_axpo.launcher.study import Study, benchmark_words, check_study, run_study

    study = Study(
        options.models.absolute(),
        options.results.absolute(),
        tuple(options.sizes.split()),
        tuple(options.settings),
        benchmark_words(options.benchmark),
    )
    check_study(study, has_models=not options.dry_run)
    requests = _requests(options, study)
    if options.dry_run:
        tell = _shower(options, requests)
        run_study(study, queued=_queue_where_there_is_one(), submit=lambda job, _: f"<{job.name}>", tell=tell)
    else:
        run_study(study, queued=queued_jobs(), submit=_submit(requests), tell=_tell)


def _requests(options: argparse.Namespace, study: Study) -> dict[str, JobRequest]:
    """Every job of the study, checked: what cannot run is refused before the first one is queued."""
    from nemo_axpo.cli import parse_arguments
    from nemo_axpo.launcher.cluster import load_cluster
    from nemo_axpo.launcher.study import study_jobs
    from nemo_axpo.launcher.submission import check_place, job_request

    cluster = load_cluster(options.cluster, changes=options.set)
    found = {}
    for job in study_jobs(study):
        request = job_request(job.words, parse_arguments(job.words), cluster=cluster, start=study.results,
                              name=study.queue_name(job))  # fmt: skip
        check_place(request)
        found[job.name] = request
    return found


def _submit(requests: Mapping[str, JobRequest]) -> Callable[[StudyJob, str | None], str]:
    """Queues a job and leaves its number beside its directory."""
    from nemo_axpo.launcher.job_script import sbatch_text
    from nemo_axpo.launcher.submission import submit

    def queue(job: StudyJob, dependency: str | None) -> str:
        request = replace(requests[job.name], dependency=dependency)
        number = submit(request, sbatch_text(request))
        job.number_path.write_text(f"{number}\n", encoding="utf-8")
        return number

    return queue


def _queue_where_there_is_one() -> dict[str, str]:
    from nemo_axpo.errors import RunFailedError
    from nemo_axpo.launcher.slurm_queue import queued_jobs

    try:
        return queued_jobs()
    except RunFailedError as error:
        print(f"# as if the queue were empty: {error}")
        return {}


def _tell(step: Step) -> None:
    said = {"finished": "finished", "queued": f"in the queue as {step.number}", "submit": f"queued as {step.number}"}
    print(f"{step.job.name}: {said[step.action]}", flush=True)


def _shower(options: argparse.Namespace, requests: Mapping[str, JobRequest]) -> Callable[[Step], None]:
    """Prints the command that would queue a job."""
    cluster = ["--cluster", options.cluster, *(word for change in options.set for word in ("--set", change))]

    def show(step: Step) -> None:
        if step.action != "submit":
            _tell(step)
            return
        words = ["nemo-axpo", "submit", *cluster, "--name", requests[step.job.name].name]
        words += ["--dependency", step.dependency] if step.dependency else []
        print(f"{step.job.name}: {shlex.join([*words, '--', *step.job.words])}")

    return show
