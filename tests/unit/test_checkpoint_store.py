"""A checkpoint is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from nemo_axpo import checkpoint_store
from nemo_axpo.checkpoint_store import CheckpointStore
from nemo_axpo.errors import CheckpointError


def tensors_of(step):
    return {"w": torch.full((4, 3), float(step)), "rng": torch.arange(5, dtype=torch.uint8)}


def save(store, *steps):
    for step in steps:
        store.save(step, tensors=tensors_of(step), state={"position": step, "nested": {"a": [1, None]}})


def test_what_is_loaded_is_what_was_saved(tmp_path):
    store = CheckpointStore(tmp_path)
    tied = torch.randn(3, 4)
    tensors = {"a": tied, "b": tied, "t": tied.T, "half": tied.to(torch.bfloat16), "scalar": torch.tensor(2.5)}
    path = store.save(7, tensors=tensors, state={"x": 1.5, "y": [True, None, "z"]})
    assert path.name == "step_00007"
    loaded = store.load()
    assert (loaded.step, loaded.state) == (7, {"x": 1.5, "y": [True, None, "z"]})
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype and torch.equal(loaded.tensors[name], tensor)


def test_a_prefix_reads_a_part(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, tensors={"policy.w": torch.ones(2), "exp_avg.w": torch.zeros(2)}, state={"x": 1})
    loaded = store.load(prefix="policy.")
    assert list(loaded.tensors) == ["policy.w"] and torch.equal(loaded.tensors["policy.w"], torch.ones(2))
    assert loaded.state == {"x": 1}


def test_the_newest_k_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1, 2, 3, 100_000)
    assert store.steps() == [3, 100_000]
    assert store.load(3).state["position"] == 3


def test_a_step_can_be_saved_again(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1, 2)
    store.save(2, tensors={"w": torch.zeros(1)}, state={})
    assert store.load().tensors["w"].shape == (1,) and store.steps() == [1, 2]
    assert sorted(os.listdir(tmp_path)) == ["step_00001", "step_00002"]


def test_no_checkpoint_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="there are: none: choose one of these, or start without --resume"):
        CheckpointStore(tmp_path / "absent").load()
    save(store := CheckpointStore(tmp_path), 4)
    with pytest.raises(CheckpointError, match="got step 5, there are: 4"):
        store.load(5)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("tensors.safetensors", truncate, "bytes of"),
        ("tensors.safetensors", flip_last_byte, "has been altered"),
        ("tensors.safetensors", os.remove, "is missing"),
        ("state.json", os.remove, "cannot be read"),
        ("state.json", lambda path: os.truncate(path, 20), "cannot be read"),
        ("state.json", lambda path: path.write_text('{"format": 99, "files": {}}'), "has format 99"),
        ("state.json", lambda path: path.write_text("[]"), "cannot be read"),
    ],
)
def test_damage_names_the_file_and_the_previous_good_checkpoint(tmp_path, name, damage, reason):
    store = CheckpointStore(tmp_path, keep=3)
    save(store, 1, 2, 3)
    truncate(store.path_of(2) / "tensors.safetensors")
    damage(store.path_of(3) / name)
    with pytest.raises(CheckpointError) as caught:
        store.load()
    message = str(caught.value)
    assert str(store.path_of(3) / name) in message and reason in message
    assert f"remove {store.path_of(3)} to continue from the good {store.path_of(1)}" in message


def test_damage_to_the_only_checkpoint(tmp_path):
    save(store := CheckpointStore(tmp_path), 1)
    truncate(store.path_of(1) / "tensors.safetensors")
    with pytest.raises(CheckpointError, match="no earlier good checkpoint"):
        store.load()


def test_a_full_disk_leaves_the_last_good_one(tmp_path):
    """A real write error: the process may not write files above 64 kB."""
    program = """
        import resource, signal, sys, torch
        from nemo_axpo.checkpoint_store import CheckpointStore
        from nemo_axpo.errors import CheckpointError
        store = CheckpointStore(sys.argv[1], keep=1)
        store.save(1, tensors={"w": torch.ones(10)}, state={})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
        try:
            store.save(2, tensors={"w": torch.ones(100_000)}, state={})
        except CheckpointError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"free some space and resume from the last good checkpoint {tmp_path / 'step_00001'}" in done.stdout
    assert os.listdir(tmp_path) == ["step_00001"]
    assert torch.equal(CheckpointStore(tmp_path).load().tensors["w"], torch.ones(10))


@pytest.mark.parametrize("call", ["_write", "_sync_directory"])
def test_a_kill_while_writing_leaves_the_last_good_one(tmp_path, monkeypatch, call):
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)

    def die(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_store, call, die)
        with pytest.raises(KeyboardInterrupt):
            save(store, 2)
    assert CheckpointStore(tmp_path).load().step == 1
    save(store, 3)
    assert os.listdir(tmp_path) == ["step_00003"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 1, 2)
    os.rename(store.path_of(2), tmp_path / ".step_00002.replaced")
    assert store.load().step == 1
    save(store, 3)
    assert store.steps() == [2, 3]


def test_state_must_be_json(tmp_path):
    with pytest.raises(TypeError):
        CheckpointStore(tmp_path).save(1, tensors={}, state={"x": torch.zeros(1)})


def test_the_state_file_is_plain_json(tmp_path):
    save(store := CheckpointStore(tmp_path), 1)
    record = json.loads((store.path_of(1) / "state.json").read_text())
    assert record["step"] == 1 and len(record["files"]["tensors.safetensors"]["sha256"]) == 64
