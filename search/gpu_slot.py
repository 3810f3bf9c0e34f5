"""One GPU for each worker container of a machine.

Docker gives a container the *first* n GPUs for ``count: n``, so replicas with ``count: 1`` all get GPU 0
(docker/compose#11863). Containers therefore see all GPUs, and workers share them out by locks in a common folder.
"""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from search.errors import ConfigError
from storage.locks import open_lock, try_exclusive

log = logging.getLogger(__name__)

POLL_S = 1.0


@contextmanager
def hold_gpu(folder: Path, devices: Sequence[str], stop: threading.Event) -> Iterator[str | None]:
    """Hold one of ``devices`` that no other worker holds, waiting for one to come free; None if stopped meanwhile.

    The kernel drops the lock with this process, however it dies.

    Raises:
        ConfigError: there are no devices, or the folder of the locks cannot be used.
    """
    if not devices:
        raise ConfigError("no GPU can be seen here; run the service workers-cpu, or leave --gpu-locks out")
    descriptors: list[int] = []
    try:
        try:
            for device in devices:
                descriptors.append(open_lock(folder / f"gpu-{device}.lock"))
        except OSError as exc:
            raise ConfigError(f"{folder} cannot hold the GPUs' locks: {exc.strerror}; give another folder") from exc
        yield _take(dict(zip(devices, descriptors, strict=True)), stop)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _take(locks: dict[str, int], stop: threading.Event) -> str | None:
    is_first = True
    while not stop.is_set():
        for device, descriptor in locks.items():
            if try_exclusive(descriptor):
                log.info("working on GPU %s", device)
                return device
        if is_first:
            log.info("every GPU of this machine has its worker already (%s); waiting for one", ", ".join(locks))
            is_first = False
        stop.wait(POLL_S)
    return None
