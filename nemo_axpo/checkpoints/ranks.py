"""What the ranks that write or read one checkpoint tell each other; a process without a process group is alone."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


class RankError(Exception):
    """What went wrong on any of the ranks, raised on all of them; the message names the rank where there are several."""


class Ranks:
    """Every rank makes every call, in the same order. Objects travel over gloo, whatever the tensors of the model use."""

    def __init__(self, *, timeout_s: float = 1800.0) -> None:
        """``timeout_s``: longest wait for another rank in one exchange."""
        self._group: Any = None
        self._timeout = datetime.timedelta(seconds=timeout_s)

    @property
    def index(self) -> int:
        """Number of this rank."""
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def count(self) -> int:
        """Ranks of the job."""
        return dist.get_world_size() if dist.is_initialized() else 1

    def exchange(self, value: Value) -> list[Value]:
        """The values of all ranks, rank by rank."""
        if self.count == 1:
            return [value]
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values

    def are_all_here(self, place: str, *, timeout_s: float) -> bool:
        """Whether every rank comes to ``place`` within ``timeout_s``; a name that this job has not used yet.

        They meet at the job's store: a collective that lacks a rank would wait for the group's own timeout, or at exit.
        """
        if self.count == 1:
            return True
        names = [f"{place}/{rank}" for rank in range(self.count)]
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(names[self.index], b"")
            store.wait(names, datetime.timedelta(seconds=timeout_s))
        except RuntimeError:  # a rank that is late, gone or elsewhere
            return False
        return True

    def together(self, action: Callable[[], Value], *, errors: tuple[type[Exception], ...]) -> list[Value]:
        """What ``action`` gives on every rank; :class:`RankError` on all of them where one raises one of ``errors``."""
        result, failure = None, None
        try:
            result = action()
        except errors as error:
            failure = error
        outcomes = self.exchange((result, None if failure is None else str(failure) or repr(failure)))
        self.raise_first([text for _, text in outcomes], cause=failure)
        return [value for value, _ in outcomes]

    def raise_first(self, texts: list[str | None], *, cause: Exception | None = None) -> None:
        """:class:`RankError` of the first text, if there is any; ``cause``: this rank's own error."""
        for rank, text in enumerate(texts):
            if text is not None:
                raise RankError(text if self.count == 1 else f"rank {rank}: {text}") from cause

    def on_main(self, action: Callable[[], Value], *, errors: tuple[type[Exception], ...]) -> Value:
        """What ``action`` gives on rank 0, on every rank; errors as in :meth:`together`."""
        return self.together(action if self.index == 0 else lambda: None, errors=errors)[0]
