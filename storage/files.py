"""Files that are either whole or not there: atomic writes, checksums, strict JSON."""

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: bytes | str, *, mode: int = 0o666) -> None:
    """Replace the file at ``path`` in one step: readers, and a power cut, find the old content or the new.

    Args:
        content: a string is written as UTF-8.
        mode: permissions of the new file, less the process's umask.

    Raises:
        OSError: with ``filename`` set to ``path`` (a full disk, a missing folder); the old file is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            _write_new(temporary, data, mode)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
    except OSError as exc:
        exc.filename, exc.filename2 = str(path), None
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(source: Path | bytes) -> str:
    """The SHA-256, in hexadecimal, of these bytes or of the file at this path."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically, as JSON that every reader accepts.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
        OSError: as ``write_atomic``.
    """
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in the JSON file at ``path``.

    Raises:
        OSError: the file cannot be read.
        ValueError: not JSON, or NaN or infinity in it; the message names the file.
    """
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except ValueError as exc:
        raise ValueError(f"{path} is not valid JSON: {exc}") from exc


def _write_new(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123 a descriptor, not a path
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
