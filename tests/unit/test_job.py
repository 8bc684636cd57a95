"""What ranks do together around a run: one claims, speaks and writes."""

from __future__ import annotations

import dataclasses

import pytest

from nemo_axpo.config.load import load_config
from nemo_axpo.distributed.replicas import OneProcess
from nemo_axpo.errors import RunDirectoryError
from nemo_axpo.job import join_run, open_metrics_log, peak_memory_gib, save_policy, wait_for_all


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


def test_the_peak_is_that_of_the_largest_rank():
    @dataclasses.dataclass(frozen=True)
    class Two(OneProcess):
        def gather(self, records, *, kind):
            return (*records, *(kind(1000.0) for _ in records))

    assert 0.01 < peak_memory_gib(OneProcess()) < 100
    assert peak_memory_gib(Two()) == 1000.0


def test_waiting_takes_every_rank_to_the_same_gather():
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Noting(OneProcess):
        def gather(self, records, *, kind):
            calls.append(tuple(records))
            return ()

    wait_for_all(Noting())
    assert calls == [()]
