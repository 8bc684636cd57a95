"""``.metadata``, the index of a torch_dist checkpoint, read without running what it names.

torch reads that file with pickle, which calls whatever a file names. Here it may name the classes an index consists of:
those of ``torch.distributed.checkpoint``, megatron's plans of a later save among them, which are values and no more.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

from torch.distributed.checkpoint.metadata import Metadata

from nemo_axpo.checkpoints.manifest import Damaged

INDEX_FILE = ".metadata"


def read_index(directory: Path) -> Metadata:
    """The index of a checkpoint directory; :class:`Damaged` where it is a pickle of anything else, which is not run."""
    path = directory / INDEX_FILE
    try:
        with path.open("rb") as file:
            index = _IndexUnpickler(file).load()
    except (OSError, EOFError, pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} cannot be read ({error!r})") from None
    if not isinstance(index, Metadata):
        raise Damaged(f"{path} holds no index of tensors but {type(index).__name__}")
    return index


class _IndexUnpickler(pickle.Unpickler):
    _ALLOWED: ClassVar = {
        "torch.distributed.checkpoint.metadata": {
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
            "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
        },
        "torch.distributed.checkpoint.planner": {
            "SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData",
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch.serialization": {"_get_layout"},
        "torch": {
            "Size", "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool",
        },
        "pathlib": {"PosixPath"},
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if name not in self._ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)
