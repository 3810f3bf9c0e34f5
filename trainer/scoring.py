"""Word error rate: normalised text, errors per utterance, and how far the number can be trusted."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jiwer
import numpy as np
from jaxtyping import Int
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from trainer.errors import BadInputError

SPELLING_TABLE = Path(__file__).with_name("english_spelling.json")
"""British → American spellings, from openai/whisper (MIT licence, beside it): shipped, so that nothing is fetched."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Corpus-level word error rate, over the utterances whose reference has words."""

    errors: int
    words: int
    utterances: int
    wer: float
    interval: tuple[float, float]
    """95 % bootstrap interval over utterances."""


def score(references: Sequence[str], hypotheses: Sequence[str], *, bootstrap_samples: int) -> Score:
    """Compare transcripts as Whisper's authors do: both through their English normaliser, then Σ errors / Σ words.

    References that normalise to nothing ("Hmm.") are left out: they have no words to get wrong.

    Raises:
        BadInputError: No reference has any words.
    """
    normalize = _load_normalizer()
    pairs = [(normalize(ref).strip(), normalize(hyp).strip()) for ref, hyp in zip(references, hypotheses, strict=True)]
    pairs = [(ref, hyp) for ref, hyp in pairs if ref]
    if not pairs:
        raise BadInputError(
            "no transcript has any words after normalisation, so there is no word error rate; "
            "choose other data.dev or data.test"
        )
    errors = count_errors([ref for ref, _ in pairs], [hyp for _, hyp in pairs])
    words = np.array([len(ref.split()) for ref, _ in pairs])
    return Score(
        errors=int(errors.sum()),
        words=int(words.sum()),
        utterances=len(pairs),
        wer=float(errors.sum() / words.sum()),
        interval=bootstrap_interval(errors, words, samples=bootstrap_samples),
    )


def rate_each(references: Sequence[str], hypotheses: Sequence[str]) -> list[float | None]:
    """Return each utterance's word error rate, normalised as in ``score``; None where the reference has no words."""
    normalize = _load_normalizer()
    pairs = [(normalize(ref).strip(), normalize(hyp).strip()) for ref, hyp in zip(references, hypotheses, strict=True)]
    spoken = [index for index, (ref, _) in enumerate(pairs) if ref]
    rates: list[float | None] = [None] * len(pairs)
    if spoken:
        errors = count_errors([pairs[index][0] for index in spoken], [pairs[index][1] for index in spoken])
        for index, count in zip(spoken, errors.tolist(), strict=True):
            rates[index] = count / len(pairs[index][0].split())
    return rates


def count_errors(references: list[str], hypotheses: list[str]) -> Int[np.ndarray, "utterances"]:
    """Return substitutions, deletions and insertions of each utterance."""
    alignments = jiwer.process_words(references, hypotheses).alignments
    return np.array(
        [
            sum(
                # A deletion spans no hypothesis words, an insertion no reference words, a substitution both alike.
                max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                for chunk in alignment
                if chunk.type != "equal"
            )
            for alignment in alignments
        ]
    )


def bootstrap_interval(
    errors: Int[np.ndarray, "utterances"], words: Int[np.ndarray, "utterances"], *, samples: int
) -> tuple[float, float]:
    """Return the 95 % percentile interval of Σ errors / Σ words over resampled utterances (Bisani & Ney 2004).

    The resampling has a seed of its own: the same transcripts always give the same interval.
    """
    size = len(errors)
    times_drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1.0 / size), size=samples)
    rates = (times_drawn @ errors) / (times_drawn @ words)
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(low), float(high)


@cache
def _load_normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer(json.loads(SPELLING_TABLE.read_text(encoding="utf-8")))
