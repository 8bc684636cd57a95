"""SIGKILL to any rank of a job of two at any moment, again and again: resumed, it is the run that was never killed."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from killable_ranks import finish, kill, start
from tiny_runs import AXPO, RUN, metrics, reproducible, run_ranks, succeed

from nemo_axpo.journal import verify_journal

NUM_STEPS, NUM_QUESTIONS = 6, 4
SETTINGS = (
    *RUN, *AXPO, f"train.num_steps={NUM_STEPS}", "train.eval_every=0", "train.record_every=0",
    "eval.num_questions=2",
)  # fmt: skip
LAYOUTS = {
    "dp2": (),
    "dp2_distributed": ("actor.distributed_optimizer=true", "train.checkpoint_async=false"),
    "tp2": ("actor.tensor_parallel=2",),
}


@dataclass
class Job:
    """One layout, its uninterrupted run, and how long that took to get anywhere."""

    arguments: list[str]
    directory: Path
    uninterrupted: Path = field(init=False)
    first_step_s: float = field(init=False)
    step_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.uninterrupted, began = self.directory / "uninterrupted", time.monotonic()
        ranks = self.start(self.uninterrupted)
        while num_trained(self.uninterrupted) < 1 and ranks[0].is_alive():
            time.sleep(0.02)
        self.first_step_s = time.monotonic() - began
        self.finish(ranks, self.uninterrupted)
        self.step_s = sum(row["time/step_s"] for row in metrics(self.uninterrupted)) / NUM_STEPS

    def start(self, run: Path):
        """Starts or resumes a run."""
        arguments = ["train", "--resume", "--output-dir", str(run), *self.arguments]
        return start(2, arguments, log=run.with_suffix(".log"))

    def finish(self, ranks, run: Path) -> None:
        """Lets a run end, which it must do well."""
        assert finish(ranks) == [0, 0], run.with_suffix(".log").read_text()[-4000:]

    def kill_and_resume(self, run: Path, *, num_kills: int, randomness: random.Random) -> int:
        """Up to ``num_kills`` kills of a run and its end; how many there were."""
        for number in range(num_kills):
            before, ranks = num_trained(run), self.start(run)
            self.wait(ranks, run, before=before, moment=randomness.uniform(0, 3))
            if not kill(ranks, randomness.randrange(2)):
                return number
        self.finish(self.start(run), run)
        return num_kills

    def wait(self, ranks, run: Path, *, before: int, moment: float) -> None:
        """``moment`` in steps since the start, of which the first takes longest."""
        num_steps, part = divmod(moment, 1)
        while num_trained(run) < before + num_steps and ranks[0].is_alive():
            time.sleep(0.01)
        time.sleep(part * (self.step_s if num_steps else self.first_step_s))


def num_trained(run: Path) -> int:
    path = run / "journal.jsonl"
    return path.read_text().count('"trained"') if path.exists() else 0


def assert_same_run(run: Path, *, uninterrupted: Path) -> None:
    assert reproducible(metrics(run)) == reproducible(metrics(uninterrupted))
    assert (run / "hf" / "model.safetensors").read_bytes() == (uninterrupted / "hf" / "model.safetensors").read_bytes()
    shown = verify_journal(run / "journal.jsonl")
    assert shown.is_good, shown
    assert (shown.num_steps, shown.num_questions) == (NUM_STEPS, NUM_STEPS * NUM_QUESTIONS)
    assert shown.num_repeated == 0
    assert not list((run / "checkpoints").glob(".*"))


def check_kills(job: Job, *, num_kills: int, seed: int) -> None:
    """As many runs as it takes for ``num_kills`` kills, each compared at its end."""
    randomness, done, number = random.Random(seed), 0, 0
    while done < num_kills:
        run = job.directory / f"run_{number}"
        done += job.kill_and_resume(run, num_kills=num_kills - done, randomness=randomness)
        assert_same_run(run, uninterrupted=job.uninterrupted)
        number += 1


@pytest.fixture(name="job_of")
def job_fixture(checkpoint, tmp_path):
    return lambda layout: Job([f"model.path={checkpoint}", *SETTINGS, *LAYOUTS[layout]], tmp_path)


def test_killed_at_two_moments(job_of):
    check_kills(job_of("dp2"), num_kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_killed_at_ten_moments(job_of, layout):
    """Thirty with all layouts."""
    check_kills(job_of(layout), num_kills=10, seed=2)


@pytest.mark.slow
def test_killed_under_torchrun(job_of, checkpoint):
    """A rank found among torchrun's children; torchrun ends the other one."""
    job = job_of("dp2")
    run = job.directory / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "nemo_axpo.cli", "train", "--resume", "--output-dir", str(run), *job.arguments]
    for victim in (1, 0):
        before = num_trained(run)
        torchrun = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while num_trained(run) < before + 2 and torchrun.poll() is None:
            time.sleep(0.02)
        subprocess.run(["kill", "-KILL", str(child_of(torchrun.pid, rank=victim))], check=True)
        assert torchrun.wait(120) != 0
    assert run_ranks(2, *command[command.index("train") :]).returncode == 0
    assert_same_run(run, uninterrupted=job.uninterrupted)


def child_of(parent: int, *, rank: int) -> int:
    """Process of a rank."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no rank {rank}")


@pytest.mark.slow
def test_resumed_in_another_layout(job_of, tmp_path):
    """Two replicas train three steps; one process goes on, with the same rollouts and its own rounding."""
    job = job_of("dp2")
    run = shutil.copytree(job.uninterrupted, tmp_path / "run")
    for step in range(4, NUM_STEPS + 1):
        shutil.rmtree(run / "checkpoints" / f"step_{step:05d}")
    shutil.rmtree(run / "hf")
    succeed("train", "--resume", "--output-dir", run, *job.arguments)
    ours, theirs = reproducible(metrics(run)), reproducible(metrics(job.uninterrupted))
    assert ours[:3] == theirs[:3] and [row["step"] for row in ours] == [row["step"] for row in theirs]
    for name, value in theirs[3].items():
        if name.startswith(("rollout/", "update/")):
            assert ours[3][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    shown = verify_journal(run / "journal.jsonl")
    assert shown.is_good and shown.num_questions == NUM_STEPS * NUM_QUESTIONS
