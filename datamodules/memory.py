"""Memory of arrays that are freed stays with the process, for the next ones."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of the C library's mallopt."""
LARGEST_KEPT = 32 << 20
"""Bytes of an array; glibc takes no higher limit."""
MOST_KEPT = 256 << 20
"""Bytes that stay free for reuse."""


def keep_freed_memory() -> None:
    """Tell glibc, which otherwise gives the memory of every image and batch back to the system, to keep it.

    Fetching it again page by page took two thirds of the time of normalising a batch. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
