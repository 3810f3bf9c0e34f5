"""A part of a training set, by hours: seeded, speaker-balanced, the same wherever it is drawn."""

import hashlib
import heapq

from trainer.errors import BadInputError
from trainer.utterances import Scan, Utterance


def take_hours(scanned: Scan, hours: float, seed: int) -> Scan:
    """Return utterances of ``hours`` in all, give or take one utterance.

    The speaker who was heard least so far gives the next utterance, in an order of hashes of seed and name: all are
    heard equally long until one has no more to say. The draw depends on the seed, the names and the durations alone,
    not on the order of files, and with one seed the subset of 5 hours is part of that of 10.

    Raises:
        BadInputError: The data holds less.
    """
    wanted_s = hours * 3600
    if scanned.duration_s < wanted_s:
        raise BadInputError(
            f"data.hours is {hours:g} but {scanned.path} holds {scanned.duration_s / 3600:.4g} hours after filtering; "
            "lower data.hours, remove it to take all, or give more data"
        )
    kept: set[str] = set()
    taken_s = 0.0
    queues = _queue_by_speaker(scanned, seed)
    # Seconds taken, tie-breaker, speaker. Utterances of whom no manifest says the speaker count as one speaker's.
    turns = [(0.0, _rank(seed, speaker), speaker) for speaker in queues]
    heapq.heapify(turns)
    while taken_s < wanted_s:
        said_s, rank, speaker = heapq.heappop(turns)
        utterance = queues[speaker].pop()
        kept.add(utterance.name)
        taken_s += utterance.duration_s
        if queues[speaker]:
            heapq.heappush(turns, (said_s + utterance.duration_s, rank, speaker))
    return scanned.keep(
        None if utterance.name in kept else f"beyond data.hours ({hours:g})" for utterance in scanned.utterances
    )


def _queue_by_speaker(scanned: Scan, seed: int) -> dict[str, list[Utterance]]:
    """Return each speaker's utterances, the first to be taken last."""
    queues: dict[str, list[Utterance]] = {}
    for utterance in sorted(scanned.utterances, key=lambda u: _rank(seed, u.name), reverse=True):
        queues.setdefault(utterance.speaker or "", []).append(utterance)
    return queues


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()
