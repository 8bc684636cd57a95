"""What ranks do together around a run: one claims, speaks and writes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nemo_axpo.config.load import load_config
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.errors import RunDirectoryError
from nemo_axpo.job import join_run, memory_metrics, open_metrics_log, save_policy, wait_for_all


@dataclasses.dataclass(frozen=True)
class Follower(OneProcess):
    """A rank that leads nothing."""

    is_leader: bool = False
    is_main: bool = False


class Actor:
    """Counts how often its tensors are put together."""

    def __init__(self):
        self.num_gathered, self.saved = 0, []

    def hf_tensors(self):
        self.num_gathered += 1
        yield from ()

    def save_hf(self, path):
        self.saved.append(path)


@pytest.fixture(name="config")
def config_fixture(tmp_path):
    return load_config(settings={"output_dir": str(tmp_path / "run"), "logging.tensorboard": False})


def test_the_main_rank_claims_the_directory_and_speaks(config, capsys):
    with join_run(config, replicas=OneProcess()) as (run, progress):
        assert run.config_path.is_file()
        progress.message("hello")
        with pytest.raises(RunDirectoryError), join_run(config, replicas=OneProcess()):
            pytest.fail("two processes in one directory")
    assert capsys.readouterr().out == "hello\n"


def test_other_ranks_use_it_silently(config, capsys):
    with join_run(config, replicas=OneProcess()) as (claimed, _), join_run(config, replicas=Follower()) as joined:
        run, progress = joined
        assert run == claimed
        progress.start("a", total=1)
        progress.update("a", step=1, metrics={})
    assert capsys.readouterr().out == ""


def test_one_rank_writes_metrics(config):
    with join_run(config, replicas=OneProcess()) as (run, _):
        with open_metrics_log(config, run=run, replicas=Follower()) as log:
            assert log is None and not run.metrics_path.exists()
        with open_metrics_log(config, run=run, replicas=OneProcess()) as log:
            log.log(1, {"update/loss": 0.5})
        assert run.metrics_path.read_text() == '{"step": 1, "update/loss": 0.5}\n'


def test_every_rank_takes_part_in_the_exported_policy(tmp_path):
    main, other = Actor(), Actor()
    assert save_policy(main, tmp_path, replicas=OneProcess()) == tmp_path
    save_policy(other, tmp_path, replicas=Follower())
    assert main.saved == [tmp_path] and other.saved == [] and other.num_gathered == 1


@dataclasses.dataclass(frozen=True)
class Two(OneProcess):
    """The other rank has needed 1000 GiB of its host and 3 of its GPU."""

    def gather(self, records, *, kind):
        return (*records, *(kind(1000.0, None if record.gpu_gib is None else 3.0) for record in records))


def test_the_peak_is_that_of_the_largest_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory_metrics(OneProcess()).keys() == {"memory/peak_gib"}
    assert 0.01 < memory_metrics(OneProcess())["memory/peak_gib"] < 100
    assert memory_metrics(Two()) == {"memory/peak_gib": 1000.0}


def test_the_peak_of_a_gpu_is_what_torch_allocated_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 * 2**30)
    assert memory_metrics(OneProcess())["memory/peak_gpu_gib"] == 5.0
    assert memory_metrics(Two()) == {"memory/peak_gib": 1000.0, "memory/peak_gpu_gib": 5.0}


def test_waiting_takes_every_rank_to_the_same_gather():
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Noting(OneProcess):
        def gather(self, records, *, kind):
            calls.append(tuple(records))
            return ()

    wait_for_all(Noting())
    assert calls == [()]
