"""Files are either whole or not there."""

import errno
import hashlib
import math
import os
import resource
from pathlib import Path

import pytest

from storage.files import read_json, sha256_of, write_atomic, write_json


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_content_is_written_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"old")
    write_atomic(tmp_path / "a", "né")
    assert (tmp_path / "a").read_bytes() == "né".encode()
    assert names_in(tmp_path) == ["a"]


def test_a_secret_is_never_readable_by_others(tmp_path: Path) -> None:
    write_atomic(tmp_path / "secret", b"x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_other_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_write_that_finds_no_room_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=str(path)) as caught:
            write_atomic(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a"]


def test_a_failed_replacement_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="/a'") as caught:
        write_atomic(tmp_path / "a", b"x")
    assert caught.value.filename == str(tmp_path / "a")
    assert names_in(tmp_path) == ["a"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no/a"):
        write_atomic(tmp_path / "no" / "a", b"x")


def test_names_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("n" * 255), b"x")
    assert names_in(tmp_path) == ["n" * 255]


def test_bytes_and_files_have_the_same_checksum(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == sha256_of(content) == hashlib.sha256(content).hexdigest()


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    value = {"wer": 0.1, "names": ["é", None], "nested": {"a": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(tmp_path: Path, number: float) -> None:
    write_json(tmp_path / "a.json", {"wer": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"wer": number})
    assert read_json(tmp_path / "a.json") == {"wer": 0.5}


@pytest.mark.parametrize("text", ["", "{", '{"wer": NaN}', "\xff"])
def test_damaged_json_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
