"""Workers of one machine share its GPUs out."""

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from search import gpu_slot
from search.errors import ConfigError
from search.gpu_slot import hold_gpu


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_slot, "POLL_S", 0.01)


def test_each_gpu_has_one_worker(tmp_path: Path) -> None:
    going = threading.Event()
    with ExitStack() as stack:
        taken = [stack.enter_context(hold_gpu(tmp_path, ["0", "1", "2"], going)) for _ in range(3)]
        assert taken == ["0", "1", "2"]
    with hold_gpu(tmp_path, ["0", "1", "2"], going) as device:
        assert device == "0"


def test_one_worker_too_many_waits_for_a_free_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    going = threading.Event()
    found: list[str | None] = []

    def wait() -> None:
        with hold_gpu(tmp_path, ["0"], going) as device:
            found.append(device)

    with hold_gpu(tmp_path, ["0"], going):
        late = threading.Thread(target=wait)
        late.start()
        late.join(0.1)
        assert found == []
    late.join(20)
    assert found == ["0"]
    assert caplog.text.count("waiting for one") == 1


def test_a_waiting_worker_can_be_stopped(tmp_path: Path) -> None:
    stop = threading.Event()
    with hold_gpu(tmp_path, ["0"], threading.Event()):
        stop.set()
        with hold_gpu(tmp_path, ["0"], stop) as device:
            assert device is None


def test_no_gpu_or_no_folder_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers-cpu"), hold_gpu(tmp_path, [], threading.Event()):
        pass
    with pytest.raises(ConfigError, match="give another folder"), hold_gpu(tmp_path / "none", ["0"], threading.Event()):
        pass
