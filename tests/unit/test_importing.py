"""Megatron checkpoints to Hugging Face ones: every way to store a tensor, bit by bit, and what is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from megatron_checkpoints import megatron_tensors, write_torch_dist
from safetensors.torch import load_file
from tiny_qwen3_vl import tiny_config, tiny_model
from transformers import Qwen3VLForConditionalGeneration

from nemo_axpo.cli import main
from nemo_axpo.config.checks import check_model_path
from nemo_axpo.config.load import load_config
from nemo_axpo.errors import CheckpointError, ConfigError, RunDirectoryError
from nemo_axpo.importing.convert import import_checkpoint
from nemo_axpo.importing.torch_dist import TorchDistReader
from nemo_axpo.models.qwen3_vl import megatron_names
from nemo_axpo.models.qwen3_vl.hf_model import parameter_shapes
from nemo_axpo.plan.published import published_config


def model_files(path: Path, model) -> Path:
    """A Hugging Face directory without weights."""
    path.mkdir(parents=True)
    model.config.save_pretrained(path)
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        (path / name).write_text("{}")
    return path


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request):
    return tiny_model(tiny_config(tied=request.param), seed=1)


@pytest.fixture(scope="module")
def untied():
    return tiny_model(tiny_config(), seed=2)


@pytest.fixture
def job(tmp_path, untied):
    """A whole checkpoint and what its import needs."""
    tensors = megatron_tensors(untied)
    directory = write_torch_dist(tmp_path / "ckpt" / "iter_0000007", tensors)
    arguments = {"model_files": model_files(tmp_path / "files", untied), "output": tmp_path / "hf"}
    return directory, tensors, arguments


def same_weights(output: Path, model) -> bool:
    found, expected = load_file(output / "model.safetensors"), dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"megatron_tower": False},
        {"is_stacked": False},
        {"is_stacked": False, "has_halves": True, "megatron_tower": False, "local_norms": True},
        {"num_padding": 32},
    ],
    ids=["stacked", "tower of transformers", "layer by layer", "halves and local norms", "padded"],
)
def test_every_way_to_store_it_comes_out_bit_by_bit(tmp_path, model, layout):
    directory = write_torch_dist(tmp_path / "iter_0000001", megatron_tensors(model, **layout))
    output = import_checkpoint(directory, model_files=model_files(tmp_path / "files", model), output=tmp_path / "hf")
    assert same_weights(output, model)


@pytest.mark.parametrize("size", ["2b", "32b"])
def test_published_sizes_have_one_place_for_every_tensor(size):
    config = published_config(size)
    shapes = {name: shape for tensor in megatron_names.megatron_tensors(config) for name, shape in tensor.hf_shapes.items()}
    expected = parameter_shapes(config)
    if size == "2b":  # the output projection is the embedding
        del expected["lm_head.weight"]
    assert shapes == expected
    assert sum(len(tensor.hf_shapes) for tensor in megatron_names.megatron_tensors(config)) == len(expected)


def test_transformers_loads_it_and_says_the_same(job, untied):
    directory, _, arguments = job
    output = import_checkpoint(directory.parent, **arguments)
    loaded = Qwen3VLForConditionalGeneration.from_pretrained(output, attn_implementation="eager")
    ids = torch.arange(20)[None] % 80
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, untied(input_ids=ids).logits)
    assert (output / "tokenizer_config.json").is_file()


def test_type_of_the_checkpoint_is_kept_or_chosen(tmp_path, untied):
    half = {name: tensor.bfloat16() for name, tensor in megatron_tensors(untied).items()}
    directory, files = write_torch_dist(tmp_path / "a", half), model_files(tmp_path / "files", untied)
    kept = import_checkpoint(directory, model_files=files, output=tmp_path / "kept")
    assert {tensor.dtype for tensor in load_file(kept / "model.safetensors").values()} == {torch.bfloat16}
    assert "bfloat16" in (kept / "config.json").read_text() and "float32" not in (kept / "config.json").read_text()
    mixed = half | {"language_model.decoder.final_layernorm.weight": torch.ones(32)}
    directory = write_torch_dist(tmp_path / "b", mixed)
    with pytest.raises(CheckpointError, match=r"of one type.*bfloat16 .*float32 \(language.*--dtype"):
        import_checkpoint(directory, model_files=files, output=tmp_path / "mixed")
    output = import_checkpoint(directory, model_files=files, output=tmp_path / "mixed", dtype="float32")
    assert {tensor.dtype for tensor in load_file(output / "model.safetensors").values()} == {torch.float32}


def test_newest_iteration_is_the_one_the_tracker_names(tmp_path, job, untied):
    directory, _, arguments = job
    write_torch_dist(directory.parent / "iter_0000009", {"vision_model.pos_embed.weight": torch.zeros(2)})
    (directory.parent / "latest_checkpointed_iteration.txt").write_text("7\n")
    assert same_weights(import_checkpoint(directory.parent, **arguments), untied)
    (directory.parent / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(CheckpointError, match="must have shape"):
        import_checkpoint(directory.parent, **{**arguments, "output": tmp_path / "other"})


def test_state_of_the_optimizer_is_left_out(tmp_path, job, untied):
    _, tensors, arguments = job
    prefixes = ("optimizer.state.exp_avg.", "chained_0.optimizer.state.fp32_param.")
    moments = {prefix + name: torch.zeros_like(tensor) for prefix in prefixes for name, tensor in tensors.items()}
    directory = write_torch_dist(tmp_path / "trained", tensors | moments)
    assert same_weights(import_checkpoint(directory, **arguments), untied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("vision_model.merger.patch_norm.bias"), "1 missing.*merger.patch_norm.bias.*0 unknown"),
        (lambda tensors: tensors.update({"language_model.more": torch.ones(2)}), r"1 unknown \(language_model.more\)"),
        (lambda tensors: tensors.update({"vision_model.pos_embed.weight": torch.ones(2, 16)}), r"shape \(36, 16\).*\(2, 16\)"),
        (
            lambda tensors: tensors.update({"language_model.decoder.layers.mlp.linear_fc2.weight": torch.ones(2, 32, 48)}),
            r"shape \(3, 32, 48\).*got \(2, 32, 48\)",
        ),
        (
            lambda tensors: tensors.update(
                {"language_model.decoder.layers.mlp.linear_fc1.adapter.linear_in.weight": torch.ones(3, 8, 32)}
            ),
            "merge the adapter first",
        ),
    ],
    ids=["missing", "unknown", "shape", "layers", "adapter"],
)  # fmt: skip
def test_what_is_not_exactly_the_model_is_refused(tmp_path, job, change, words):
    _, tensors, arguments = job
    change(tensors)
    directory = write_torch_dist(tmp_path / "other", tensors)
    with pytest.raises(CheckpointError, match=words):
        import_checkpoint(directory, **arguments)
    assert not arguments["output"].exists()


def test_an_output_layer_beside_a_shared_embedding_is_refused(tmp_path):
    tied = tiny_model(tiny_config(tied=True))
    tensors = megatron_tensors(tied) | {"language_model.output_layer.weight": torch.zeros(96, 32)}
    directory, files = write_torch_dist(tmp_path / "a", tensors), model_files(tmp_path / "files", tied)
    with pytest.raises(CheckpointError, match=r"1 unknown \(language_model.output_layer.weight\)"):
        import_checkpoint(directory, model_files=files, output=tmp_path / "hf")


def test_fewer_rows_than_the_vocabulary_are_not_padding(tmp_path, job):
    _, tensors, arguments = job
    name = "language_model.embedding.word_embeddings.weight"
    directory = write_torch_dist(tmp_path / "short", tensors | {name: tensors[name][:-1]})
    with pytest.raises(CheckpointError, match=r"must have shape \(96, 32\) by config.json; got \(95, 32\)"):
        import_checkpoint(directory, **arguments)


def test_missing_and_truncated_shards_are_named_before_anything_is_written(job):
    directory, _, arguments = job
    (shard,) = directory.glob("*.distcp")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=rf"{shard.name} must hold .* or more.*got {len(whole) - 100} bytes: copy"):
        import_checkpoint(directory, **arguments)
    shard.unlink()
    with pytest.raises(CheckpointError, match="got no such file: copy the checkpoint again"):
        import_checkpoint(directory, **arguments)
    assert not list(arguments["output"].parent.glob("*hf*"))


def test_damage_inside_a_shard_is_named_and_nothing_is_left(job):
    directory, _, arguments = job
    (shard,) = directory.glob("*.distcp")
    content = bytearray(shard.read_bytes())
    content[: len(content) // 2] = b"x" * (len(content) // 2)
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{shard.name} must hold a tensor at byte"):
        import_checkpoint(directory, **arguments)
    assert not list(arguments["output"].parent.glob("*hf*"))


class Payload:
    """A pickle that runs a command where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_malicious_index_is_refused_and_not_run(tmp_path, job):
    directory, _, arguments = job
    mark = tmp_path / "executed"
    index = pickle.loads((directory / ".metadata").read_bytes())
    index.planner_data = Payload(mark)
    (directory / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match=r"it names (posix|os)\.system"):
        import_checkpoint(directory, **arguments)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()  # it would have


def test_a_malicious_shard_is_refused_and_not_run(tmp_path, job):
    directory, _, arguments = job
    mark, buffer = tmp_path / "executed", io.BytesIO()
    torch.save(Payload(mark), buffer)
    index = pickle.loads((directory / ".metadata").read_bytes())
    (shard,) = directory.glob("*.distcp")
    content = shard.read_bytes()
    for place in index.storage_data.values():
        place.offset, place.length = len(content), len(buffer.getvalue())
    shard.write_bytes(content + buffer.getvalue())
    (directory / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match="must hold a tensor at byte"):
        import_checkpoint(directory, **arguments)
    assert not mark.exists()


def test_files_outside_of_the_directory_are_not_opened(job):
    directory, _, arguments = job
    index = pickle.loads((directory / ".metadata").read_bytes())
    for place in index.storage_data.values():
        place.relative_path = f"../{directory.name}/{place.relative_path}"
    (directory / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match="is no file of the checkpoint's directory"):
        import_checkpoint(directory, **arguments)


def test_an_index_whose_shards_leave_a_hole_is_refused(job):
    directory, _, arguments = job
    index = pickle.loads((directory / ".metadata").read_bytes())
    index.state_dict_metadata["vision_model.pos_embed.weight"].chunks.clear()
    (directory / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match="the shards of 'vision_model.pos_embed.weight' do not add up"):
        import_checkpoint(directory, **arguments)


def test_parts_are_read_across_shards(tmp_path):
    """A tensor of 4 rows in two shards of two: rows 1 and 2 lie in both."""
    index_of = torch.arange(12.0).view(4, 3)
    directory = write_torch_dist(tmp_path / "a", {"top": index_of[:2].clone(), "bottom": index_of[2:].clone()})
    index = pickle.loads((directory / ".metadata").read_bytes())
    top, bottom = (index.state_dict_metadata.pop(name) for name in ("top", "bottom"))
    bottom.chunks[0].offsets = torch.Size([2, 0])
    top.size, top.chunks = index_of.shape, [*top.chunks, *bottom.chunks]
    index.state_dict_metadata["whole"] = top
    places = dict(zip(("top", "bottom"), sorted(index.storage_data.items(), key=lambda item: item[0].fqn, reverse=True)))
    index.storage_data = {}
    for name, row in (("top", 0), ("bottom", 2)):
        key, place = places[name]
        assert key.fqn == name
        index.storage_data[type(key)("whole", torch.Size([row, 0]))] = place
    (directory / ".metadata").write_bytes(pickle.dumps(index))
    reader = TorchDistReader(directory)
    assert reader.shapes == {"whole": (4, 3)}
    assert torch.equal(reader.read("whole"), index_of)
    assert torch.equal(reader.read("whole", part=(slice(1, 3), slice(0, 2))), index_of[1:3, :2])
    assert torch.equal(reader.read("whole", part=(slice(3, 4),)), index_of[3:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_query_groups": 4}, "num_query_groups 4 instead of 2"),
        ({"rotary_base": 5000000.0}, "rotary_base 5000000.0 instead of 10000.0"),
        ({"vision_config": {"config_dict": {"deepstack_visual_indexes": [0, 2]}}}, r"vision_config.deepstack_visual_indexes \[0, 2\]"),
        ({"_target_": "megatron.bridge.models.qwen_vl.qwen25_vl_provider.Qwen25VLModelProvider"}, "must be of Qwen3VLModelProvider"),
    ],
)  # fmt: skip
def test_a_run_config_of_another_model_is_refused(job, change, words):
    """The tensors have the same shapes; the model they make is another one."""
    directory, _, arguments = job
    said = {"_target_": "megatron.bridge.models.qwen_vl.qwen3_vl_provider.Qwen3VLModelProvider", "num_layers": 3} | change
    (directory / "run_config.yaml").write_text(yaml.safe_dump({"model": said}))
    with pytest.raises(CheckpointError, match=words):
        import_checkpoint(directory, **arguments)


def test_a_run_config_that_agrees_passes_and_is_not_executed(tmp_path, job, untied):
    directory, _, arguments = job
    said = {"num_layers": 3, "num_query_groups": 2, "layernorm_epsilon": 1e-6, "vision_config": {"depth": 3}, "vocab_size": None}
    text = yaml.safe_dump({"model": said}).replace("1.0e-06", "1e-06")
    assert yaml.safe_load(text)["model"]["layernorm_epsilon"] == "1e-06"
    (directory / "run_config.yaml").write_text(text)
    assert same_weights(import_checkpoint(directory, **arguments), untied)
    (directory / "run_config.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {tmp_path}/executed']")
    with pytest.raises(CheckpointError, match="run_config.yaml must be the configuration"):
        import_checkpoint(directory, **{**arguments, "output": tmp_path / "other"})
    assert not (tmp_path / "executed").exists()


def legacy(path: Path, kind: str) -> Path:
    """The names that give each kind away."""
    if kind == "nemo":
        path.mkdir()
        (path / "model.nemo").write_bytes(b"")
        return path / "model.nemo"
    names = {
        "mp_rank": ["iter_0000010/mp_rank_00/model_optim_rng.pt"],
        "zarr": ["iter_0000010/metadata.json", "iter_0000010/language_model.embedding/.zarray"],
        "nemo2": ["weights/.metadata", "context/model.yaml"],
        "fsdp": ["iter_0000010/.metadata", "iter_0000010/__0_0.distcp"],
        "run": ["config.yaml", "checkpoints/step_00002/state.json", "checkpoints/step_00002/.metadata"],
        "torch_dist": ["iter_0000010/.metadata", "iter_0000010/metadata.json"],
    }[kind]
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps({"sharded_backend": kind}) if name.endswith(".json") else "")
    return path


CURES = [
    ("mp_rank", r"legacy Megatron checkpoint \(mp_rank_…, pickled modules\): save it again as torch_dist"),
    ("zarr", "in zarr, which megatron-core no longer reads: save it again as torch_dist"),
    ("nemo", "a .nemo archive: no NeMo with this format has Qwen3-VL"),
    ("nemo2", "a NeMo 2.0 checkpoint: no NeMo with this format has Qwen3-VL"),
    ("fsdp", "Megatron-FSDP or another writer"),
    ("run", "a run directory: `nemo-axpo export .*/old --output DIR` makes a Hugging Face checkpoint"),
]


@pytest.mark.parametrize(("kind", "words"), CURES)
def test_other_kinds_are_refused_with_the_cure(tmp_path, job, kind, words):
    with pytest.raises(CheckpointError, match=words):
        import_checkpoint(legacy(tmp_path / "old", kind), **job[2])


@pytest.mark.parametrize(
    ("kind", "words"), [*CURES, ("torch_dist", "`nemo-axpo import .*/old --model-files HF_DIR --output DIR` makes")]
)
def test_model_path_names_the_command_that_makes_it_usable(tmp_path, kind, words):
    config = load_config(settings={"model.path": str(legacy(tmp_path / "old", kind))})
    with pytest.raises(ConfigError, match=rf"model.path must be a Hugging Face checkpoint directory.*{words}"):
        check_model_path(config)


def test_a_checkpoint_of_a_run_is_exported_by_its_step(tmp_path, job):
    path = legacy(tmp_path / "old", "run") / "checkpoints" / "step_00002"
    with pytest.raises(CheckpointError, match="`nemo-axpo export .*/old --step 2 --output DIR`"):
        import_checkpoint(path, **job[2])


def test_what_else_is_refused(tmp_path, job):
    directory, _, arguments = job
    with pytest.raises(CheckpointError, match="which is not there: give the directory"):
        import_checkpoint(tmp_path / "nothing", **arguments)
    with pytest.raises(CheckpointError, match="a Hugging Face directory: use it as it is"):
        import_checkpoint(arguments["model_files"], **arguments)
    with pytest.raises(RunDirectoryError, match="--output must be new or an empty directory"):
        import_checkpoint(directory, **{**arguments, "output": directory})
    (arguments["model_files"] / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="no preprocessor_config.json in"):
        import_checkpoint(directory, **arguments)
    shutil.rmtree(directory)
    (directory.parent / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(CheckpointError, match="iter_0000007 is not whole: copy it again"):
        import_checkpoint(directory.parent, **arguments)


def test_the_command(job, untied, capsys):
    directory, _, arguments = job
    words = ["import", str(directory), "--model-files", str(arguments["model_files"]), "--output", str(arguments["output"])]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "parameter 84/84" in out and f"imported {directory} as float32 to {arguments['output']}" in out
    assert same_weights(arguments["output"], untied)
    assert main(words) == 2
    assert "--output must be new or an empty directory" in capsys.readouterr().err
