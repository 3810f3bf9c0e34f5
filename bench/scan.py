"""How long a scan of as many files as train-clean-100 has takes: ``python -m bench.scan [--utterances N]``."""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from trainer.config import DataSpec
from trainer.data import scan

TRAIN_CLEAN_100 = 28_539
"""Utterances of LibriSpeech's train-clean-100."""
LENGTHS_S = (2.0, 8.0, 12.0, 15.0, 0.5, 31.0)
"""Of the files that are linked to; the last two lie outside the configured durations."""
CHAPTER_SIZE = 50
CHAPTERS_PER_SPEAKER = 2


def make_corpus(folder: Path, utterances: int) -> None:
    """Write a LibriSpeech layout whose audio files are hard links to a few FLAC files of noise."""
    rng = np.random.default_rng(0)
    originals = []
    for length_s in LENGTHS_S:
        original = folder / f"original-{length_s:g}.bin"
        noise = 0.1 * rng.standard_normal(int(16_000 * length_s))
        soundfile.write(original, noise, 16_000, format="FLAC")
        originals.append(original)
    for first in range(0, utterances, CHAPTER_SIZE):
        number = first // CHAPTER_SIZE
        name = f"{100 + number // CHAPTERS_PER_SPEAKER}-{number}"
        chapter = folder / "corpus" / name.replace("-", "/")
        chapter.mkdir(parents=True)
        lines = []
        for index in range(first, min(first + CHAPTER_SIZE, utterances)):
            # Mostly of ordinary length: one in a hundred too short, one too long, one without text.
            kind = index % 100
            original = originals[-2] if kind == 0 else originals[-1] if kind == 1 else originals[index % 4]
            utterance = f"{name}-{index - first:04d}"
            (chapter / f"{utterance}.flac").hardlink_to(original)
            lines.append(utterance if kind == 2 else f"{utterance} CHAPTER ONE MISSUS RACHEL LYNDE IS SURPRISED")
        (chapter / f"{name}.trans.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Make the files, scan them twice, and print what took how long and what was dropped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=TRAIN_CLEAN_100)
    count = parser.parse_args().utterances
    with tempfile.TemporaryDirectory(prefix="distune-bench-scan-") as name:
        folder = Path(name)
        make_corpus(folder, count)
        for turn in ("first", "second"):
            started, cpu = time.perf_counter(), time.process_time()
            found = scan(str(folder / "corpus"), DataSpec(train="", dev=""))
            elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
            print(f"{turn} scan of {count} files: {elapsed_s:.2f} s ({cpu_s:.2f} s of CPU)")
        split = found.summarize()
        print(
            f"kept {split.utterances} of {split.speakers} speakers, {split.hours:.1f} hours; left out {split.dropped}"
        )


if __name__ == "__main__":
    main()
