"""From eSpeak's clean voice to a recording: resampled to 16 kHz, trimmed, in a small room, with noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve, lfilter, resample_poly

from demo.speech import SAMPLE_RATE_HZ as SPOKEN_RATE_HZ
from demo.speech import Segment, Speech

SAMPLE_RATE_HZ = 16_000

_UP, _DOWN = 320, 441  # 22,050 Hz to 16,000 Hz
_SILENCE = 0.01  # of the peak: below it, nothing is said


@dataclass(frozen=True, kw_only=True)
class TimedLabel:
    """A phone or a word from this time on."""

    label: str
    start_s: float


@dataclass(frozen=True, kw_only=True)
class Recording:
    """16-bit samples at ``SAMPLE_RATE_HZ``, and when each phone and word starts in them."""

    samples: NDArray[np.int16]
    phones: tuple[TimedLabel, ...]
    words: tuple[TimedLabel, ...]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE_HZ


def record(speech: Speech, random: np.random.Generator) -> Recording:
    """Record ``speech`` in a random room; the same generator state gives the same samples."""
    clean = np.asarray(resample_poly(speech.samples.astype(np.float64), _UP, _DOWN))
    loud = np.flatnonzero(np.abs(clean) > _SILENCE * np.abs(clean).max())
    first, last = int(loud[0]), int(loud[-1]) + 1
    before, after = (int(SAMPLE_RATE_HZ * random.uniform(0.03, 0.12)) for _ in range(2))
    dry = np.concatenate([np.zeros(before), clean[first:last], np.zeros(after)])
    wet = _reverberate(dry, random) if random.random() < 1 / 3 else dry
    noisy = wet + _noise(wet, random)
    peak = random.uniform(0.3, 0.9) * np.iinfo(np.int16).max
    shift_s = (before - first) / SAMPLE_RATE_HZ
    return Recording(
        samples=np.round(noisy * (peak / np.abs(noisy).max())).astype(np.int16),
        phones=_timed(speech.phones, shift_s),
        words=_timed(speech.words, shift_s),
    )


def _reverberate(dry: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """A light room: exponentially dying noise, 0.1 to 0.3 s to -60 dB, well below the direct sound."""
    decay_s = random.uniform(0.1, 0.3)
    times_s = np.arange(int(decay_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    echo = random.standard_normal(len(times_s)) * np.exp(-6.9 * times_s / decay_s)
    echo *= random.uniform(0.2, 0.5) / np.sqrt(np.sum(echo**2))
    echo[0] = 1.0
    return np.asarray(fftconvolve(dry, echo)[: len(dry)])


def _noise(speech: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """White to brownish noise, 12 to 35 dB below the speech."""
    colour = random.uniform(0.0, 0.95)
    noise = np.asarray(lfilter([1.0], [1.0, -colour], random.standard_normal(len(speech))))
    snr_db = random.uniform(12.0, 35.0)
    scale = np.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    return noise * scale


def _timed(segments: tuple[Segment, ...], shift_s: float) -> tuple[TimedLabel, ...]:
    return tuple(
        TimedLabel(label=segment.label, start_s=max(0.0, segment.start_samples / SPOKEN_RATE_HZ + shift_s))
        for segment in segments
    )
