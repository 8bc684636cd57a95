"""The receiving end of weight updates, for use inside an inference worker: torch and the standard library alone.

    receiver.start(channel)                     the worker must not sample from here on
    for message in messages:
        for name, tensor in receiver.receive(message):
            …load it…
    receiver.finish(policy_version=12)          all is there: reset the caches, then sample

From ``start`` to ``finish`` the receiver has no version, nor has it one after anything failed: a worker that samples only
while ``policy_version`` is not None never serves half an update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from nemo_axpo.errors import WeightTransferError, rule_message
from nemo_axpo.weight_sync.layout import read_layout
from nemo_axpo.weight_sync.sources import Source, open_source


class WeightReceiver:
    """One worker's end. A failure leaves it without a version until a whole update has arrived."""

    def __init__(self, *, worker: int = 0, device: str | torch.device = "cpu") -> None:
        """``worker``: number of this worker within its server (its tensor-parallel rank). ``device``: of broadcasts."""
        self._worker, self._device = worker, torch.device(device)
        self._source: Source | None = None
        self._num_buckets, self._num_tensors, self._is_complete = 0, 0, False
        self._policy_version: int | None = None

    @property
    def policy_version(self) -> int | None:
        """Version of the last update; None before the first, during one, and after one that failed."""
        return self._policy_version

    def start(self, channel: Mapping[str, Any]) -> None:
        """Opens an update as the trainer describes it; one that was never finished is forgotten."""
        self._policy_version = None
        self._num_buckets, self._num_tensors, self._is_complete = 0, 0, False
        previous, self._source = self._source, None
        self._source = open_source(channel, worker=self._worker, device=self._device, previous=previous)

    def receive(self, message: Mapping[str, Any], *, copy: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of one bucket, whose bytes are all there when this returns.

        ``copy=False`` gives views, valid until the next call of any method: for loaders that copy at once.
        WeightTransferError names what is wrong; the update is then lost.
        """
        try:
            tensors = self._read(message)
        except BaseException:
            self.close()
            raise
        return ((name, tensor.clone() if copy else tensor) for name, tensor in tensors)

    def finish(self, *, policy_version: int) -> None:
        """Ends the update; WeightTransferError unless its last bucket has arrived."""
        if not self._is_complete:
            num_buckets = self._num_buckets
            self.close()
            rule = "an update ends with its last bucket"
            raise WeightTransferError(rule_message(rule, got=f"the end after {num_buckets} buckets", cure="push again"))
        self._source.rest()
        self._is_complete, self._policy_version = False, policy_version

    def close(self) -> None:
        """Lets go of everything; the version is lost."""
        self._policy_version, self._is_complete = None, False
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _read(self, message: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
        if self._source is None or self._is_complete or self._policy_version is not None:
            rule = "a bucket arrives within an update, before its end"
            raise WeightTransferError(rule_message(rule, got="one outside", cure="start a new update"))
        layout = read_layout(message)
        if layout.number != self._num_buckets:
            rule = f"bucket {self._num_buckets} is next"
            raise WeightTransferError(rule_message(rule, got=f"bucket {layout.number}", cure="push again"))
        tensors = self._source.read(message, layout)
        self._num_buckets += 1
        self._num_tensors += len(tensors)
        if self._num_tensors != layout.num_tensors:
            rule = f"{layout.num_tensors} tensors have been sent up to bucket {layout.number}"
            raise WeightTransferError(rule_message(rule, got=self._num_tensors, cure="push again"))
        self._is_complete = layout.is_last
        return tensors
