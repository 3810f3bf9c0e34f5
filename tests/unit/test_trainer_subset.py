"""Training on some hours of the data: which, how many, and from whom."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.audio import Header
from trainer.errors import BadInputError
from trainer.subset import take_hours
from trainer.utterances import Scan, Utterance


def make_scan(counts: dict[str | None, int], seconds: float = 10.0) -> Scan:
    header = Header(num_frames=int(seconds * 16_000), sample_rate=16_000, channels=1)
    return Scan(
        path=Path("/data"),
        dropped={},
        utterances=tuple(
            Utterance(name=f"{speaker}-{index:04d}", audio=Path(), header=header, text="lamp", speaker=speaker)
            for speaker, count in counts.items()
            for index in range(count)
        ),
    )


def test_speakers_are_heard_equally_long_until_one_has_no_more_to_say() -> None:
    scanned = make_scan({"1": 100, "2": 50, "3": 5})
    taken = take_hours(scanned, 350 / 3600, seed=0)
    assert Counter(u.speaker for u in taken.utterances) == {"1": 15, "2": 15, "3": 5}
    assert taken.dropped == {"beyond data.hours (0.0972222)": 120}
    assert [u.name for u in taken.utterances] == sorted(u.name for u in taken.utterances)


def test_the_subset_depends_on_the_seed_and_not_on_the_order_of_files() -> None:
    scanned = make_scan({"1": 40, "2": 40, None: 20})
    taken = take_hours(scanned, 0.05, seed=3)
    backwards = take_hours(replace(scanned, utterances=scanned.utterances[::-1]), 0.05, seed=3)
    assert set(backwards.utterances) == set(taken.utterances)
    assert set(take_hours(scanned, 0.05, seed=4).utterances) != set(taken.utterances)


@settings(max_examples=25)
@given(hours=st.floats(0.001, 0.27), more=st.floats(0.0, 0.2), seed=st.integers(0, 5))
def test_it_lasts_as_long_as_asked_and_is_part_of_a_longer_one(hours: float, more: float, seed: int) -> None:
    scanned = make_scan({"1": 60, "2": 30, "3": 10})
    taken = take_hours(scanned, hours, seed)
    assert 0 <= taken.duration_s - hours * 3600 < 10
    assert set(taken.utterances) <= set(take_hours(scanned, min(hours + more, 0.27), seed).utterances)


def test_all_is_all_and_more_is_refused() -> None:
    scanned = make_scan({"1": 36})
    assert take_hours(scanned, 0.1, seed=0) == scanned
    with pytest.raises(BadInputError, match=r"data\.hours is 0\.2 but /data holds 0\.1 hours after filtering; lower"):
        take_hours(scanned, 0.2, seed=0)
