"""``nemo-axpo import``: a checkpoint of Megatron-Bridge as a Hugging Face checkpoint, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nemo_axpo.errors import CheckpointError, rule_message
from nemo_axpo.hf_output import check_output, write_whole
from nemo_axpo.importing.location import torch_dist_directory
from nemo_axpo.importing.run_config import check_run_config
from nemo_axpo.importing.torch_dist import TorchDistReader
from nemo_axpo.models.qwen3_vl import loading
from nemo_axpo.models.qwen3_vl.megatron_names import StoredTensor, locate
from nemo_axpo.progress import ProgressDisplay

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_COMPANIONS = ("tokenizer_config.json", "preprocessor_config.json")


def import_checkpoint(
    path: str | Path, *, model_files: str | Path, output: str | Path, dtype: str | None = None
) -> Path:
    """Writes the model of the Megatron checkpoint ``path`` to the new directory ``output``; returns it.

    ``model_files``: a Hugging Face directory of the same model, for config.json, tokenizer and processor; its weights are
    not needed. ``dtype``: a key of :data:`DTYPES`, None for that of the checkpoint. One tensor is held at a time, and no GPU
    or process group is needed. ValueError for a checkpoint that cannot be imported, is damaged, or is of another model
    than ``model_files``; ``output`` is then as it was.
    """
    output, source = Path(output).resolve(), Path(model_files)
    check_output(output)
    directory = torch_dist_directory(Path(path))
    hf_config = loading.load_hf_config(source)
    _check_companions(source)
    check_run_config(directory, hf_config=hf_config)
    reader = TorchDistReader(directory)
    places = locate(reader.shapes, hf_config=hf_config)
    reader.check(sorted({name for place in places for name in place.names}))
    chosen = DTYPES[dtype] if dtype else _stored_dtype(places, reader)
    for part in (hf_config, hf_config.text_config, hf_config.vision_config):
        part.dtype = chosen  # what transformers loads it as, unless it is told otherwise
    output.parent.mkdir(parents=True, exist_ok=True)
    with ProgressDisplay(shown={}, unit="parameter") as display:
        tensors = _tensors(places, reader, dtype=chosen, display=display)
        write_whole(tensors, output=output, hf_config=hf_config, source=source)
    print(f"imported {directory} as {str(chosen).removeprefix('torch.')} to {output}{_padding(places, reader)}")
    return output


def _check_companions(source: Path) -> None:
    absent = [name for name in _COMPANIONS if not (source / name).is_file()]
    if absent:
        rule = "--model-files must hold tokenizer and image processor of the model"
        cure = "give the directory of the Hugging Face checkpoint the training began with (its weights are not needed)"
        raise CheckpointError(rule_message(rule, got=f"no {absent[0]} in {source}", cure=cure))


def _stored_dtype(places: Sequence[StoredTensor], reader: TorchDistReader) -> torch.dtype:
    names = {reader.dtypes[name]: name for place in places for name in place.names}
    if len(names) == 1 and set(names) <= set(DTYPES.values()):
        return next(iter(names))
    got = ", ".join(f"{str(dtype).removeprefix('torch.')} ({name})" for dtype, name in names.items())
    rule = f"the parameters must be of one type, one of {', '.join(DTYPES)}"
    raise CheckpointError(rule_message(rule, got=got, cure="choose one with --dtype"))


def _tensors(
    places: Sequence[StoredTensor], reader: TorchDistReader, *, dtype: torch.dtype, display: ProgressDisplay
) -> Iterator[tuple[str, Tensor]]:
    display.start("import", total=len(places))
    for number, place in enumerate(places, start=1):
        for name, tensor in place.read(reader):
            yield name, tensor.to(dtype)
            del tensor  # before the next one is read
        display.update("import", step=number)


def _padding(places: Sequence[StoredTensor], reader: TorchDistReader) -> str:
    rows = [
        reader.shapes[place.names[0]][0] - place.part[0].stop for place in places if place.part and not place.is_stacked
    ]
    return f", without {rows[0]} rows of padding behind its vocabulary" if rows else ""
