"""Folders for ``--home`` in tests, and a look at the servers on them from outside."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from storage import locks, postmaster
from storage.origin import Origin

MakeHome = Callable[[], Path]


def has_server(home: Path) -> bool:
    """Whether any process of the home's server lives."""
    descriptor = locks.open_lock(home / "server.lock")
    try:
        return not locks.try_exclusive(descriptor)
    finally:
        os.close(descriptor)


def end_server(home: Path, how: signal.Signals) -> None:
    """Send this signal to the home's server, if it runs, and wait until the last of its processes is gone."""
    data = home.resolve() / "data"
    pid = postmaster.read_pid(data)
    if pid is not None and postmaster.is_server_on(data, pid):
        os.kill(pid, how)
    descriptor = locks.open_lock(home / "server.lock")
    try:
        locks.wait_exclusive(descriptor, timeout_s=30)
    finally:
        os.close(descriptor)


def temporary_homes() -> Iterator[MakeHome]:
    """A maker of folders that anybody may pass through; in the end, servers left on them are killed."""
    homes: list[Path] = []

    def make() -> Path:
        home = Path(tempfile.mkdtemp(prefix="distune-test-home-", dir="/tmp"))
        home.chmod(0o711)
        homes.append(home)
        return home

    yield make
    for home in homes:
        end_server(home, signal.SIGQUIT)
        origin = Origin.read(home / "server.json")
        if origin is not None:
            shutil.rmtree(origin.socket_folder, ignore_errors=True)
        shutil.rmtree(home)
