"""Run folders: ``RUNS/STUDY/trials/0007/attempt-1/``. One folder per attempt, never shared between attempts.

An attempt writes only to its own folder, so that a worker which lost its trial cannot damage what its successor
writes. A successor copies the checkpoint that it resumes from.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.files import read_json, sha256_of, write_atomic, write_json

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
PREVIOUS_CHECKPOINT = "checkpoint-previous.pt"
MANIFEST = "checkpoints.json"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one study, below the study's ``runs``."""

    path: Path

    @property
    def best_path(self) -> Path:
        """``best_params.json``: the winner."""
        return self.path / "best_params.json"

    @property
    def study_path(self) -> Path:
        """``study.yaml``: the configuration as resolved."""
        return self.path / "study.yaml"

    @property
    def logs_path(self) -> Path:
        """Where local workers and training processes write what they have to say."""
        return self.path / "logs"

    def attempt(self, number: int, attempt: int) -> "AttemptFolder":
        """Return the folder of one attempt at a trial; it is created when something is written."""
        return AttemptFolder(self.path / "trials" / f"{number:04d}", attempt)


@dataclass(frozen=True)
class AttemptFolder:
    """The files of one attempt. Two checkpoints are kept, each known by its checksum."""

    trial_path: Path
    attempt: int

    @property
    def path(self) -> Path:
        """The attempt's own folder."""
        return self.trial_path / f"attempt-{self.attempt}"

    @property
    def folder(self) -> Path:
        """The attempt's own folder, made if need be."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path

    def write_json(self, name: str, value: Any) -> None:
        """Write one of the attempt's files for people to read, atomically."""
        write_json(self.folder / name, value)

    def save(self, examples: int, blob: bytes) -> None:
        """Keep ``blob`` as the newest checkpoint, and the one before it.

        The checksum is written first: wherever we die, every file that is there is known by its content.
        """
        newest = self.folder / CHECKPOINT
        entry = {"sha256": sha256_of(blob), "examples": examples}
        write_json(self.path / MANIFEST, [entry, *_read_manifest(self.path)][:3])
        if newest.exists():
            newest.replace(self.path / PREVIOUS_CHECKPOINT)
        write_atomic(newest, blob)

    def load_latest(self) -> bytes | None:
        """Return the newest undamaged checkpoint of this attempt or of one before it, or None.

        A checkpoint of an earlier attempt is copied into this one's folder. Nothing is deleted: a damaged file is
        passed over and named in the log.
        """
        for attempt in range(self.attempt, 0, -1):
            folder = AttemptFolder(self.trial_path, attempt)
            for examples, blob in _undamaged(folder.path):
                if attempt != self.attempt:
                    self.save(examples, blob)
                return blob
        return None


def _read_manifest(path: Path) -> list[dict[str, Any]]:
    try:
        return list(read_json(path / MANIFEST))
    except FileNotFoundError:
        return []
    except ValueError:
        log.warning("%s is damaged; its checkpoints cannot be trusted", path / MANIFEST)
        return []


def _undamaged(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (examples, content) of the checkpoints whose checksum is on record, newest first."""
    known = {entry["sha256"]: entry["examples"] for entry in _read_manifest(path)}
    found = []
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        try:
            blob = (path / name).read_bytes()
        except FileNotFoundError:
            continue
        examples = known.get(sha256_of(blob))
        if examples is None:
            log.warning("%s is damaged (its checksum is not on record); going back to the one before", path / name)
            continue
        found.append((examples, blob))
    yield from sorted(found, key=lambda each: -each[0])
