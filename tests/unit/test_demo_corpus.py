"""The demo's speech: reproducible, honestly split, wrong where it says so, and understood by the shipped teacher."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import soundfile

from demo import corpus
from demo.corpus import ForeignFolderError, build, speak_line
from demo.script import FOR_STUDENT, SPLITS, VARIANTS, VOCABULARY, Line, write_script
from demo.speech import Speaker, SpeechFailedError, Voice

TINY = replace(FOR_STUDENT, train_speakers=2, dev_speakers=1, test_speakers=1, utterances_per_speaker=3)


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture(scope="module")
def tiny_corpus(speaker: Speaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    build(folder, TINY, ignore_progress)
    return folder


def ignore_progress(done: int, total: int) -> None:
    pass


def variant_of(line: Line) -> str:
    return line.voice.name.partition("+")[2]


def test_an_utterance_is_bit_identical_whatever_was_spoken_before(speaker: Speaker) -> None:
    lines = list(write_script(TINY))[:4]
    forwards = [speak_line(speaker, line).samples.tobytes() for line in lines]
    backwards = [speak_line(speaker, line).samples.tobytes() for line in reversed(lines)]
    assert forwards == backwards[::-1]


def test_two_builds_are_bit_identical(tiny_corpus: Path, tmp_path: Path) -> None:
    build(tmp_path, TINY, ignore_progress)
    assert (tmp_path / "manifest.json").read_bytes() == (tiny_corpus / "manifest.json").read_bytes()


def test_a_line_does_not_depend_on_how_many_others_there_are() -> None:
    few, many = set(write_script(TINY)), set(write_script(replace(TINY, train_speakers=9, utterances_per_speaker=5)))
    assert few < many


def test_splits_share_no_variant() -> None:
    heard = {split: {variant_of(line) for line in write_script(FOR_STUDENT) if line.split == split} for split in SPLITS}
    for first, second in pairwise([*SPLITS, SPLITS[0]]):
        assert not heard[first] & heard[second]


def test_variants_that_sound_alike_are_in_one_split() -> None:
    numbered = {variant.lower(): split for split in SPLITS for variant in VARIANTS[split] if not variant[1:].isdigit()}
    families: dict[str, set[str]] = {}
    for variant, split in numbered.items():
        families.setdefault(variant.rstrip("0123456789"), set()).add(split)
    assert all(len(splits) == 1 for splits in families.values())


def test_about_30_percent_of_the_training_words_are_replaced_and_none_elsewhere() -> None:
    replaced = {split: [0, 0] for split in SPLITS}
    for line in write_script(FOR_STUDENT):
        for said, claimed in zip(line.words.split(), line.transcript.split(), strict=True):
            assert claimed in VOCABULARY
            replaced[line.split][0] += said != claimed
            replaced[line.split][1] += 1
    assert 0.27 < replaced["train"][0] / replaced["train"][1] < 0.33
    assert replaced["dev"][0] == replaced["test"][0] == 0


def test_layout_is_librispeech_in_16_khz_mono(tiny_corpus: Path) -> None:
    for line in write_script(TINY):
        chapter = tiny_corpus / line.split / str(line.speaker_id) / "1"
        info = soundfile.info(chapter / f"{line.speaker_id}-1-{line.index:04d}.flac")
        assert (info.samplerate, info.channels, info.format) == (16_000, 1, "FLAC")
        assert 0.3 <= info.duration <= 2.0
        transcript = (chapter / f"{line.speaker_id}-1.trans.txt").read_text(encoding="utf-8").splitlines()
        assert transcript[line.index] == f"{line.speaker_id}-1-{line.index:04d} {line.transcript}"


def test_a_complete_corpus_is_not_built_again(tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "Speaker", None)  # calling it would fail
    assert build(tiny_corpus, TINY, ignore_progress) is False


def test_a_damaged_or_other_corpus_is_built_again(speaker: Speaker, tmp_path: Path) -> None:
    spec = replace(TINY, train_speakers=1, utterances_per_speaker=1)
    assert build(tmp_path, spec, ignore_progress) is True
    next(tmp_path.rglob("*.flac")).write_bytes(b"fLaC")
    assert build(tmp_path, spec, ignore_progress) is True
    assert build(tmp_path, replace(spec, seed=2), ignore_progress) is True
    assert build(tmp_path, replace(spec, seed=2), ignore_progress) is False


def test_a_build_that_was_killed_leaves_nothing_that_looks_complete(speaker: Speaker, tmp_path: Path) -> None:
    def die(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    spec = replace(TINY, train_speakers=1)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, spec, die)
    assert not any((tmp_path / split).exists() for split in SPLITS)
    assert build(tmp_path, spec, ignore_progress) is True
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "dev", "manifest.json", "test", "train"]


def test_speech_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(ForeignFolderError, match="choose another folder"):
        build(tmp_path, TINY, ignore_progress)


def test_a_missing_espeak_is_one_sentence_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert corpus.main([str(tmp_path / "corpus")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'distune[demo]'" in error


def test_a_voice_that_does_not_exist_is_named(speaker: Speaker) -> None:
    with pytest.raises(SpeechFailedError, match="nobody"):
        speaker.speak("volume up", Voice(name="nobody", rate_words_per_minute=200, pitch=50), 0)
