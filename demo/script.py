"""The script of the corpus: which voice says which words, and what the transcript claims; no sound is made here.

The words are those of a small voice assistant, with natural confusions (fifteen and fifty, oh and zero). Voices are
split by eSpeak *variant* (the part of a voice that makes it a person): no development or test voice is ever heard in
training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from demo.speech import Voice

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

_DIGITS = ("zero", "oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SLOTS = {
    "DIGIT": _DIGITS,
    "UNIT": _DIGITS[2:],
    "TEEN": _TEENS,
    "TENS": _TENS,
    "CLOCK": ("timer", "alarm"),
    "SPAN": ("minutes", "seconds"),
    "SWITCH": ("on", "off"),
    "ROOM": ("kitchen", "bedroom", "bathroom", "hall", "office", "garage"),
    "THING": ("lamp", "light", "heater", "fan"),
    "WAY": ("up", "down"),
    "DO": ("play", "next", "stop"),
    "WHAT": ("song", "channel"),
}
# NUMBER becomes one of _NUMBERS first; a pattern or number that stands twice is twice as likely.
_PATTERNS = (
    "DIGIT DIGIT DIGIT",
    "DIGIT DIGIT DIGIT DIGIT",
    "set CLOCK for NUMBER SPAN",
    "set CLOCK for NUMBER SPAN",
    "set ROOM THING to NUMBER",
    "set ROOM THING to NUMBER",
    "turn SWITCH ROOM THING",
    "turn SWITCH ROOM THING",
    "turn SWITCH ROOM THING",
    "volume WAY",
    "volume NUMBER",
    "call room UNIT DIGIT DIGIT",
    "DO WHAT NUMBER",
)
_NUMBERS = ("TEEN", "TEEN", "TENS", "TENS UNIT")
_LITERALS = ("set", "for", "to", "turn", "volume", "call", "room")
VOCABULARY = tuple(dict.fromkeys((*(word for words in _SLOTS.values() for word in words), *_LITERALS)))

_ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc", "en-gb-x-gbclan", "en-gb-x-gbcwmd")

# eSpeak's variants without its robots, whispers and jokes. Those that sound alike (steph, steph2) are in one split.
VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": (
        "f1", "f4", "m2", "m4", "m6", "m8", "Alex", "Andy", "Annie", "Denis", "Gene", "Gene2", "Henrique",
        "Hugo", "Lee", "Mario", "Michael", "Mike", "mike2", "Nguyen", "Reed", "RicishayMax", "RicishayMax2",
        "RicishayMax3", "Storm", "anika", "announcer", "antonio", "aunty", "benjamin", "boris", "david",
        "ed", "edward", "edward2", "grandpa", "gustave", "ian", "iven", "iven2", "iven3", "iven4", "john",
        "kaukovalta", "marcelo", "michel", "miguel", "paul", "pedro", "rob", "sandro", "shelby", "steph",
        "steph2", "steph3", "travis",
    ),
    "dev": (
        "f2", "f5", "m3", "m7", "Alicia", "Diogo", "adam", "belinda", "grandma", "max", "pablo", "victor",
    ),
    "test": (
        "f3", "m1", "m5", "Andrea", "Jacky", "Marco", "caleb", "linda", "norbert", "quincy", "robert", "zac",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """Everything that determines a corpus."""

    version: int = 1
    """Raised whenever the same parameters would sound or read different."""
    seed: int = 0
    train_speakers: int = 40
    dev_speakers: int = 12
    test_speakers: int = 12
    utterances_per_speaker: int = 16
    weak_label_fraction: float = 0.3
    """This fraction of the *training* transcripts' words is replaced by other words, as a bad pseudo-labeller would."""
    alignments: bool = False
    """Write when each phone and word starts, beside the training transcripts."""

    def speakers(self, split: Split) -> int:
        """How many speakers a split has."""
        return {"train": self.train_speakers, "dev": self.dev_speakers, "test": self.test_speakers}[split]


FOR_TEACHER = CorpusSpec(train_speakers=240, weak_label_fraction=0.0, alignments=True)
FOR_STUDENT = CorpusSpec(seed=1)
"""Another seed: the teacher has heard none of the student's recordings."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One utterance: who says what, and what the transcript claims was said."""

    split: Split
    speaker_id: int
    index: int
    voice: Voice
    words: str
    transcript: str
    seed: int

    @property
    def utterance_id(self) -> str:
        """LibriSpeech's SPEAKER-CHAPTER-NNNN; every speaker reads one chapter."""
        return f"{self.speaker_id}-1-{self.index:04d}"


def write_script(spec: CorpusSpec) -> Iterator[Line]:
    """All lines of the corpus, speaker by speaker. Each depends on the seed and its own place only."""
    for split_number, split in enumerate(SPLITS):
        for speaker in range(spec.speakers(split)):
            casting = np.random.default_rng([spec.seed, split_number, speaker])
            voice = _cast(split, speaker, casting)
            for index in range(spec.utterances_per_speaker):
                random = np.random.default_rng([spec.seed, split_number, speaker, index])
                words = compose(random)
                seed = int(random.integers(2**31))
                fraction = spec.weak_label_fraction if split == "train" else 0.0
                yield Line(
                    split=split,
                    speaker_id=1000 * (split_number + 1) + speaker,
                    index=index,
                    voice=voice,
                    words=words,
                    transcript=weaken(words, fraction, random),
                    seed=seed,
                )


def compose(random: np.random.Generator) -> str:
    """One command or digit string, as the assistant would hear it."""
    pattern = _PATTERNS[random.integers(len(_PATTERNS))]
    pattern = pattern.replace("NUMBER", _NUMBERS[random.integers(len(_NUMBERS))])
    words = []
    for slot in pattern.split(" "):
        choices = _SLOTS.get(slot, (slot,))
        words.append(choices[random.integers(len(choices))])
    return " ".join(words)


def weaken(words: str, fraction: float, random: np.random.Generator) -> str:
    """Replace each word, with probability ``fraction``, by another word of the vocabulary."""
    heard = []
    for word in words.split(" "):
        others = [other for other in VOCABULARY if other != word]
        heard.append(others[random.integers(len(others))] if random.random() < fraction else word)
    return " ".join(heard)


def _cast(split: Split, speaker: int, random: np.random.Generator) -> Voice:
    """A speaker's voice; the variants of a split take turns."""
    variants = VARIANTS[split]
    accent = _ACCENTS[random.integers(len(_ACCENTS))]
    return Voice(
        name=f"{accent}+{variants[speaker % len(variants)]}",
        rate_words_per_minute=int(random.integers(190, 271)),
        pitch=int(random.integers(30, 71)),
    )
