"""Speech from text: eSpeak NG driven through ctypes, one forked process per utterance.

eSpeak's output depends on what it spoke before (its random state, and filters that ring on), and its random numbers
are seeded from the clock. A child process that speaks once with a fixed seed and ends makes every utterance independent
of all others, so that a corpus is bit-identical in whatever order it is spoken. The fork costs about 11 ms.
"""

import ctypes
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 22_050

_SYNCHRONOUS_OUTPUT = 2
_PHONEME_EVENTS = 1
_RETURN_INSTEAD_OF_EXIT = 1 << 15
_RATE, _PITCH = 1, 3
_POSITION_IN_CHARACTERS = 1
_UTF8 = 1
_END_OF_LIST, _WORD, _PHONEME = 0, 1, 7


class SpeechError(Exception):
    """Base of what speaking can fail with."""


class SpeechMissingError(SpeechError):
    """eSpeak NG is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "the demo corpus is spoken by eSpeak NG, which is not installed; run: pip install 'distune[demo]'"
        )


class SpeechFailedError(SpeechError):
    """eSpeak NG could not speak this text with this voice."""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A speaker: a voice *file* name such as ``en-us+f2``, its speed, and its pitch (0 to 99)."""

    name: str
    rate_words_per_minute: int
    pitch: int


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A phone or a word from its first sample on; it ends where the next one starts."""

    label: str
    start_samples: int


@dataclass(frozen=True, kw_only=True)
class Speech:
    """What was spoken: 16-bit samples at ``SAMPLE_RATE_HZ``, and when each phone and word starts."""

    samples: NDArray[np.int16]
    phones: tuple[Segment, ...]
    words: tuple[Segment, ...]


class _EventName(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """``espeak_EVENT`` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventName),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Speaker:
    """eSpeak NG, loaded and initialised once in this process; every ``speak`` runs in a child of it."""

    def __init__(self) -> None:
        """Raises: SpeechMissingError."""
        try:
            loader = import_module("espeakng_loader")
            self._library = ctypes.CDLL(loader.get_library_path())
        except (ImportError, OSError) as exc:
            raise SpeechMissingError from exc
        options = _PHONEME_EVENTS | _RETURN_INSTEAD_OF_EXIT
        rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS_OUTPUT, 0, os.fsencode(loader.get_data_path()), options)
        if rate_hz != SAMPLE_RATE_HZ:
            raise SpeechMissingError

    def speak(self, text: str, voice: Voice, seed: int) -> Speech:
        """Speak one line of space-separated words. Raises: SpeechFailedError."""
        try:
            return _in_child(lambda: self._synthesise(text, voice, seed))
        except SpeechFailedError as exc:
            raise SpeechFailedError(f"eSpeak NG cannot say {text!r} with voice {voice.name!r}: {exc}") from exc

    def _synthesise(self, text: str, voice: Voice, seed: int) -> Speech:
        pieces: list[NDArray[np.int16]] = []
        phones: list[Segment] = []
        words: list[Segment] = []
        word_at = _words_by_position(text)

        def receive(wav: Any, length_samples: int, events: Any) -> int:
            if wav and length_samples:
                pieces.append(np.ctypeslib.as_array(wav, (length_samples,)).copy())
            index = 0
            while events[index].type != _END_OF_LIST:
                event = events[index]
                if event.type == _PHONEME:
                    phones.append(Segment(label=event.id.string.decode(), start_samples=event.sample))
                elif event.type == _WORD:
                    words.append(Segment(label=word_at[event.text_position - 1], start_samples=event.sample))
                index += 1
            return 0

        callback = _CALLBACK(receive)
        library, encoded = self._library, text.encode()
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        library.espeak_SetSynthCallback(callback)
        _require_zero(library.espeak_SetVoiceByName(voice.name.encode()), "no such voice")
        library.espeak_SetParameter(_RATE, voice.rate_words_per_minute, 0)
        library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        size = ctypes.c_size_t(len(encoded) + 1)
        _require_zero(
            library.espeak_Synth(encoded, size, 0, _POSITION_IN_CHARACTERS, 0, _UTF8, None, None), "no speech"
        )
        _require_zero(library.espeak_Synchronize(), "no speech")
        return Speech(samples=np.concatenate(pieces), phones=tuple(phones), words=tuple(words))


def _words_by_position(text: str) -> dict[int, str]:
    """Each word by the position of its first character."""
    position, found = 0, {}
    for word in text.split(" "):
        found[position] = word
        position += len(word) + 1
    return found


def _require_zero(code: int, complaint: str) -> None:
    if code != 0:
        raise SpeechFailedError(f"{complaint} (code {code})")


def _in_child(work: Callable[[], Speech]) -> Speech:
    """Run ``work`` in a forked child. Raises: SpeechFailedError, with what went wrong there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            message = _pack(work())
        except Exception as exc:  # whatever it was, the parent must hear of it: it raises
            message = _pack(str(exc) or type(exc).__name__)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(message)
        os._exit(0)  # not sys.exit: the parent's exit handlers are not ours to run
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    return _unpack(message)


def _pack(speech: Speech | str) -> bytes:
    """One line of JSON, then the samples; or the JSON of a complaint."""
    if isinstance(speech, str):
        return json.dumps(speech).encode()
    header = {
        kind: [(segment.label, segment.start_samples) for segment in segments]
        for kind, segments in (("phones", speech.phones), ("words", speech.words))
    }
    return json.dumps(header).encode() + b"\n" + speech.samples.tobytes()


def _unpack(message: bytes) -> Speech:
    header, _, samples = message.partition(b"\n")
    if not samples:
        raise SpeechFailedError(json.loads(header) if header else "the speaking process died")
    times = json.loads(header)
    phones, words = (
        tuple(Segment(label=label, start_samples=start_samples) for label, start_samples in times[kind])
        for kind in ("phones", "words")
    )
    return Speech(samples=np.frombuffer(samples, dtype=np.int16), phones=phones, words=words)
