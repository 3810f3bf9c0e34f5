"""Speak the demo's corpus: ``python -m demo.corpus OUT_DIR`` writes train, dev and test in LibriSpeech layout.

The same parameters give the same bytes. A corpus is complete when its manifest is there and every file has the checksum
written in it; anything less is built again. The work happens in ``OUT_DIR/.partial``; the manifest is moved last.
"""

import argparse
import fcntl
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile

from demo.script import FOR_STUDENT, FOR_TEACHER, SPLITS, CorpusSpec, Line, write_script
from demo.sound import SAMPLE_RATE_HZ, Recording, record
from demo.speech import Speaker, SpeechError

MANIFEST = "manifest.json"
LONGEST_S = 1.95
"""The teacher hears two seconds; whoever takes longer is asked to speak faster."""

Progress = Callable[[int, int], None]
"""Called with utterances done and utterances in all."""


class ForeignFolderError(Exception):
    """The folder holds speech that this module did not write."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} already holds train, dev or test that are not the demo's; choose another folder")


def speak_line(speaker: Speaker, line: Line) -> Recording:
    """Speak and record one line; the result depends on the line only."""
    voice = line.voice
    while True:
        recording = record(speaker.speak(line.words, voice, line.seed), np.random.default_rng(line.seed))
        if recording.duration_s <= LONGEST_S:
            return recording
        voice = replace(voice, rate_words_per_minute=voice.rate_words_per_minute + 30)


def build(out_dir: Path, spec: CorpusSpec, progress: Progress) -> bool:
    """Make ``out_dir`` hold the corpus of ``spec``; False if it already did.

    Raises: SpeechMissingError, SpeechFailedError, ForeignFolderError.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with _only_one_builder(out_dir):
        if _is_complete(out_dir, spec):
            return False
        partial = out_dir / ".partial"
        if not partial.exists() and not (out_dir / MANIFEST).exists() and any((out_dir / s).exists() for s in SPLITS):
            raise ForeignFolderError(out_dir)
        speaker = Speaker()
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _write_corpus(partial, spec, speaker, progress)
        (out_dir / MANIFEST).unlink(missing_ok=True)
        for split in SPLITS:
            shutil.rmtree(out_dir / split, ignore_errors=True)
            (partial / split).rename(out_dir / split)
        (partial / MANIFEST).rename(out_dir / MANIFEST)
        partial.rmdir()
    return True


def _write_corpus(folder: Path, spec: CorpusSpec, speaker: Speaker, progress: Progress) -> None:
    lines = list(write_script(spec))
    done = 0
    for split in SPLITS:
        (folder / split).mkdir()
    for (split, speaker_id), chapter in groupby(lines, key=lambda line: (line.split, line.speaker_id)):
        place = folder / split / str(speaker_id) / "1"
        place.mkdir(parents=True)
        transcripts, alignments = [], {}
        for line in chapter:
            recording = speak_line(speaker, line)
            soundfile.write(place / f"{line.utterance_id}.flac", recording.samples, SAMPLE_RATE_HZ, subtype="PCM_16")
            transcripts.append(f"{line.utterance_id} {line.transcript}\n")
            alignments[line.utterance_id] = {
                "phones": [(phone.label, phone.start_s) for phone in recording.phones],
                "words": [(word.label, word.start_s) for word in recording.words],
            }
            done += 1
            progress(done, len(lines))
        (place / f"{speaker_id}-1.trans.txt").write_text("".join(transcripts), encoding="utf-8")
        if spec.alignments:
            (place / f"{speaker_id}-1.alignment.json").write_text(json.dumps(alignments), encoding="utf-8")
    manifest = {"spec": asdict(spec), "sha256": _checksums(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _is_complete(folder: Path, spec: CorpusSpec) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return manifest == {"spec": asdict(spec), "sha256": _checksums(folder)}


def _checksums(folder: Path) -> dict[str, str]:
    """The sha256 of every file of the three splits, by its path in ``folder``."""
    files = sorted(path for split in SPLITS for path in (folder / split).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextmanager
def _only_one_builder(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\rspeaking: {done} of {total} utterances" + ("\n" if done == total else ""))
    elif done == total or done % (total // 4 or 1) == 0:
        sys.stderr.write(f"speaking: {done} of {total} utterances\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if the corpus is there, 2 if something is missing or in the way."""
    parser = argparse.ArgumentParser(prog="python -m demo.corpus", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="where to write train, dev and test")
    parser.add_argument("--for-teacher", action="store_true", help="many speakers, clean labels, alignments")
    parser.add_argument("--seed", type=int, help="another seed speaks other sentences")
    options = parser.parse_args(arguments)
    spec = FOR_TEACHER if options.for_teacher else FOR_STUDENT
    spec = spec if options.seed is None else replace(spec, seed=options.seed)
    try:
        is_new = build(options.out_dir, spec, _show_progress)
    except (SpeechError, ForeignFolderError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    except OSError as exc:
        sys.stderr.write(f"cannot write the corpus to {options.out_dir} ({exc}); choose another folder\n")
        return 2
    print(f"{options.out_dir}: {'written' if is_new else 'already complete'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
