"""Launch and resume: start local workers, watch the study, respawn what dies, write the best at the end.

The study does not depend on it: if the coordinator dies, workers finish the budget, and ``resume`` attaches again.
"""

import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from search.best import update_best
from search.errors import SearchError
from search.overview import Overview, look_at
from search.progress import Show
from search.study import OpenStudy
from search.worker import StopRequest
from storage.database import is_connection_error
from storage.files import write_atomic
from storage.runs import RunFolder

log = logging.getLogger(__name__)

POLL_S = 0.5
QUICK_DEATH_S = 15.0
"""A worker that lived for less than this did not get to work."""
MAX_QUICK_DEATHS = 5


class WorkersDyingError(SearchError):
    """Local workers die as soon as they are started."""


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """How local workers are started."""

    count: int
    storage: str | None
    """The database URL, handed on in the environment: it may hold a password."""
    home: Path | None
    """Home of the embedded server."""


def coordinate(study: OpenStudy, options: LocalOptions, show: Show, stop: StopRequest) -> Overview:
    """Watch a study to its end, or until asked to stop, with local workers at work.

    Raises:
        WorkersDyingError: local workers die again and again before they get to work.
        The database's own errors, when it was away for longer than the study's ``database_timeout_s``.
    """
    folder = _write_config(study)
    overview = look_at(study)
    show(overview)
    if not overview.is_over:
        with LocalWorkers(study, options, folder) as workers:
            overview = _watch(study, workers, show, stop)
    update_best(study)
    return overview


def _watch(study: OpenStudy, workers: "LocalWorkers", show: Show, stop: StopRequest) -> Overview:
    reached_at = time.monotonic()
    stop.before_exit = workers.kill
    while True:
        is_stopping = stop.event.is_set()
        if is_stopping:
            log.warning("stopping: workers write their checkpoints; Ctrl-C again ends them at once")
            workers.stop()
        try:
            overview = look_at(study)
            reached_at = time.monotonic()
            show(overview)
            if is_stopping or overview.is_over or overview.refusal is not None:
                return overview
        except Exception as exc:
            away_s = time.monotonic() - reached_at
            if not is_connection_error(exc) or is_stopping or away_s > study.spec.study.database_timeout_s:
                raise
            log.warning("the database cannot be reached; workers go on without it")
            study.database.revive()
        workers.respawn()
        stop.event.wait(POLL_S)


def _write_config(study: OpenStudy) -> RunFolder:
    folder = RunFolder(Path(study.spec.study.runs) / study.name)
    folder.logs_path.mkdir(parents=True, exist_ok=True)
    write_atomic(folder.study_path, study.spec.to_yaml())
    return folder


class LocalWorkers:
    """The worker processes of this machine. Each runs in a session of its own: Ctrl-C reaches it only through us."""

    def __init__(self, study: OpenStudy, options: LocalOptions, folder: RunFolder) -> None:
        self._study = study
        self._options = options
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._started_at: list[float] = []
        self._quick_deaths = 0

    def __enter__(self) -> Self:
        for slot in range(self._options.count):
            self._processes.append(self._start(slot))
            self._started_at.append(time.monotonic())
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self.kill()
        # The study is over, or they were asked to stop: each ends when its training process has.
        for process in self._processes:
            process.wait()

    def respawn(self) -> None:
        """Start a new worker for each that ended.

        Raises:
            WorkersDyingError: they die before they get to work, time after time.
        """
        for slot, process in enumerate(self._processes):
            if process.poll() is None:
                continue
            lived_s = time.monotonic() - self._started_at[slot]
            self._quick_deaths = self._quick_deaths + 1 if process.returncode and lived_s < QUICK_DEATH_S else 0
            if self._quick_deaths >= MAX_QUICK_DEATHS:
                raise WorkersDyingError(f"local workers die as they start; read {self._log_path(slot)}")
            log.warning("worker in slot %d ended with code %s; starting another", slot, process.returncode)
            self._processes[slot] = self._start(slot)
            self._started_at[slot] = time.monotonic()

    def stop(self) -> None:
        """Ask all to checkpoint, release their trials and end; return when they have."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()

    def kill(self) -> None:
        """End all at once; their leases run out."""
        for process in self._processes:
            process.kill()

    def _start(self, slot: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "search.cli", "worker", "--study", self._study.name]
        environment = dict(os.environ)
        if self._options.storage is not None:
            environment["DISTUNE_STORAGE"] = self._options.storage
        else:
            environment.pop("DISTUNE_STORAGE", None)
        if self._options.home is not None:
            command += ["--home", str(self._options.home)]
        devices = gpu_devices()
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        with self._log_path(slot).open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def _log_path(self, slot: int) -> Path:
        return self._folder.logs_path / f"worker-{slot}.log"


def gpu_devices() -> list[str]:
    """Return the GPUs of this machine as CUDA_VISIBLE_DEVICES names them, without loading torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [each.strip() for each in chosen.split(",") if each.strip()]
    found = Path("/proc/driver/nvidia/gpus")
    return [str(index) for index in range(len(list(found.iterdir())))] if found.is_dir() else []
