"""The command line as a user runs it: subprocesses on a tiny study, with real audio and a real, random model."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.overview import Overview, TrialGlance, look_at
from search.study import OpenStudy, load_study
from storage.database import Database
from tests.studies import wait_for
from tests.unit import tiny

MARK = "DISTUNE_PLAYGROUND"
"""In the environment of every process that a test starts: a test must never touch anybody else's workers."""


@dataclass
class Playground:
    """A study file on a database, and the commands that run on it."""

    folder: Path
    material: Path
    database: Database
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def write(self, *, examples: int = 64, trials: int = 4, name: str = "tiny", **study: Any) -> Path:
        """Write ``study.yaml``; ``study`` adds to its study section."""
        content = {
            "study": {
                "name": name,
                "trials": trials,
                "lease_ttl_s": 2,
                "pruner": {"name": "median", "n_startup_trials": 2, "n_warmup_evaluations": 1},
                **study,
            },
            "space": {
                "kl_weight": {"low": 0.001, "high": 10, "log": True},
                "lr": {"low": 1e-5, "high": 1e-2, "log": True},
                "batch_size": {"choices": [4, 8]},
            },
            "trial": {
                "data": {
                    "train": str(self.material / "train"),
                    "dev": str(self.material / "dev"),
                    "test": str(self.material / "test"),
                    "min_duration_s": 0.1,
                },
                "teacher": {"model": str(self.material / "teacher")},
                "student": {"encoder": {"keep": 1}, "decoder": {"keep": 1}},
                "optim": {"batch_size": 4, "examples": examples, "lr": 1e-3},
                "evaluation": {"count": 4, "batch_size": 8, "bootstrap_samples": 50},
                "runtime": {"device": "cpu", "precision": "fp32", "threads": 1},
            },
        }
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def start(self, *arguments: str | Path, storage: bool = True) -> subprocess.Popen[str]:
        """Start ``distune`` with these arguments, in a process group of its own."""
        environment = {**os.environ, "COLUMNS": "160", MARK: str(self.folder)}
        environment.pop("DISTUNE_STORAGE", None)
        if storage:
            url = self.database.url.set(password=self.database._password)
            environment["DISTUNE_STORAGE"] = url.render_as_string(hide_password=False)
        process = subprocess.Popen(
            [sys.executable, "-m", "search.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str | Path, code: int = 0, storage: bool = True) -> str:
        """Run ``distune`` to its end, check its exit code, and return what it printed."""
        process = self.start(*arguments, storage=storage)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == code, output
        assert "Traceback" not in output
        return output

    def survivors(self) -> set[int]:
        """Return the workers and training processes of this playground that live, and of no other."""
        mark = f"{MARK}={self.folder}".encode()
        found = set()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                is_ours = mark in (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if is_ours and (b"search.cli\0worker" in command or b"search.training_process" in command):
                found.add(int(entry.name))
        return found

    def study(self, name: str = "tiny") -> OpenStudy:
        """Open the study from here."""
        return load_study(name, self.database)

    def look(self, name: str = "tiny") -> Overview:
        """Look at the study from here."""
        return look_at(self.study(name))

    def wait_for_trial(self, condition: Any, name: str = "tiny", timeout_s: float = 90.0) -> TrialGlance:
        """Return the first trial that meets ``condition``, as soon as one does."""
        wait_for(lambda: name in _names(self.database), timeout_s=timeout_s)
        study = self.study(name)
        return wait_for(
            lambda: next((trial for trial in look_at(study).trials if condition(trial)), None), timeout_s=timeout_s
        )

    def run_folder(self, name: str = "tiny") -> Path:
        """The study's run folder."""
        return self.folder / "runs" / name


def worker_pid(trial: TrialGlance) -> int:
    """Return the process id in the name of the trial's worker."""
    assert trial.worker is not None
    return int(trial.worker.split("-")[-2])


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children; none when it has just ended."""
    try:
        lists = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(each) for each in " ".join(lists).split()]


def _names(database: Database) -> list[str]:
    from search.study import list_names

    return list(list_names(database))


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher and three tiny corpora."""
    folder = tmp_path_factory.mktemp("material")
    tiny.make_model(folder / "teacher")
    tiny.make_corpus(folder / "train", speakers=4)
    tiny.make_corpus(folder / "dev", first_speaker=50)
    tiny.make_corpus(folder / "test", first_speaker=60)
    return folder


@pytest.fixture
def playground(tmp_path: Path, material: Path, database: Database) -> Iterator[Playground]:
    """A folder, a database with tables, and an end to every process that a test leaves behind."""
    playground = Playground(folder=tmp_path, material=material, database=database)
    yield playground
    for process in playground.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
    for pid in playground.survivors():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not playground.survivors())
