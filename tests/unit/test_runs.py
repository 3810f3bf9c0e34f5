"""Run folders: checkpoints that survive, damage that is seen, results that read back."""

import logging
from pathlib import Path

import pytest

from storage.results import BadResultError, read_best
from storage.runs import CHECKPOINT, PREVIOUS_CHECKPOINT, AttemptFolder, RunFolder


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptFolder:
    return RunFolder(tmp_path).attempt(7, 1)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_an_attempt_has_a_folder_of_its_own(tmp_path: Path, attempt: AttemptFolder) -> None:
    assert attempt.path == tmp_path / "trials" / "0007" / "attempt-1"
    assert not attempt.path.exists()  # until something is written
    assert attempt.load_latest() is None


def test_the_newest_checkpoint_comes_back_and_two_are_kept(attempt: AttemptFolder) -> None:
    for examples in (100, 200, 300):
        attempt.save(examples, b"state after %d" % examples)
    assert attempt.load_latest() == b"state after 300"
    kept = {(attempt.path / name).read_bytes() for name in (CHECKPOINT, PREVIOUS_CHECKPOINT)}
    assert kept == {b"state after 300", b"state after 200"}


@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    attempt: AttemptFolder, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    attempt.save(100, b"state after 100")
    attempt.save(200, b"state after 200")
    damage(attempt.path / CHECKPOINT)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert attempt.load_latest() == b"state after 100"
    if damage is not Path.unlink:
        assert str(attempt.path / CHECKPOINT) in caplog.text
        assert (attempt.path / CHECKPOINT).exists()  # nothing is deleted


def test_the_next_attempt_goes_on_from_a_copy(tmp_path: Path, attempt: AttemptFolder) -> None:
    attempt.save(100, b"state after 100")
    following = RunFolder(tmp_path).attempt(7, 3)  # attempt 2 died before it wrote anything
    assert following.load_latest() == b"state after 100"
    attempt.save(200, b"a zombie's state")
    assert following.load_latest() == b"state after 100"
    assert (following.path / CHECKPOINT).read_bytes() == b"state after 100"


def test_a_write_that_dies_at_any_point_leaves_a_checkpoint(
    attempt: AttemptFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt.save(100, b"state after 100")

    def die(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.runs.write_atomic", die)
    with pytest.raises(OSError, match="No space left"):
        attempt.save(200, b"state after 200")
    assert attempt.load_latest() == b"state after 100"


@pytest.mark.parametrize("content", ["", "{", "{}", '{"schema_version": 99}', '{"value": NaN}'])
def test_a_broken_best_params_is_named_with_the_remedy(tmp_path: Path, content: str) -> None:
    path = tmp_path / "best_params.json"
    path.write_text(content)
    with pytest.raises(BadResultError, match=r"best_params.json is no valid best_params.json \(.*distune best STUDY"):
        read_best(path)


def test_a_missing_best_params_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadResultError, match="does not exist; it is written when the first trial"):
        read_best(tmp_path / "best_params.json")
