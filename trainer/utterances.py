"""Utterances: an audio file with its transcript, before and after its header was read, and a set of them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.audio import Header
from trainer.errors import BadInputError
from trainer.events import Split


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a folder or a manifest says of one utterance. Its audio file has not been looked at."""

    name: str
    """Unique within the set, and the same wherever the set lies."""
    audio: Path
    text: str
    speaker: str | None
    """None where a manifest does not say."""
    source: str | None = None
    """Manifest and line, to begin an error message with; None where the audio's own path says it all."""
    duration_s: float | None = None
    """What the manifest says it lasts, to be held against the header."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One audio file and its transcript."""

    name: str
    audio: Path
    header: Header
    text: str
    speaker: str | None

    @property
    def duration_s(self) -> float:
        """Length of the audio."""
        return self.header.duration_s


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a folder or a manifest holds, after filtering."""

    path: Path
    utterances: tuple[Utterance, ...]
    """Ordered by name, whatever the order of the file system or of the manifest's lines."""
    dropped: dict[str, int]
    """Reason → how many utterances were left out for it."""

    @property
    def duration_s(self) -> float:
        """Length of all the audio."""
        return sum(utterance.duration_s for utterance in self.utterances)

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
                f"no utterance of {self.path} is left after filtering ({counts}); widen data.min_duration_s, "
                "data.max_duration_s or data.teacher_wer_threshold, or choose other data"
            )
        return replace(self, utterances=tuple(kept), dropped=dict(dropped))

    def summarize(self) -> Split:
        """Return the numbers worth telling."""
        return Split(
            path=str(self.path),
            utterances=len(self.utterances),
            hours=self.duration_s / 3600,
            speakers=len({utterance.speaker for utterance in self.utterances} - {None}),
            dropped=self.dropped,
        )
