"""A checkpoint is whole or absent, whatever happens while it is written; one process."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.distributed as dist

from nemo_axpo.actors import megatron_setup
from nemo_axpo.actors.megatron_setup import ParallelLayout

# isort: split
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from nemo_axpo.checkpoints import manifest, publishing, sharded_files
from nemo_axpo.checkpoints.ranks import Ranks
from nemo_axpo.checkpoints.store import CheckpointStore
from nemo_axpo.errors import CheckpointError


@pytest.fixture(scope="module", autouse=True)
def process_group():
    megatron_setup.initialize(ParallelLayout(), device=torch.device("cpu"), seed=0)


def sharded(tensors):
    return {name: ShardedTensor.from_rank_offsets(name, tensor) for name, tensor in tensors.items()}


def tensors_of(step):
    return sharded({"w": torch.full((4, 3), float(step)), "count": torch.arange(5, dtype=torch.uint8)})


def save(store, *steps):
    for step in steps:
        store.save(
            step,
            tensors=tensors_of(step),
            state={"position": step, "nested": {"a": [1, None]}},
            random_states={"torch.cpu": torch.full((3,), float(step))},
        )


def loaded(store, step=None):
    """Tensors of a checkpoint."""
    into = sharded({"w": torch.zeros(4, 3), "count": torch.zeros(5, dtype=torch.uint8)})
    return store.read(step).load_tensors(into)


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_loaded_is_what_was_saved(tmp_path, is_async):
    store = CheckpointStore(tmp_path, is_async=is_async)
    base = torch.randn(3, 4)
    tensors = {"a": base, "row": base[1], "t": base.T, "half": base.to(torch.bfloat16), "scalar": torch.tensor(2.5)}
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    store.save(7, tensors=sharded(tensors), state={"x": 1.5, "y": [True, None, "z"]}, random_states={"g": base[0]})
    if is_async:
        base.zero_()  # training goes on
    store.finish()
    checkpoint = CheckpointStore(tmp_path).read()
    assert (checkpoint.step, checkpoint.state) == (7, {"x": 1.5, "y": [True, None, "z"]})
    assert torch.equal(checkpoint.random_states()["g"], expected["a"][0])
    got = checkpoint.load_tensors(sharded({name: torch.zeros_like(tensor) for name, tensor in expected.items()}))
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


def test_megatron_reads_it(tmp_path):
    save(store := CheckpointStore(tmp_path), 3)
    plain = dist_checkpointing.load_plain_tensors(str(store.path_of(3)))
    assert plain.keys() == {"w", "count"} and torch.equal(plain["w"], torch.full((4, 3), 3.0))
    assert dist_checkpointing.load_common_state_dict(str(store.path_of(3))) == {}


def test_the_newest_k_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1, 2, 3, 100_000)
    assert store.steps() == [3, 100_000]
    assert store.read(3).state["position"] == 3


def test_a_step_can_be_saved_again(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1, 2)
    store.save(2, tensors=sharded({"other": torch.zeros(1)}), state={})
    assert store.read().load_tensors(sharded({"other": torch.ones(1)}))["other"] == 0 and store.steps() == [1, 2]
    assert sorted(os.listdir(tmp_path)) == ["step_00001", "step_00002"]


def test_a_rank_waits_for_a_slow_disk_as_long_as_the_job_says(monkeypatch):
    given = {}
    monkeypatch.setattr(Ranks, "count", 2)
    monkeypatch.setattr(dist, "new_group", lambda **options: given.update(options))
    monkeypatch.setattr(dist, "all_gather_object", lambda values, value, group: None)
    Ranks(timeout_s=7200.0).exchange(None)
    assert given == {"backend": "gloo", "timeout": datetime.timedelta(hours=2)}


def test_no_checkpoint_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="there are: none: choose one of these, or start without --resume"):
        CheckpointStore(tmp_path / "absent").read()
    save(store := CheckpointStore(tmp_path), 4)
    with pytest.raises(CheckpointError, match="got step 5, there are: 4"):
        store.read(5)


def test_other_tensors_are_refused(tmp_path):
    save(store := CheckpointStore(tmp_path), 1)
    checkpoint = store.read()
    with pytest.raises(CheckpointError, match=r"1 missing \(first \['more'\]\) and 1 unknown \(first \['count'\]\)"):
        checkpoint.load_tensors(sharded({"w": torch.zeros(4, 3), "more": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"w must have shape \(4, 4\); got \(4, 3\)"):
        checkpoint.load_tensors(sharded({"w": torch.zeros(4, 4)}), is_part=True)
    part = checkpoint.load_tensors(sharded({"w": torch.zeros(4, 3)}), is_part=True)
    assert list(part) == ["w"] and torch.equal(part["w"], torch.ones(4, 3))


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


FILES = ["__0_0.distcp", ".metadata", "common.pt", "metadata.json", "random_00000.safetensors"]


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        *((name, truncate, "bytes of") for name in FILES),
        *((name, flip_last_byte, "has been altered") for name in FILES),
        *((name, os.remove, "is missing") for name in FILES),
        ("state.json", os.remove, "cannot be read"),
        ("state.json", lambda path: os.truncate(path, 20), "cannot be read"),
        ("state.json", lambda path: path.write_text('{"format": 99, "files": {}}'), "has format 99"),
        ("state.json", lambda path: path.write_text("[]"), "cannot be read"),
    ],
)
def test_damage_names_the_file_and_the_previous_good_checkpoint(tmp_path, name, damage, reason):
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 1, 2, 3)
    truncate(store.path_of(2) / "__0_0.distcp")
    damage(store.path_of(3) / name)
    with pytest.raises(CheckpointError) as caught:
        store.read()
    message = str(caught.value)
    assert str(store.path_of(3) / name) in message and reason in message
    assert f"remove {store.path_of(3)} to continue from the good {store.path_of(1)}" in message


def test_damage_to_the_only_checkpoint(tmp_path):
    save(store := CheckpointStore(tmp_path), 1)
    truncate(store.path_of(1) / "__0_0.distcp")
    with pytest.raises(CheckpointError, match="no earlier good checkpoint"):
        store.read()


class _Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_index_that_would_run_code_is_not_read(tmp_path):
    """Even where whoever altered it has also corrected the checksum."""
    save(store := CheckpointStore(tmp_path / "store"), 1)
    path, ran = store.path_of(1), tmp_path / "ran"
    (path / ".metadata").write_bytes(pickle.dumps(_Harmful(ran)))
    record = json.loads((path / "state.json").read_text())
    record["files"] |= manifest.describe(path, [".metadata"])
    (path / "state.json").write_text(json.dumps(record))
    with pytest.raises(manifest.Damaged, match=r"\.metadata cannot be read .*it names posix\.mkdir"):
        loaded(store)
    assert not ran.exists()


def test_a_full_disk_leaves_the_last_good_one(tmp_path):
    """A real write error: the process may not write files above a limit. It stops the tensors, the last file, or all."""
    program = """
        import resource, signal, sys, torch
        from nemo_axpo.actors import megatron_setup
        from nemo_axpo.actors.megatron_setup import ParallelLayout
        from nemo_axpo.checkpoints.store import CheckpointStore
        from nemo_axpo.errors import CheckpointError
        from megatron.core.dist_checkpointing.mapping import ShardedTensor
        megatron_setup.initialize(ParallelLayout(), device=torch.device("cpu"), seed=0)
        def save(store, step, size, state):
            tensors = {"w": ShardedTensor.from_rank_offsets("w", torch.ones(size))}
            store.save(step, tensors=tensors, state={"x": state}, random_states={"r": torch.ones(4)})
            store.finish()
        save(CheckpointStore(sys.argv[1]), 1, 10, "")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for is_async in (False, True):
            for limit, size, state in ((65536, 100_000, ""), (65536, 10, "x" * 100_000), (64, 10, "")):
                store = CheckpointStore(sys.argv[1], keep=1, is_async=is_async)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                try:
                    save(store, 2, size, state)
                except CheckpointError as error:
                    print(error)
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                assert store.read().step == 1
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    cure = f"free some space and resume from the last good checkpoint {tmp_path / 'step_00001'}"
    assert done.stdout.count(cure) == 6, done.stdout
    assert os.listdir(tmp_path) == ["step_00001"]


@pytest.mark.parametrize(
    ("module", "call"),
    [(sharded_files, "describe"), (manifest, "write_state"), (publishing, "sync_directory"), (os, "rename")],
)
def test_a_kill_while_writing_leaves_the_last_good_one(tmp_path, monkeypatch, module, call):
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)

    def die(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, call, die)
        with pytest.raises(KeyboardInterrupt):
            save(store, 2)
    survivor = CheckpointStore(tmp_path)
    # The last rename makes it visible, and everything in it is on the disk by then.
    assert survivor.read().step == (2 if call == "sync_directory" else 1)
    save(survivor, 3)
    assert survivor.steps()[-1] == 3 and not list(tmp_path.glob(".*"))


def test_an_asynchronous_save_is_invisible_until_it_is_finished(tmp_path, monkeypatch):
    import threading

    may_write = threading.Event()
    describe = sharded_files.describe
    monkeypatch.setattr(sharded_files, "describe", lambda *given: (may_write.wait(30), describe(*given))[1])
    store = CheckpointStore(tmp_path, is_async=True)
    save(store, 1)
    assert store.finish(wait=False) is None and store.steps() == []
    may_write.set()
    assert store.finish() == 1 and store.steps() == [1]
    assert store.finish() is None
    save(store, 2)
    save(store, 3)  # waits for the second
    assert store.steps() == [1, 2]
    assert store.finish() == 3 and store.steps() == [2, 3]
    assert torch.equal(loaded(store)["w"], torch.full((4, 3), 3.0))


def test_an_error_that_ends_the_job_leaves_what_was_saved_before_it(tmp_path, monkeypatch, caplog):
    store = CheckpointStore(tmp_path, is_async=True)
    assert store.rescue() is None
    save(store, 1)
    assert store.rescue() == 1 and store.steps() == [1] and store.rescue() is None
    monkeypatch.setattr(sharded_files.torch, "save", lambda *given: 1 / 0)
    save(store, 2)
    assert store.rescue() is None and store.steps() == [1]
    assert "the checkpoint of step 2 is lost" in caplog.text and "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("is_async", [False, True])
def test_a_writer_that_breaks_publishes_nothing(tmp_path, monkeypatch, is_async):
    """Not an error of the disk, and in a thread, where nobody would see it."""
    store = CheckpointStore(tmp_path, is_async=is_async)
    save(store, 1)
    store.finish()

    def exhausted(*arguments, **options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(sharded_files.torch, "save", exhausted)
        with pytest.raises(CheckpointError, match=r"got MemoryError\(\) while saving .*step_00001"):
            save(store, 2)
            store.finish()
    assert os.listdir(tmp_path) == ["step_00001"] and store.read().step == 1


def test_every_rank_resumes_from_what_rank_0_sees(tmp_path):
    """Another node may still remember the listing before the last checkpoint."""

    class SecondRank:
        index, count = 1, 2

        def on_main(self, action, *, errors):
            return [1, 2]

    store = CheckpointStore(tmp_path)
    store._ranks = SecondRank()
    assert store.steps() == [1, 2] and store._chosen(None) == 2


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1, 2)
    os.rename(store.path_of(2), tmp_path / ".step_00002.replaced")
    assert store.read().step == 1
    save(store, 3)
    assert store.steps() == [2, 3]


def test_state_must_be_json(tmp_path):
    with pytest.raises(TypeError):
        CheckpointStore(tmp_path).save(1, tensors={}, state={"x": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_the_state_file_is_plain_json(tmp_path):
    save(store := CheckpointStore(tmp_path), 1)
    record = json.loads((store.path_of(1) / "state.json").read_text())
    assert record["step"] == 1 and record["files"].keys() == set(FILES)
    assert all(len(entry["sha256"]) == 64 for entry in record["files"].values())
