"""The speech at one place: what is there, what is kept, and whether it can be read. No tensors."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.audio import SAMPLE_RATE, decode, read_header
from trainer.config import DataSpec
from trainer.errors import BadInputError
from trainer.librispeech import read_librispeech
from trainer.manifest import SUFFIX, read_manifest
from trainer.utterances import Entry, Scan, Utterance

READER_THREADS = 8
"""More than a disk at hand needs, for the sake of one that is a network away."""
SLICE = 64
DURATION_TOLERANCE_S = 0.1
"""How far a manifest's duration may lie from the header's: they are often rounded."""


def scan(path: str, spec: DataSpec) -> Scan:
    """Read names, transcripts and headers of a folder or a manifest; keep what lies within the configured durations.

    Raises:
        BadInputError: The place is missing, empty or inconsistent, or a file's header cannot be read. A FLAC file
            that breaks off has a whole header: only ``verify`` sees that.
    """
    place = Path(path)
    entries = _read_entries(place)
    entries.sort(key=lambda entry: entry.name)
    # In slices: a task for each of 30,000 files costs as much as reading its header does.
    slices = [entries[first : first + SLICE] for first in range(0, len(entries), SLICE)]
    with ThreadPoolExecutor(READER_THREADS) as pool:
        parts = pool.map(lambda part: [_open(entry, spec) for entry in part], slices)
        utterances = tuple(utterance for part in parts for utterance in part)
    found = Scan(path=place, utterances=utterances, dropped={})
    return found.keep(_reason_against(utterance, spec) for utterance in utterances)


def verify(scanned: Scan, tick: Callable[[], None]) -> None:
    """Decode every file once, and call ``tick`` now and then: about three minutes for 100 hours on eight threads.

    Raises:
        BadInputError: A file cannot be decoded to its end.
    """
    with ThreadPoolExecutor(READER_THREADS) as pool:
        # In slices, so that a refusal or an interrupted tick does not wait for a whole corpus to be decoded.
        for start in range(0, len(scanned.utterances), SLICE):
            part = scanned.utterances[start : start + SLICE]
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


def _read_entries(place: Path) -> list[Entry]:
    if place.is_dir():
        return read_librispeech(place)
    keys = "data.train, data.dev or data.test"
    if place.suffix == SUFFIX:
        if not place.is_file():
            raise BadInputError(f"the manifest {place} does not exist; correct {keys}")
        return read_manifest(place)
    if place.exists():
        raise BadInputError(f"{place} is neither a folder nor a {SUFFIX} manifest; correct {keys}")
    raise BadInputError(f"the data folder {place} does not exist; correct {keys}")


def _open(entry: Entry, spec: DataSpec) -> Utterance:
    """Read the header of an entry's file, and apply the text processing to its transcript.

    Raises:
        BadInputError: The file is missing or no audio, or does not last as long as its manifest says.
    """
    if entry.source is None:
        header = read_header(entry.audio)
    else:
        if not entry.audio.is_file():
            raise BadInputError(
                f"{entry.source}: there is no file {entry.audio}; correct the path, which is relative to the "
                "manifest, or delete the line"
            )
        try:
            header = read_header(entry.audio)
        except BadInputError as exc:
            raise BadInputError(f"{entry.source}: {exc}") from exc
    if entry.duration_s is not None and abs(entry.duration_s - header.duration_s) > DURATION_TOLERANCE_S:
        raise BadInputError(
            f"{entry.source}: the duration is given as {entry.duration_s:g} s but {entry.audio} lasts "
            f"{header.duration_s:g} s; correct or remove it, or restore the right file"
        )
    text = entry.text.lower() if spec.text == "lower" else entry.text
    return Utterance(name=entry.name, audio=entry.audio, header=header, text=text, speaker=entry.speaker)


def _reason_against(utterance: Utterance, spec: DataSpec) -> str | None:
    if not utterance.text:
        return "empty transcript"
    if utterance.duration_s < spec.min_duration_s:
        return f"shorter than {spec.min_duration_s:g} s"
    if utterance.duration_s > spec.max_duration_s:
        return f"longer than {spec.max_duration_s:g} s"
    return None
