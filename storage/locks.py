"""Locks on files (``flock``): the kernel drops them with their holder, however it dies, and containers share them."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

POLL_S = 0.02


def open_lock(path: Path) -> int:
    """A descriptor to lock: closed on exec, so that no child inherits it; mode 0600, so that no other user takes it."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def share(descriptor: int) -> None:
    """Take the lock together with others, waiting for an exclusive holder."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def try_exclusive(descriptor: int) -> bool:
    """Take the lock alone, unless somebody has it; a share of our own is then lost too."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_exclusive(descriptor: int, timeout_s: float) -> None:
    """Take the lock alone.

    Raises:
        TimeoutError: others still had it after ``timeout_s``; one that is frozen would otherwise block us for ever.
    """
    deadline = time.monotonic() + timeout_s
    while not try_exclusive(descriptor):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the lock was not free for {timeout_s:.0f} s")
        time.sleep(POLL_S)


@contextlib.contextmanager
def exclusive(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock on ``path`` alone within a ``with`` block.

    Raises:
        TimeoutError: as ``wait_exclusive``, with the file's name.
    """
    descriptor = open_lock(path)
    try:
        try:
            wait_exclusive(descriptor, timeout_s)
        except TimeoutError as exc:
            raise TimeoutError(0, f"another process has held it for {timeout_s:.0f} s", str(path)) from exc
        yield
    finally:
        os.close(descriptor)
