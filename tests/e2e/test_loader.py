"""Processes that decode ahead: the same examples in the same order, one sentence for bad input, and no orphans."""

import os
import shutil
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

from tests.studies import wait_for
from tests.unit.tiny import make_model, make_world
from trainer.batches import AudioDataset, build_dataset
from trainer.config import DataSpec
from trainer.data import scan
from trainer.errors import BadInputError
from trainer.loader import load
from trainer.order import Order
from trainer.pretrained import load_pretrained
from trainer.vocabulary import build_vocabulary


def make_dataset(train: Path, *, teacher: Path | None = None) -> AudioDataset:
    """Return a data set that claims not to fit into memory."""
    pretrained = load_pretrained(str(make_world().model))
    heard_by = pretrained if teacher is None else load_pretrained(str(teacher))
    scanned = scan(str(train), DataSpec(train="", dev="", min_duration_s=0.1))
    dataset = build_dataset(scanned, build_vocabulary(pretrained, None), pretrained.log_mel, heard_by.log_mel)
    dataset.fits_in_memory = False
    return dataset


@pytest.mark.parametrize("other_mels", [False, True])
def test_processes_load_what_the_run_itself_would_through_all_epochs(tmp_path: Path, other_mels: bool) -> None:
    torch.set_num_threads(1)
    dataset = make_dataset(
        make_world().train, teacher=make_model(tmp_path / "teacher", mels=32) if other_mels else None
    )
    order = Order(dataset.token_counts, seed=5, window=9)
    alone = list(load(dataset, order.steps(3, 50, 8), processes=0))
    state = torch.get_rng_state()
    ahead = list(load(dataset, order.steps(3, 50, 8), processes=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(step) for step in ahead] == [8, 8, 8, 8, 8, 7]
    for expected, example in zip(chain(*alone), chain(*ahead), strict=True):
        assert (example.token_ids, example.num_frames) == (expected.token_ids, expected.num_frames)
        assert torch.equal(example.features, expected.features)
        assert torch.equal(example.teacher_features, expected.teacher_features)
        assert (example.teacher_features is example.features) is not other_mels


def test_a_broken_file_reaches_the_run_as_one_sentence(tmp_path: Path) -> None:
    corpus = Path(shutil.copytree(make_world().train, tmp_path / "train"))
    broken = corpus / "2" / "1" / "2-1-0003.flac"
    broken.write_bytes(broken.read_bytes()[:-500])
    dataset = make_dataset(corpus)
    with pytest.raises(
        BadInputError, match=r"^the audio file .*2-1-0003\.flac is damaged or breaks off .*; copy it"
    ) as e:
        list(load(dataset, Order(dataset.token_counts, seed=0).steps(0, 18, 4), processes=2))
    assert "\n" not in str(e.value)


HOLDER = """
import multiprocessing, os, sys, time
from pathlib import Path
from tests.e2e.test_loader import make_dataset
from trainer.loader import load
if __name__ == "__main__":
    dataset = make_dataset(Path(sys.argv[2]))
    for step in load(dataset, [[0, 1]] * 1000, processes=2):
        os.write(int(sys.argv[1]), b" ".join(str(p.pid).encode() for p in multiprocessing.active_children()))
        time.sleep(1000)
"""


def test_killing_the_training_process_ends_its_channel_at_once_and_leaves_no_loader(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)
    process = subprocess.Popen(
        [sys.executable, str(script), str(theirs.fileno()), str(make_world().train)],
        pass_fds=[theirs.fileno()],  # inheritable there, as the training process's channel is
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    theirs.close()
    try:
        ours.settimeout(200)  # twice an import of torch, on machines that have other things to do
        loaders = [int(pid) for pid in ours.recv(100).split()]
        server = int(Path(f"/proc/{loaders[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
    finally:
        process.kill()
        process.wait()
    assert len(loaders) == 2
    assert server != process.pid
    ours.settimeout(0.5)
    assert ours.recv(1) == b""
    ours.close()
    wait_for(lambda: not any(is_alive(pid) for pid in [*loaders, server]), timeout_s=5)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody waits for has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before or after the file was opened
        return False
