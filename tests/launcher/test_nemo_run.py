"""The NeMo-Run script with the real package: the text that sbatch would get, that text run by bash with Slurm's commands played,
and jobs on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from golden_nemo_run import GOLDEN, JOBS, golden_text, nemo_run_job, written_files

SRUN = """#!{python}
# Plays srun: the command itself, as the only rank of its step. Slurm's signal goes to the steps, not to the script.
import os, signal, subprocess, sys
words = sys.argv[1:]
with_value = ("--output", "--chdir", "-w")
while words[0].startswith("-"):
    del words[: 2 if words[0] in with_value else 1]
with open(os.environ["CALLS"], "a") as calls:
    print("srun", *sys.argv[1:], file=calls)
rank = {{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}}
status = subprocess.Popen(words, env={{**os.environ, **rank}}).wait()
sys.exit(status if status >= 0 else 128 - status)
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then echo localhost; else echo "scontrol $*" >>"$CALLS"; fi
"""
PROGRAM = """#!{python}
# Plays nemo-axpo, and python3 with the servers: each says that it runs and waits for a signal.
import os, pathlib, signal, sys
run = pathlib.Path(os.environ["RUN"])
said = [word for word in sys.argv[1:] if word.startswith("engine.servers=")]
with open(os.environ["CALLS"], "a") as calls:
    print(pathlib.Path(sys.argv[0]).name, *sys.argv[1:4], *said, "RANK", os.environ.get("RANK"), file=calls)
if sys.argv[1] == "preflight" or "nemo_axpo.launcher.wait_for" in sys.argv:
    sys.exit(0)
name = "servers" if "nemo_axpo.launcher.serve_node" in sys.argv else "trainer"
def stop(number, frame):
    (run / "stopped.json").write_text("{{}}")
    sys.exit(0)
if name == "trainer" and os.environ["TRAINER"] == "stops":
    signal.signal(signal.SIGUSR1, stop)
(run / ("." + name)).write_text(str(os.getpid()))
(run / ("." + name)).rename(run / name)
if os.environ["TRAINER"] == "fails":
    sys.exit(3)
signal.alarm(60)
while True:
    signal.pause()
"""
ONE_RANK = ("job.num_nodes=1", "job.gpus_per_node=1")
SERVERS = ("engine=vllm_server", "device=cuda", "job.servers.per_node=1", "job.servers.num_nodes=0")


class Job:
    """The script that NeMo-Run wrote, run by bash in a directory of its own."""

    def __init__(self, path: Path, *words: str, trainer: str) -> None:
        self.run, self.calls = path / "run", path / "calls"
        self.run.mkdir()
        cluster = ["--set", "account=a", "--set", "image=null", "--set", f"workdir={path}"]
        (batch, *_) = written_files(path, *cluster, "--", *words, "--output-dir", self.run)
        texts = {"srun": SRUN, "scontrol": SCONTROL, "nemo-axpo": PROGRAM, "python3": PROGRAM}
        (path / "bin").mkdir()
        for name, text in texts.items():
            (path / "bin" / name).write_text(text.format(python=sys.executable) if "{python}" in text else text)
            (path / "bin" / name).chmod(0o755)
        # The tasks lie where the experiment is copied to when it is queued.
        text = batch.read_text().replace(str(path / "jobs"), str(path / "home" / "experiments"))
        batch.write_text(text.replace("sleep 10", "sleep 0.2"))
        variables = {"PATH": f"{path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}
        environment = {**os.environ, **variables, "CALLS": str(self.calls), "RUN": str(self.run), "TRAINER": trainer}
        self.log = path / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(["bash", batch], env=environment, stdout=log, stderr=log)

    def pid_of(self, name: str) -> int:
        end = time.monotonic() + 30
        while not (self.run / name).exists():
            assert time.monotonic() < end and self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        return int((self.run / name).read_text())

    def finish(self) -> tuple[int, str]:
        return self.process.wait(timeout=30), self.calls.read_text()


@pytest.mark.nemo_run
@pytest.mark.parametrize("name", JOBS)
def test_what_is_queued_is_the_golden_text(name, tmp_path):
    assert golden_text(name, tmp_path) == (GOLDEN / name).read_text("utf-8"), "tests/launcher/golden_nemo_run.py"


@pytest.mark.nemo_run
def test_a_run_that_the_signal_stopped_is_queued_again(tmp_path):
    job = Job(tmp_path, "train", *ONE_RANK, "model.path=/m", trainer="stops")
    os.kill(job.pid_of("trainer"), signal.SIGUSR1)
    status, calls = job.finish()
    assert status == 0 and calls.count("scontrol requeue 7") == 1
    assert calls.index("nemo-axpo preflight") < calls.index("nemo-axpo train") and "RANK 0" in calls


@pytest.mark.nemo_run
def test_a_failed_run_is_not_queued_again(tmp_path):
    status, calls = Job(tmp_path, "train", *ONE_RANK, "model.path=/m", trainer="fails").finish()
    assert status == 3 and "scontrol requeue" not in calls


@pytest.mark.nemo_run
def test_an_evaluation_that_the_signal_ended_is_queued_again(tmp_path):
    job = Job(tmp_path, "eval", *ONE_RANK, "--checkpoint", "/m", "--benchmark", "mathvision", trainer="waits")
    os.kill(job.pid_of("trainer"), signal.SIGUSR1)
    status, calls = job.finish()
    assert status == 138 and calls.count("scontrol requeue 7") == 1


@pytest.mark.nemo_run
def test_servers_run_beside_the_trainer_and_survive_the_signal(tmp_path):
    job = Job(tmp_path, "train", *ONE_RANK, "model.path=/m", *SERVERS, trainer="stops")
    servers, trainer = job.pid_of("servers"), job.pid_of("trainer")
    os.kill(servers, signal.SIGUSR1)
    time.sleep(0.5)  # it would end at once
    os.kill(servers, 0)
    os.kill(trainer, signal.SIGUSR1)
    status, calls = job.finish()
    os.kill(servers, signal.SIGKILL)  # as Slurm does with the steps of a job that is over
    assert status == 0 and calls.count("scontrol requeue 7") == 1
    assert "engine.servers=[http://localhost:8000] RANK 0" in calls


@pytest.mark.nemo_run
def test_servers_that_fail_are_the_end_of_the_job(tmp_path):
    job = Job(tmp_path, "train", *ONE_RANK, "model.path=/m", *SERVERS, trainer="stops")
    servers, trainer = job.pid_of("servers"), job.pid_of("trainer")
    os.kill(servers, signal.SIGKILL)
    status, calls = job.finish()
    os.kill(trainer, signal.SIGKILL)
    assert status == 137 and "scontrol requeue" not in calls


@pytest.mark.nemo_run
def test_the_token_of_tool_servers_is_in_no_log(tmp_path):
    words = ("train", *ONE_RANK, "model.path=/m", *SERVERS, "job.tool_servers.num_nodes=1")
    job = Job(tmp_path, *words, trainer="fails")
    job.finish()
    log = job.log.read_text()
    assert "+ export NEMO_AXPO_SERVERS" in log and "NEMO_AXPO_TOOL_TOKEN=$(od" in log
    assert not re.search(r"TOKEN=[0-9a-f]{8}", log)


@pytest.mark.nemo_run
def test_what_cannot_run_is_refused_as_by_submit(tmp_path):
    done = nemo_run_job(tmp_path, "--executor", "slurm", "--", "train", "--config-name", "recipes/axpo_8b", "model.path=/m")
    assert done.returncode == 2 and "the run directory lies in a mount of the container" in done.stderr
    words = ["train", "--config-name", "recipes/axpo_8b", "model.path=/m", "--output-dir", "/a b/run"]
    done = nemo_run_job(tmp_path, "--executor", "slurm", "--set", "mounts=[/a b]", "--", *words)
    assert done.returncode == 2 and "options of srun without quotes; got '/a b'" in done.stderr


@pytest.mark.nemo_run
def test_a_job_on_this_machine_stops_and_goes_on(tmp_path):
    """The real trainer under LocalExecutor: a time limit after each of two steps, then the rest."""
    run = tmp_path / "run"
    words = ["--executor", "local", "--", "sft", "--output-dir", str(run), "sft.num_steps=3", "sft.batch_size=8",
             "eval.window_questions=0"]  # fmt: skip
    for step in (1, 2):
        done = nemo_run_job(tmp_path, *words, "job.max_time=0:00:00:00")
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((run / "stopped.json").read_text()) == {"step": step, "reason": "job.max_time"}
    done = nemo_run_job(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (run / "stopped.json").exists() and (run / "hf" / "model.safetensors").is_file()
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


@pytest.mark.nemo_run
def test_a_job_on_this_machine_that_fails_is_said(tmp_path):
    done = nemo_run_job(tmp_path, "--executor", "local", "--", "train", "model.path=/nowhere", "--output-dir", "/tmp/none")
    assert done.returncode == 1, done.stdout + done.stderr
