"""The password file of compose's secrets."""

from pathlib import Path

import pytest

from storage.errors import DatabaseUrlError
from storage.password_file import VARIABLE, read_password_file


def test_without_the_variable_there_is_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_password_file() is None


@pytest.mark.parametrize(
    ("content", "password"), [("pass", "pass"), ("pass\n", "pass"), ("pass\r\n", "pass"), (" p\n w \n", " p\n w ")]
)
def test_the_line_break_at_the_end_is_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, password: str
) -> None:
    (tmp_path / "secret").write_text(content, newline="")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "secret"))
    assert read_password_file() == password


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_file_without_password_is_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(VARIABLE, str(path))
    with pytest.raises(DatabaseUrlError, match=str(path)):
        read_password_file()
