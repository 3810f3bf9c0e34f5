"""A folder of speech in LibriSpeech layout: what is there, what is kept, and whether it can be read. No tensors."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.audio import SAMPLE_RATE, Header, decode, read_header
from trainer.config import DataSpec
from trainer.errors import BadInputError
from trainer.events import Split

AUDIO_SUFFIXES = (".flac", ".wav")
TRANSCRIPT_SUFFIX = ".trans.txt"
READER_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One audio file and its transcript."""

    name: str
    audio: Path
    header: Header
    text: str

    @property
    def speaker(self) -> str:
        """First part of the name, as LibriSpeech has it."""
        return self.name.split("-", 1)[0]

    @property
    def duration_s(self) -> float:
        """Length of the audio."""
        return self.header.duration_s


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a folder holds, after filtering."""

    path: Path
    utterances: tuple[Utterance, ...]
    """Ordered by name, whatever the file system's order."""
    dropped: dict[str, int]
    """Reason → how many utterances were left out for it."""

    def keep(self, reasons: Iterable[str | None]) -> "Scan":
        """Return the scan without the utterances that have a reason against them, counted.

        Raises:
            BadInputError: Nothing is left.
        """
        kept, dropped = [], Counter(self.dropped)
        for utterance, reason in zip(self.utterances, reasons, strict=True):
            if reason is None:
                kept.append(utterance)
            else:
                dropped[reason] += 1
        if not kept:
            counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            raise BadInputError(
                f"no utterance of {self.path} is left after filtering ({counts}); "
                "widen data.min_duration_s and data.max_duration_s or choose other data"
            )
        return replace(self, utterances=tuple(kept), dropped=dict(dropped))

    def summarize(self) -> Split:
        """Return the numbers worth telling."""
        return Split(
            path=str(self.path),
            utterances=len(self.utterances),
            hours=sum(utterance.duration_s for utterance in self.utterances) / 3600,
            speakers=len({utterance.speaker for utterance in self.utterances}),
            dropped=self.dropped,
        )


def scan(path: str, spec: DataSpec) -> Scan:
    """Read names, transcripts and headers of a folder; keep what lies within the configured durations.

    Raises:
        BadInputError: The folder is missing, empty or inconsistent, or a file's header cannot be read. A FLAC file
            that breaks off has a whole header: only ``verify`` sees that.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BadInputError(f"the data folder {folder} does not exist; correct data.train, data.dev or data.test")
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
    names = sorted(audio)
    with ThreadPoolExecutor(READER_THREADS) as pool:
        headers = list(pool.map(read_header, [audio[name] for name in names]))
    utterances = tuple(
        Utterance(
            name=name,
            audio=audio[name],
            header=header,
            text=texts[name][0].lower() if spec.text == "lower" else texts[name][0],
        )
        for name, header in zip(names, headers, strict=True)
    )
    found = Scan(path=folder, utterances=utterances, dropped={})
    return found.keep(_reason_against(utterance, spec) for utterance in utterances)


def verify(scanned: Scan, tick: Callable[[], None]) -> None:
    """Decode every file once, and call ``tick`` now and then: about three minutes for 100 hours on eight threads.

    Raises:
        BadInputError: A file cannot be decoded to its end.
    """
    with ThreadPoolExecutor(READER_THREADS) as pool:
        # In slices, so that a refusal or an interrupted tick does not wait for a whole corpus to be decoded.
        for start in range(0, len(scanned.utterances), 64):
            part = scanned.utterances[start : start + 64]
            list(pool.map(decode, [u.audio for u in part], [u.header for u in part]))
            tick()


def describe_conversions(scanned: Scan) -> list[str]:
    """Return a sentence for each conversion that reading this data takes."""
    other_rate = [u for u in scanned.utterances if u.header.sample_rate != SAMPLE_RATE]
    several = [u for u in scanned.utterances if u.header.channels > 1]
    sentences = []
    if other_rate:
        rates = ", ".join(f"{rate} Hz" for rate in sorted({u.header.sample_rate for u in other_rate}))
        sentences.append(
            f"{len(other_rate)} files of {scanned.path} are resampled from {rates} to 16 kHz, "
            f"{other_rate[0].audio.name} the first"
        )
    if several:
        sentences.append(
            f"{len(several)} files of {scanned.path} have more than one channel and are averaged to mono, "
            f"{several[0].audio.name} the first"
        )
    return sentences


def _walk(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """Return the transcript files, and the audio files by utterance name."""
    transcripts: list[Path] = []
    audio: dict[str, Path] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            file = Path(parent, name)
            if name.startswith("."):  # what a Mac leaves beside each file
                continue
            if name.endswith(TRANSCRIPT_SUFFIX):
                transcripts.append(file)
            elif file.suffix.lower() in AUDIO_SUFFIXES:
                if file.stem in audio:
                    first, second = sorted((audio[file.stem], file))
                    raise BadInputError(f"{first} and {second} have the same name; delete or rename one of them")
                audio[file.stem] = file
    if not transcripts:
        raise BadInputError(
            f"the data folder {folder} holds no *{TRANSCRIPT_SUFFIX}; "
            "it must have LibriSpeech layout, SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt"
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


def _reason_against(utterance: Utterance, spec: DataSpec) -> str | None:
    if not utterance.text:
        return "empty transcript"
    if utterance.duration_s < spec.min_duration_s:
        return f"shorter than {spec.min_duration_s:g} s"
    if utterance.duration_s > spec.max_duration_s:
        return f"longer than {spec.max_duration_s:g} s"
    return None
