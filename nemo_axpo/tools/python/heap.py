"""The warm process's memory in few page tables: what a fork copies, and its end takes apart, page by page.

Imports leave 120 MB in 30,000 small pages. As one heap of huge pages (and not as the many mappings that Python's own allocator
asks for: the server runs with ``PYTHONMALLOC=malloc``) a fork and its end cost half. Harmless where the C library or the
kernel knows neither.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from nemo_axpo.sandbox import libc

_M_TOP_PAD, _M_MMAP_THRESHOLD = -2, -3
_MIB = 2**20
_MADV_COLLAPSE = 25
_HUGE_PAGE_BYTES = 2 * _MIB
_MAX_HOLES = 100_000
"""Of one size."""


def keep_together() -> None:
    """What is allocated from here on lies in one heap, large arrays too."""
    _mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
    _mallopt(_M_TOP_PAD, 32 * _MIB)


def use_huge_pages() -> None:
    """For what is there now. What comes is allocated above it: a write into a page that forks share splits and copies it."""
    _fill_holes()
    _mallopt(_M_MMAP_THRESHOLD, _MIB // 8)
    _mallopt(_M_TOP_PAD, _MIB // 8)
    for start in _heap_pages():
        libc.madvise(start, _HUGE_PAGE_BYTES, _MADV_COLLAPSE)  # Linux 6.1 or newer, and memory in one piece


def _mallopt(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ctypes.c_int(option), ctypes.c_int(value))


def _fill_holes() -> None:
    """Takes every free piece below the top of the heap, the largest first, for good."""
    c_library = ctypes.CDLL(None)
    allocate, free = c_library.malloc, c_library.free
    allocate.restype, allocate.argtypes, free.argtypes = ctypes.c_size_t, [ctypes.c_size_t], [ctypes.c_void_p]
    top = allocate(_MIB * 16)
    for size in (*(2**n for n in range(23, 10, -1)), *range(1032, 8, -16)):
        for _ in range(_MAX_HOLES):
            start = allocate(size)
            if not 0 < start < top:
                free(start)
                break
    free(top)


def _heap_pages() -> Iterator[int]:
    """Addresses of the huge pages that the heap could be made of."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        ranges = [line.split()[0] for line in file if line.rstrip().endswith("[heap]")]
    for one in ranges:
        start, stop = (int(text, 16) for text in one.split("-"))
        first = -(-start // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
        yield from range(first, stop - _HUGE_PAGE_BYTES + 1, _HUGE_PAGE_BYTES)
