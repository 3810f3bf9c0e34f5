"""A folder in LibriSpeech layout: ``SPEAKER/CHAPTER/`` with ``SPEAKER-CHAPTER-NNNN.flac`` and ``….trans.txt``."""

import os
from pathlib import Path

from trainer.errors import BadInputError
from trainer.utterances import Entry

AUDIO_SUFFIXES = (".flac", ".wav")
TRANSCRIPT_SUFFIX = ".trans.txt"


def read_librispeech(folder: Path) -> list[Entry]:
    """Return what the transcripts under a folder say, each line with its audio file; no audio file is opened.

    Raises:
        BadInputError: The folder holds no transcripts, or transcripts and audio files do not belong together.
    """
    transcripts, audio = _walk(folder)
    texts = _read_transcripts(folder, transcripts)
    for name, (_, transcript) in texts.items():
        if name not in audio:
            raise BadInputError(
                f"{transcript} has a line for {name} but there is no {name}.flac or .wav; "
                "restore the audio or delete the line"
            )
    for name, file in audio.items():
        if name not in texts:
            raise BadInputError(
                f"no transcript has a line for {file}; add one to its {TRANSCRIPT_SUFFIX} or delete the file"
            )
    return [
        Entry(name=name, audio=Path(audio[name]), text=text, speaker=name.split("-", 1)[0])
        for name, (text, _) in texts.items()
    ]


def _walk(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the transcript files, and the audio files by utterance name."""
    transcripts: list[Path] = []
    audio: dict[str, str] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.startswith("."):  # what a Mac leaves beside each file
                continue
            if name.endswith(TRANSCRIPT_SUFFIX):
                transcripts.append(Path(parent, name))
                continue
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 a Path for each of 30,000 names takes a second
            if suffix.lower() in AUDIO_SUFFIXES:
                file = f"{parent}/{name}"
                if stem in audio:
                    first, second = sorted((audio[stem], file))
                    raise BadInputError(f"{first} and {second} have the same name; delete or rename one of them")
                audio[stem] = file
    if not transcripts:
        raise BadInputError(
            f"the data folder {folder} holds no *{TRANSCRIPT_SUFFIX}; it must have LibriSpeech layout, "
            "SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, or be a .jsonl manifest"
        )
    return sorted(transcripts), audio


def _read_transcripts(folder: Path, transcripts: list[Path]) -> dict[str, tuple[str, Path]]:
    """Return text and transcript file by utterance name."""
    texts: dict[str, tuple[str, Path]] = {}
    for transcript in transcripts:
        try:
            lines = transcript.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise BadInputError(
                f"the transcript {transcript} cannot be read as UTF-8 ({exc}); save it as UTF-8"
            ) from exc
        for line in lines:
            name, _, text = line.strip().partition(" ")
            if name in texts:
                raise BadInputError(f"{name} has a line in {texts[name][1]} and in {transcript}; delete one of the two")
            if name:
                texts[name] = (text.strip(), transcript)
    if not texts:
        raise BadInputError(
            f"the transcripts under {folder} are empty; each line must be an utterance's name and its text"
        )
    return texts
