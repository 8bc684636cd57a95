"""Job scripts: what is refused before it waits in a queue, and what the script does, run by bash with Slurm's commands played."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_axpo.cli import main
from nemo_axpo.launcher.slurm_queue import environment_of_jobs

ALONE = ("--set", "image=null", "--set", "workdir=/")
RECIPE = ("--config-name", "recipes/axpo_8b", "model.path=/lustre/sft")
EVAL = ("--config-name", "recipes/eval_8b", "--checkpoint", "/lustre/sft", "--output-dir", "/lustre/e")
ONE_RANK = ("train", "job.num_nodes=1", "job.gpus_per_node=1", "model.path=/m")

SRUN = """#!{python}
# Plays srun: the command itself, once a task of a node; signals are passed on, as srun does.
import os, signal, subprocess, sys
words = sys.argv[1:]
options = [word for word in words if word.startswith("--")]
words = words[len(options):]
with open(os.environ["CALLS"], "a") as calls:
    print("srun", *options, file=calls)
(count,) = [int(option.partition("=")[2]) for option in options if option.startswith("--ntasks=")]
ranks = [{{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n), "SLURM_NTASKS": str(count)}} for n in range(count)]
tasks = [subprocess.Popen(words, env={{**os.environ, **rank}}) for rank in ranks]
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: [task.send_signal(number) for task in tasks])
statuses = [task.wait() for task in tasks]
sys.exit(max(status if status >= 0 else 128 - status for status in statuses))
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then echo localhost; else echo "scontrol $*" >>"$CALLS"; fi
"""
TRAINER = """#!{python}
# Plays nemo-axpo: preflight passes; the trainer says that it runs, and stops when it is told to.
import os, pathlib, signal, sys
with open(os.environ["CALLS"], "a") as calls:
    print("nemo-axpo", *sys.argv[1:], "RANK", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], file=calls)
if sys.argv[1] == "preflight":
    sys.exit(0)
run = pathlib.Path(os.environ["RUN"])
def stop(number, frame):
    (run / "stopped.json").write_text("{{}}")
    sys.exit(0)
if os.environ["TRAINER"] != "dies of it":
    signal.signal(signal.SIGUSR1, stop)
(run / "pid").write_text(str(os.getpid()))
(run / "pid").rename(run / "running")
if os.environ["TRAINER"] == "fails":
    sys.exit(3)
if os.environ["TRAINER"] in ("waits", "dies of it"):
    while True:
        signal.pause()
"""


MOUNTED = ("--set", "mounts=[/lustre,/runs,/opt]")


def message_of(capsys, *words):
    assert main(["submit", "--dry-run", *MOUNTED, *words]) == 2
    return capsys.readouterr().err


def dry_run(capsys, *words):
    assert main(["submit", "--dry-run", *MOUNTED, *words]) == 0
    return capsys.readouterr().out


class Cluster:
    """Slurm's commands and the trainer, played in a directory of their own."""

    def __init__(self, path: Path, text: str, *, trainer: str, program: str = TRAINER) -> None:
        self.run, self.calls = path / "run", path / "calls"
        self.run.mkdir(exist_ok=True)
        for name, text_of in {"srun": SRUN, "scontrol": SCONTROL, "nemo-axpo": program}.items():
            (path / name).write_text(text_of.format(python=sys.executable) if "{python}" in text_of else text_of)
            (path / name).chmod(stat.S_IRWXU)
        (path / "job.sbatch").write_text(text.replace("/runs/x", str(self.run)))
        places = f"{path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        variables = {"PATH": places, "PYTHONPATH": str(Path(__file__).parents[2]), "SLURM_JOB_ID": "7",
                     "SLURM_JOB_NODELIST": "localhost"}  # fmt: skip
        environment = {**os.environ, **variables, "CALLS": str(self.calls), "RUN": str(self.run), "TRAINER": trainer}
        self.job = subprocess.Popen(["bash", path / "job.sbatch"], env=environment, stderr=subprocess.PIPE, text=True)

    def wait_until_running(self) -> None:
        end = time.monotonic() + 20
        while not (self.run / "running").exists():
            assert time.monotonic() < end and self.job.poll() is None, self.job.communicate()[1]
            time.sleep(0.02)

    def finish(self) -> tuple[int, str]:
        status = self.job.wait(timeout=20)
        return status, self.calls.read_text()


@pytest.fixture
def script(capsys):
    return dry_run(capsys, *ALONE, "--", *ONE_RANK, "--output-dir", "/runs/x")


def test_a_signal_before_the_time_limit_ends_in_the_queue_again(script, tmp_path):
    cluster = Cluster(tmp_path, script, trainer="waits")
    cluster.wait_until_running()
    cluster.job.send_signal(signal.SIGUSR1)
    status, calls = cluster.finish()
    assert status == 0 and "scontrol requeue 7" in calls
    assert "nemo-axpo train" in calls and "--resume RANK 0 of 1" in calls
    assert calls.index("nemo-axpo preflight") < calls.index("nemo-axpo train")


def test_a_finished_run_is_not_queued_again(script, tmp_path):
    status, calls = Cluster(tmp_path, script, trainer="ends").finish()
    assert status == 0 and "scontrol requeue" not in calls


def test_a_failed_run_fails_the_job(script, tmp_path):
    status, calls = Cluster(tmp_path, script, trainer="fails").finish()
    assert status == 3 and "scontrol requeue" not in calls


def test_lines_of_the_site_may_read_variables_that_are_not_set(capsys, tmp_path):
    text = dry_run(capsys, *ALONE, "--set", 'setup=["echo $NOT_SET >/dev/null"]', "--", *ONE_RANK, "--output-dir", "/runs/x")
    assert Cluster(tmp_path, text, trainer="ends").finish()[0] == 0


@pytest.mark.parametrize(("before", "expected"), [({}, "localhost"), ({"NO_PROXY": "judge.site"}, "judge.site,localhost")])
def test_nodes_are_asked_without_the_proxy(script, tmp_path, monkeypatch, before, expected):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    said = script.replace("exec nemo-axpo train", "exec nemo-axpo $no_proxy $NO_PROXY")
    assert f"nemo-axpo {expected} {expected} " in Cluster(tmp_path, said, trainer="ends").finish()[1]


def test_an_evaluation_that_the_signal_ended_is_queued_again_and_one_that_failed_is_not(capsys, tmp_path):
    words = ["eval", "job.num_nodes=1", "job.gpus_per_node=1", "--checkpoint", "/m", "--benchmark", "mathvision"]
    text = dry_run(capsys, *ALONE, "--", *words, "--output-dir", "/runs/x")
    cluster = Cluster(tmp_path, text, trainer="dies of it")
    cluster.wait_until_running()
    cluster.job.send_signal(signal.SIGUSR1)
    status, calls = cluster.finish()
    assert status == 138 and calls.count("scontrol requeue 7") == 1
    (tmp_path / "second").mkdir()
    status, calls = Cluster(tmp_path / "second", text, trainer="fails").finish()
    assert status == 3 and "scontrol requeue" not in calls


def test_servers_that_end_are_the_end_of_the_job(capsys, tmp_path):
    """The trainer waits for servers that nobody will answer for: the job does not."""
    servers = ["engine=vllm_server", "device=cuda", "job.servers.per_node=1", "job.servers.num_nodes=0",
               "job.servers.start_timeout_min=0.2"]  # fmt: skip
    text = dry_run(capsys, *ALONE, "--", *ONE_RANK, *servers, "--output-dir", "/runs/x")
    cluster = Cluster(tmp_path, text.replace("exec python3 -m nemo_axpo.launcher.serve_node", "exit 9 #"), trainer="waits")
    status, calls = cluster.finish()
    assert status == 1 and "servers ended before the trainer, with status 9" in cluster.job.stderr.read()
    assert "nemo-axpo train" not in calls and "scontrol requeue" not in calls


def test_the_end_of_the_job_is_the_end_of_its_children(script, tmp_path):
    cluster = Cluster(tmp_path, script, trainer="waits")
    cluster.wait_until_running()
    cluster.job.send_signal(signal.SIGTERM)
    trainer = int((cluster.run / "running").read_text())
    assert cluster.finish()[0] != 0
    with pytest.raises(ProcessLookupError):
        os.kill(trainer, 0)


REAL = """#!/bin/bash
exec {python} -m nemo_axpo.cli "$@"
"""
TINY = (
    "data.num_questions_per_step=4", "algorithm.num_rollouts=4", "algorithm.num_continuations=2",
    "algorithm.resample_ratio=0.5", "eval.num_questions=4", "eval.num_rollouts=2",
)  # fmt: skip


@pytest.mark.slow
def test_the_real_trainer_on_two_ranks_is_stopped_queued_again_and_goes_on(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    policy = tmp_path / "sft"
    warm_start = ["sft.num_steps=5", "sft.batch_size=8", "eval.window_questions=0"]
    assert main(["sft", "--output-dir", str(policy), *warm_start]) == 0
    capsys.readouterr()
    trained = ["train", "job.num_nodes=1", "job.gpus_per_node=2", f"model.path={policy / 'hf'}", "train.num_steps=1000"]
    cluster = ["--set", "image=null", "--set", f"workdir={tmp_path}"]
    text = dry_run(capsys, *cluster, "--", *trained, *TINY, "--output-dir", "/runs/x")
    stopped, metrics = tmp_path / "run" / "stopped.json", tmp_path / "run" / "metrics.jsonl"
    num_steps = [0]
    for number in (1, 2):
        job = Cluster(tmp_path, text, trainer="", program=REAL)
        end = time.monotonic() + 120
        while not metrics.exists() or len(metrics.read_text().splitlines()) <= num_steps[-1]:
            assert time.monotonic() < end and job.job.poll() is None, job.job.communicate()[1]
            time.sleep(0.1)
        job.job.send_signal(signal.SIGUSR1)
        assert job.job.wait(timeout=120) == 0
        num_steps.append(json.loads(stopped.read_text())["step"])
        assert job.calls.read_text().count("scontrol requeue 7") == number
    assert num_steps[2] > num_steps[1] == len(set(metrics.read_text().splitlines()[: num_steps[1]]))
    assert main(["journal", str(tmp_path / "run")]) == 0
    assert "resumed 1 times, 0 steps undone" in capsys.readouterr().out


def test_servers_share_the_nodes_of_small_trainers_and_have_their_own_beside_large_ones(capsys):
    shared = dry_run(capsys, "--", "train", "--config-name", "recipes/axpo_2b", "model.path=/lustre/sft")
    assert "#SBATCH --nodes=1\n" in shared and 'for host in "${nodes[@]:0:1}"' in shared and "--first-gpu 4" in shared
    apart = dry_run(capsys, "--", "train", "--config-name", "recipes/axpo_32b", "model.path=/lustre/sft")
    assert "#SBATCH --nodes=6\n" in apart and 'for host in "${nodes[@]:4:2}"' in apart and "--gpus-each 2" in apart
    assert '--nodes=2 --ntasks=2 --ntasks-per-node=1 --distribution=block --nodelist="$(join "${nodes[@]:4:2}")"' in apart
    assert '--nodes=4 --ntasks=32 --ntasks-per-node=8 --distribution=block --nodelist="$(join "${nodes[@]:0:4}")"' in apart
    assert "#SBATCH --output=/opt/nemo_axpo/outputs/axpo_32b.%j.log" in apart


def test_running_servers_are_used_as_they_are(capsys):
    text = dry_run(capsys, "train", "--config-name", "recipes/axpo_8b", "model.path=/m", "engine.servers=[http://h:8000]")
    assert "serve_node" not in text and "#SBATCH --nodes=1\n" in text
    assert "engine.servers=[http://h:8000]" in text and "${urls[@]}" not in text


def test_tool_servers_get_a_token_and_the_trainer_their_addresses(capsys):
    text = dry_run(capsys, "--", "train", *RECIPE, "job.tool_servers.num_nodes=1")
    assert " NEMO_AXPO_TOOL_TOKEN\n" in text and '"tools.servers={python:[$NEMO_AXPO_TOOL_SERVERS]}"' in text


def test_a_stage_of_nemo_resumes_itself(capsys):
    from nemo_axpo.config.load import config_directory

    stage = str(config_directory() / "axpo" / "qwen3_vl" / "8b.yaml")
    text = dry_run(capsys, "--", "train", "--nemo-config", stage, "pretrained_checkpoint.restore_from_path=/m")
    assert f"exec nemo-axpo train --nemo-config {stage}" in text and "--resume" not in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--", "plan"], "what is queued is one of: train, sft, eval, table; got plan"),
        (["--"], "got nothing"),
        (["--", "train", "--config-name", "recipes/axpo_8b"], "a queued job names its model"),
        (["--", "train", "model.path=/m"], "a queued job says its nodes"),
        (["--", "train", *RECIPE, "job.servers.per_node=0"], "engine.name=vllm_server needs generation servers"),
        (["--", "train", *RECIPE, "engine=hf"], "a job starts servers of vLLM"),
        (["--", "train", *RECIPE, "job.gpus_per_node=4", "job.servers.num_nodes=0"], "a node has 8 GPUs"),
        (["--", "train", *RECIPE, "actor.tensor_parallel=3"], "must be a multiple of"),
        (["--", "train", *RECIPE, "job.tool_servers.num_nodes=2"], "tool servers run on the nodes"),
        (["--set", "patition=x", "--", "train", *RECIPE], "did you mean partition?"),
        (["--set", "time_limit=4h", "--", "train", *RECIPE], "time_limit of a cluster"),
        (["--set", "time_limit=4:00:00", "--", "train", *RECIPE], 'got 14400: write it in quotes'),
        (["--set", "mounts=/lustre", "--", "train", *RECIPE], "write a list: mounts: [one, two]"),
        (["--", "train", *RECIPE, "--dry-run"], "options of submit stand before the command; got --dry-run"),
        (["--", "eval", *EVAL, "--benchmark", "vtar"], "vtar"),
        (["--", "eval", *EVAL, "--benchmark", "all"], "benchmark vstar needs a copy of its data set"),
        (["--set", "mounts=[/a:/b]", "--", "train", *RECIPE], "the same absolute path on both sides"),
        (["--set", "mounts=[/models]", "--", "train", *RECIPE], "the run directory lies in a mount of the container"),
        (["--set", "mounts=[/models]", "--", "table", "/models/e", "--output", "/results/t"], "got /results/t, and mounts"),
        (["--set", "time_limit=00:15:00", "--", "train", *RECIPE], "signal_before_s must be shorter than time_limit"),
        (["--set", "sbatch.array=0-3", "--", "train", *RECIPE], "which the tasks of an array would share"),
        (["--cluster", "slurmm", "--", "train", *RECIPE], "or one of conf/cluster; got slurmm"),
    ],
)
def test_refused_before_it_waits(capsys, words, expected):
    assert expected in message_of(capsys, *words)


def test_what_is_read_outside_the_mounts_is_said(capsys):
    words = ["--set", "mounts=[/lustre]", "--", "train", *RECIPE, "--output-dir", "/lustre/x"]
    assert main(["submit", "--dry-run", *words]) == 0
    said = capsys.readouterr().err
    assert "in no mount of the container (mounts, workdir): data.files[0].path=datasets/ViRL39K" in said
    assert "model.path" not in said
    assert main(["submit", "--dry-run", "--set", "workdir=/lustre/nemo_axpo", *words]) == 0
    assert capsys.readouterr().err == ""


def test_without_sbatch_the_script_is_written_and_said(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--set", f"mounts=[{tmp_path}]", "--", "train", *RECIPE, "--output-dir", str(tmp_path / "run")]
    assert main(["submit", *words]) == 2
    assert "jobs are queued by sbatch" in capsys.readouterr().err
    assert (tmp_path / "run.sbatch").read_text().startswith("#!/bin/bash\n#SBATCH --job-name=run\n")


def test_the_jobs_number_is_printed_for_the_next_dependency(capsys, tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho '123;cluster'\n")
    (tmp_path / "sbatch").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = ["--set", f"mounts=[{tmp_path}]", "--dependency", "afterok:99", "--", "train", *RECIPE]
    assert main(["submit", *words, "--output-dir", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == "123\n"
    text = (tmp_path / "run.sbatch").read_text()
    assert "#SBATCH --dependency=afterok:99\n#SBATCH --kill-on-invalid-dep=yes" in text


def test_a_directory_that_cannot_be_written_is_said(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    words = ["--set", f"mounts=[{tmp_path}]", "--", "train", *RECIPE, "--output-dir", str(tmp_path / "file" / "run")]
    assert main(["submit", *words]) == 2
    assert "the job's script is written beside its run directory; got" in capsys.readouterr().err


def test_a_job_queued_from_inside_another_one_has_none_of_its_variables():
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_CLUSTERS": "dgx", "WANDB_API_KEY": "k"}
    assert environment_of_jobs({"SLURM_JOB_ID": "1", "SLURM_NTASKS_PER_NODE": "4", **kept}) == kept


def test_options_of_pyxis_are_for_jobs_with_an_image(capsys):
    with_image = dry_run(capsys, "--", "train", *RECIPE)
    assert "--no-container-entrypoint" in with_image
    assert "--container-env=TORCH_NCCL_AVOID_RECORD_STREAMS,TRANSFORMERS_OFFLINE" in with_image
    without = dry_run(capsys, "--set", "image=null", "--", "train", *RECIPE)
    assert "container" not in without and "--chdir=/opt/nemo_axpo" in without


def test_a_table_is_one_process_in_the_container_without_gpus(capsys):
    text = dry_run(capsys, "--dependency", "afterok:3", "--", "table", "/runs/e", "--output", "/runs/t")
    assert "--container-image=" in text and "nemo-axpo table /runs/e --output /runs/t\n" in text
    assert "--nodes=1 --ntasks=1 --ntasks-per-node=1" in text
    for option in ("gpus-per-node", "exclusive", "signal", "--requeue"):
        assert option not in text


def test_a_percent_sign_and_a_space_in_a_directory(capsys):
    text = dry_run(capsys, "--", "train", *RECIPE, "--output-dir", "/runs/50% of it")
    assert "#SBATCH --output='/runs/50%% of it.%j.log'\n" in text and "run='/runs/50% of it'\n" in text
    assert "--run-dir '/runs/50% of it'" in text
