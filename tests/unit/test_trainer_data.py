"""Scanning a folder of speech: what is kept, what is counted, and the sentence for each thing that is wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.unit.tiny import make_world
from trainer.audio import read_mono
from trainer.config import DataSpec
from trainer.data import describe_conversions, scan, verify
from trainer.errors import BadInputError

SPEC = DataSpec(train="", dev="", min_duration_s=0.1)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_world().train, tmp_path / "corpus"))


def audio(corpus: Path, name: str = "1-1-0000", suffix: str = ".flac") -> Path:
    return corpus / "1" / "1" / f"{name}{suffix}"


def transcript(corpus: Path) -> Path:
    return corpus / "1" / "1" / "1-1.trans.txt"


def rewrite(corpus: Path, old: str, new: str) -> None:
    transcript(corpus).write_text(transcript(corpus).read_text().replace(old, new))


def test_scan_counts_utterances_speakers_and_hours(corpus: Path) -> None:
    found = scan(str(corpus), SPEC)
    split = found.summarize()
    assert (split.utterances, split.speakers, split.dropped) == (18, 3, {})
    assert split.hours == pytest.approx(sum(soundfile.info(f).duration for f in corpus.rglob("*.flac")) / 3600)
    assert [u.name for u in found.utterances] == sorted(u.name for u in found.utterances)
    assert found.utterances[0].text == found.utterances[0].text.lower()
    verify(found, lambda: None)


def test_text_is_kept_as_it_is_where_asked(corpus: Path) -> None:
    found = scan(str(corpus), SPEC.model_copy(update={"text": "as_is"}))
    assert all(u.text == u.text.upper() for u in found.utterances)


def test_short_long_and_empty_utterances_are_left_out_and_counted(corpus: Path) -> None:
    soundfile.write(audio(corpus), np.zeros(800), 16_000)
    soundfile.write(audio(corpus, "1-1-0001"), np.zeros(48_000), 16_000)
    lines = transcript(corpus).read_text().splitlines()
    lines[2] = "1-1-0002"
    transcript(corpus).write_text("\n".join(lines))
    found = scan(str(corpus), SPEC.model_copy(update={"max_duration_s": 2.5}))
    assert found.dropped == {"shorter than 0.1 s": 1, "longer than 2.5 s": 1, "empty transcript": 1}
    assert len(found.utterances) == 15


def test_wav_stereo_and_other_sample_rates_are_converted_and_named(corpus: Path) -> None:
    tone = np.sin(np.arange(8_000) * 2 * np.pi * 200 / 8_000)
    audio(corpus).unlink()
    soundfile.write(audio(corpus, suffix=".wav"), np.stack([tone, 0 * tone], axis=1), 8_000)
    found = scan(str(corpus), SPEC)
    first = found.utterances[0]
    samples = read_mono(first.audio, first.header)
    expected = 0.5 * np.sin(np.arange(16_000) * 2 * np.pi * 200 / 16_000)
    assert samples.dtype == np.float32
    assert len(samples) == first.header.num_samples == 16_000
    assert np.abs(samples - expected)[200:-200].max() < 0.01
    assert describe_conversions(found) == [
        f"1 files of {corpus} are resampled from 8000 Hz to 16 kHz, 1-1-0000.wav the first",
        f"1 files of {corpus} have more than one channel and are averaged to mono, 1-1-0000.wav the first",
    ]


def break_off(file: Path, fraction: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * fraction)])


def as_wav(corpus: Path) -> Path:
    samples, rate = soundfile.read(audio(corpus))
    audio(corpus).unlink()
    soundfile.write(audio(corpus, suffix=".wav"), samples, rate)
    return audio(corpus, suffix=".wav")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_a_flac_that_breaks_off_passes_the_scan_and_fails_verification(corpus: Path, fraction: float) -> None:
    break_off(audio(corpus), fraction)
    found = scan(str(corpus), SPEC)
    with pytest.raises(BadInputError, match=r"1-1-0000\.flac is damaged or breaks off before its end; copy it again"):
        verify(found, lambda: None)


@pytest.mark.parametrize("fraction", [0.5, 0.999])
def test_a_wav_that_breaks_off_fails_the_scan(corpus: Path, fraction: float) -> None:
    break_off(as_wav(corpus), fraction)
    with pytest.raises(BadInputError, match=r"1-1-0000\.wav is damaged or breaks off"):
        scan(str(corpus), SPEC)


def test_a_flac_with_a_flipped_byte_fails_verification(corpus: Path) -> None:
    content = bytearray(audio(corpus).read_bytes())
    content[len(content) // 2] ^= 0xFF
    audio(corpus).write_bytes(content)
    with pytest.raises(BadInputError, match=r"1-1-0000\.flac is damaged"):
        verify(scan(str(corpus), SPEC), lambda: None)


def test_each_inconsistency_is_refused_with_its_file_and_remedy(corpus: Path, tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(BadInputError) as caught:
            scan(str(corpus), SPEC)
        return str(caught.value)

    spare = shutil.copytree(corpus, tmp_path / "spare")

    def restore() -> None:
        shutil.rmtree(corpus)
        shutil.copytree(spare, corpus)

    audio(corpus).unlink()
    assert "has a line for 1-1-0000 but there is no 1-1-0000.flac or .wav; restore the audio" in refusal()
    restore()
    rewrite(corpus, "1-1-0000 ", "1-1-9999 ")
    shutil.copy(audio(corpus), audio(corpus, "1-1-9999"))
    assert "no transcript has a line for" in refusal()
    restore()
    rewrite(corpus, "1-1-0000 ", "1-1-0001 ")
    assert "1-1-0001 has a line in" in refusal()
    restore()
    shutil.copy(audio(corpus), audio(corpus, suffix=".wav"))
    assert "have the same name; delete or rename one of them" in refusal()
    restore()
    audio(corpus).write_bytes(b"")
    assert "1-1-0000.flac is empty; copy it again" in refusal()
    restore()
    audio(corpus).write_bytes(b"this is text")
    assert "1-1-0000.flac is no readable audio file; copy it again" in refusal()
    restore()
    transcript(corpus).write_bytes(b"1-1-0000 caf\xe9")
    assert "1-1.trans.txt cannot be read as UTF-8" in refusal()
    restore()
    for file in corpus.rglob("*.txt"):
        file.write_text("")
    assert "are empty; each line must be" in refusal()
    for file in corpus.rglob("*.txt"):
        file.unlink()
    assert "holds no *.trans.txt; it must have LibriSpeech layout" in refusal()
    shutil.rmtree(corpus)
    assert f"the data folder {corpus} does not exist; correct data.train" in refusal()


def test_data_of_which_nothing_is_left_is_refused(corpus: Path) -> None:
    with pytest.raises(
        BadInputError, match=r"no utterance of .* is left after filtering \(18 shorter than 5 s\); widen"
    ):
        scan(str(corpus), SPEC.model_copy(update={"min_duration_s": 5.0}))
