"""The study in the queue: what a first start and what a later one do, with sbatch and squeue played by bash."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_axpo.errors import ConfigError
from nemo_axpo.eval.benchmarks.definition import PAPER_BENCHMARKS, Benchmark
from nemo_axpo.eval.benchmarks.records import AnsweredQuestion, AnsweredRollout
from nemo_axpo.eval.benchmarks.results import ModelResult, write_result
from nemo_axpo.eval.benchmarks.scores import score
from nemo_axpo.eval.bootstrap import BootstrapSettings
from nemo_axpo.launcher.study import Study, benchmark_words, check_study, run_study, study_jobs

SCALING = Path(__file__).parents[2] / "launcher_scripts" / "scaling.sh"
DATA = ("--benchmark", "vstar=/data/vstar", "--benchmark", "visual_probe_hard=/data/visual_probe")
JOBS = ["sft_2b", "eval_base_2b", "eval_sft_2b", "grpo_2b", "eval_grpo_2b", "axpo_2b", "eval_axpo_2b", "table"]


@pytest.fixture
def study(tmp_path):
    return Study(Path("/models"), tmp_path / "results", ("2b",), ("seed=3",))


@pytest.fixture(scope="module")
def one_score():
    rollouts = tuple(AnsweredRollout(number, "red", 1.0, (), 1, 5, "answered") for number in range(2))
    answered = AnsweredQuestion("q", "", ("red",), rollouts)
    benchmark = Benchmark(name="doors", reader="schema", verifiers=("exact_match",))
    return score(benchmark, [answered], num_asked=1, k=2, settings=BootstrapSettings(num_resamples=10))


def start(study, queued=None):
    """One start of the study in a queue that numbers its jobs from 1: what it did, and the dependencies."""
    asked = {}

    def submit(job, dependency):
        asked[job.name] = dependency
        job.number_path.parent.mkdir(parents=True, exist_ok=True)
        job.number_path.write_text(f"{len(asked)}\n")
        return str(len(asked))

    steps = run_study(study, queued=queued or {}, submit=submit, tell=lambda step: None)
    return {step.job.name: step.action for step in steps}, asked


def finish_run(path):
    (path / "hf").mkdir(parents=True)
    (path / "hf" / "model.safetensors").touch()


def finish_evaluation(path, one_score, *, num_open=0, names=PAPER_BENCHMARKS):
    path.mkdir(parents=True)
    scores = tuple(replace(one_score, name=name, num_open=num_open) for name in names)
    write_result(ModelResult("2B", "/m", 1, {}, scores, None, None), path)


def test_the_first_start_queues_every_job_after_those_it_needs(study):
    actions, after = start(study)
    assert list(actions) == JOBS and set(actions.values()) == {"submit"}
    assert after == {
        "sft_2b": None, "eval_base_2b": None, "eval_sft_2b": "afterok:1", "grpo_2b": "afterok:1",
        "eval_grpo_2b": "afterok:4", "axpo_2b": "afterok:1", "eval_axpo_2b": "afterok:6", "table": "afterok:2:3:5:7",
    }  # fmt: skip


def test_all_sizes_are_29_jobs_of_29_names_and_directories():
    jobs = study_jobs(Study(Path("/models"), Path("/results"), ("2b", "4b", "8b", "32b")))
    assert len(jobs) == len({job.name for job in jobs}) == len({job.directory for job in jobs}) == 29


def test_a_later_start_leaves_what_is_finished_and_what_is_queued(study, one_score):
    start(study)
    results = study.results
    finish_run(results / "sft_2b")
    finish_run(results / "grpo_2b")
    finish_evaluation(results / "eval" / "base_2b", one_score)
    queued = {"3": study.queue_name(study_jobs(study)[2]), "9": "another-job"}
    actions, after = start(study, queued)
    assert actions == {
        "sft_2b": "finished", "eval_base_2b": "finished", "eval_sft_2b": "queued", "grpo_2b": "finished",
        "eval_grpo_2b": "submit", "axpo_2b": "submit", "eval_axpo_2b": "submit", "table": "submit",
    }  # fmt: skip
    # Numbers of this start: 1 is eval_grpo_2b, 2 axpo_2b, 3 eval_axpo_2b; eval_sft_2b is still number 3 of the first one.
    assert after == {"eval_grpo_2b": None, "axpo_2b": None, "eval_axpo_2b": "afterok:2", "table": "afterok:3:1:3"}


def test_a_job_of_the_same_number_but_another_name_is_not_ours(study):
    start(study)
    actions, _ = start(study, {"1": "another-job", "2": "x"})
    assert set(actions.values()) == {"submit"}


def test_a_job_whose_number_was_not_written_any_more_is_known_by_its_name(study):
    actions, after = start(study, {"77": study.queue_name(study_jobs(study)[0])})
    assert actions["sft_2b"] == "queued" and after["grpo_2b"] == "afterok:77"


def test_studies_of_one_name_in_two_places_have_jobs_of_two_names():
    first, second = (Study(Path("/m"), Path(place) / "study", ("2b",)) for place in ("/a", "/b"))
    assert first.queue_name(study_jobs(first)[0]) != second.queue_name(study_jobs(second)[0])


def test_stopped_runs_and_unfinished_evaluations_go_on(study, one_score):
    finish_run(study.results / "sft_2b")
    (study.results / "sft_2b" / "stopped.json").write_text("{}")
    finish_evaluation(study.results / "eval" / "base_2b", one_score, num_open=1)
    finish_evaluation(study.results / "eval" / "sft_2b", one_score, names=PAPER_BENCHMARKS[:8])
    actions, _ = start(study)
    assert [actions[name] for name in ("sft_2b", "eval_base_2b", "eval_sft_2b")] == ["submit"] * 3


def test_the_table_is_made_again_when_a_result_is_newer(study, one_score):
    for job in study_jobs(study)[:-1]:
        if job.words[0] == "eval":
            finish_evaluation(job.directory, one_score)
        else:
            finish_run(job.directory)
    table = study.results / "table" / "table.md"
    table.parent.mkdir()
    table.touch()
    assert set(start(study)[0].values()) == {"finished"}
    later = table.stat().st_mtime + 5
    os.utime(study.results / "eval" / "axpo_2b" / "results.json", (later, later))
    actions, after = start(study)
    assert actions.pop("table") == "submit" and set(actions.values()) == {"finished"} and after["table"] is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sizes": ("3b",)}, "--sizes has recipes; got 3b: there are: 2b, 32b, 4b, 8b"),
        ({"benchmarks": PAPER_BENCHMARKS}, "benchmark vstar needs a copy of its data set"),
        ({}, "--models holds the published models; got no /models/Qwen3-VL-2B-Thinking: hf download Qwen/Qwen3-VL-2B"),
    ],
)
def test_what_is_missing_is_said_with_the_cure(study, changes, expected):
    told = replace(study, **({"benchmarks": benchmark_words(DATA[1::2])} | changes))
    with pytest.raises(ConfigError, match=re.escape(expected)):
        check_study(told)


def test_places_of_benchmarks():
    words = benchmark_words(["vstar=/data/v"])
    assert "vstar=/data/v" in words and "mathvision" in words and len(words) == 9
    for wrong in ("vstar", "world=/w"):
        with pytest.raises(ConfigError, match=f"got {wrong}: give NAME=PATH"):
            benchmark_words([wrong])


class Queue:
    """sbatch and squeue of a user who has one other job; what is queued stays, until it is said to be over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "models" / "Qwen3-VL-2B-Thinking").mkdir(parents=True)
        (path / "models" / "Qwen3-VL-2B-Thinking" / "config.json").touch()
        self.play("sbatch", f"n=$(($(ls {path}/queue | wc -l) + 100))\ncp \"$2\" {path}/queue/$n && echo $n")
        self.play(
            "squeue",
            "echo '5|another job'\n"
            f"for job in {path}/queue/*; do [[ -e $job && ! -e {path}/over/${{job##*/}} ]] || continue\n"
            "  echo \"${job##*/}|$(sed -n 's/^#SBATCH --job-name=//p' \"$job\")\"; done",
        )
        for name in ("queue", "over"):
            (path / name).mkdir()

    def play(self, name: str, text: str) -> None:
        (self.path / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.path / name).chmod(stat.S_IRWXU)

    def scaling(self, *words):
        paths = [self.path, Path(sys.executable).parent, os.environ["PATH"]]
        environment = {**os.environ, "PATH": ":".join(map(str, paths))}
        command = [SCALING, "--cluster", "slurm", "--set", f"mounts=[{self.path}]", "--sizes", "2b", *words]
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.slow  # three starts that compose eight recipes each
def test_the_script_queues_the_study_once_and_a_later_call_the_rest(tmp_path, one_score):
    queue, results = Queue(tmp_path), tmp_path / "results"
    words = ["--models", tmp_path / "models", "--results", results, *DATA, "--", "seed=3"]
    first = queue.scaling(*words)
    assert first.returncode == 0, first.stderr
    numbers = dict(re.findall(r"(\w+): queued as (\d+)", first.stdout))
    assert list(numbers) == JOBS and len({*numbers.values()}) == 8
    texts = {name: (tmp_path / "queue" / number).read_text() for name, number in numbers.items()}
    assert f"--dependency=afterok:{numbers['sft_2b']}\n#SBATCH --kill-on-invalid-dep=yes" in texts["axpo_2b"]
    assert "seed=3" in texts["axpo_2b"] and "seed=3" not in texts["eval_axpo_2b"]
    assert f"nemo-axpo table {results}/eval/base_2b" in texts["table"] and "--container-image=" in texts["table"]

    again = queue.scaling(*words)
    assert re.findall(r"(\w+): in the queue as (\d+)", again.stdout) == list(numbers.items())

    # The warm start came to its end, GRPO failed: with it Slurm took those that waited for it.
    finish_run(results / "sft_2b")
    for name in ("sft_2b", "grpo_2b", "eval_grpo_2b", "table"):
        (tmp_path / "over" / numbers[name]).touch()
    shown = queue.scaling("--dry-run", *words)
    assert "grpo_2b: nemo-axpo submit --cluster slurm --set" in shown.stdout and len(os.listdir(tmp_path / "queue")) == 8
    rest = queue.scaling(*words)
    assert rest.returncode == 0, rest.stderr
    lines = dict(line.split(": ", 1) for line in rest.stdout.splitlines())
    assert lines["sft_2b"] == "finished" and lines["axpo_2b"] == f"in the queue as {numbers['axpo_2b']}"
    new = dict(re.findall(r"(\w+): queued as (\d+)", rest.stdout))
    assert list(new) == ["grpo_2b", "eval_grpo_2b", "table"]
    assert "--dependency" not in (tmp_path / "queue" / new["grpo_2b"]).read_text()
    waits = [numbers["eval_base_2b"], numbers["eval_sft_2b"], new["eval_grpo_2b"], numbers["eval_axpo_2b"]]
    assert f"--dependency=afterok:{':'.join(waits)}\n" in (tmp_path / "queue" / new["table"]).read_text()


def test_without_a_queue_nothing_is_written(tmp_path):
    from nemo_axpo.cli import main

    words = ["study", "--cluster", "slurm", "--models", "/m", "--results", str(tmp_path / "results"), "--sizes", "2b"]
    assert main([*words, *DATA, "--set", f"mounts=[{tmp_path}]", "--dry-run"]) == 0
    assert main([*words, *DATA, "--dry-run"]) == 2  # its results would stay in the container
    assert main([*words, "--sizes", "2x", *DATA]) == 2
    assert not (tmp_path / "results").exists()
