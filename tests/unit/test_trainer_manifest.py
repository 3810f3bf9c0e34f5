"""JSON-lines manifests: what is read, and the sentence for each line that is not as it must be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tiny import make_world
from trainer.config import DataSpec
from trainer.data import scan
from trainer.errors import BadInputError

SPEC = DataSpec(train="", dev="", min_duration_s=0.1)
GOOD = '{"audio": "a.flac", "text": "Lamp On"}'


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest to be written, beside the second of silence that it may name."""
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.flac", np.zeros(16_000), 16_000)
    return tmp_path / "train.jsonl"


def refusal(manifest: Path, content: str | bytes) -> str:
    manifest.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadInputError) as caught:
        scan(str(manifest), SPEC)
    return str(caught.value)


def test_a_manifest_says_what_the_folder_in_librispeech_layout_says(tmp_path: Path) -> None:
    corpus = make_world().train
    expected = scan(str(corpus), SPEC)
    lines = [
        {"audio": str(u.audio), "text": u.text.upper(), "duration": round(u.duration_s, 1), "speaker": u.speaker}
        for u in reversed(expected.utterances)
    ]
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    found = scan(str(manifest), SPEC)
    assert [(u.audio, u.header, u.text, u.speaker) for u in found.utterances] == [
        (u.audio, u.header, u.text, u.speaker) for u in expected.utterances
    ]
    assert found.summarize() == expected.summarize().model_copy(update={"path": str(manifest)})


def test_paths_are_relative_to_the_manifest_and_names_do_not_depend_on_its_place(manifest: Path) -> None:
    manifest.write_text('{"audio": "./x/../a.flac", "text": "lamp"}')
    (utterance,) = scan(str(manifest), SPEC).utterances
    assert (utterance.name, utterance.audio, utterance.speaker) == ("a.flac", manifest.parent / "a.flac", None)
    assert scan(str(manifest), SPEC).summarize().speakers == 0


def test_a_byte_order_mark_windows_lines_and_blank_lines_change_nothing(manifest: Path) -> None:
    manifest.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + GOOD.replace("a.", "b.").encode() + b"\r\n")
    assert [u.text for u in scan(str(manifest), SPEC).utterances] == ["lamp on", "lamp on"]


def test_a_line_separator_within_a_text_ends_no_line(manifest: Path) -> None:
    manifest.write_text('{"audio": "a.flac", "text": "lamp\u2028on\u0085off"}', encoding="utf-8")
    assert len(scan(str(manifest), SPEC).utterances) == 1


def test_an_empty_text_is_left_out_and_counted(manifest: Path) -> None:
    manifest.write_text(GOOD + '\n{"audio": "b.flac", "text": " "}')
    assert scan(str(manifest), SPEC).dropped == {"empty transcript": 1}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{audio: a.flac}", "not JSON: Expecting property name enclosed in double quotes (column 2); correct the line"),
        (GOOD + GOOD, "not JSON: Extra data"),
        ("\ufeff" + GOOD, "not JSON"),
        ('["a.flac", "lamp"]', "the line is no JSON object; write"),
        ("[" * 100_000, "not JSON"),
        ('{"audio": "a.flac"}', "the key text is missing; add it"),
        ('{"text": "lamp"}', "the key audio is missing; add it"),
        ('{"audio_filepath": "a.flac", "text": "lamp"}', "unknown key audio_filepath; did you mean audio?"),
        (
            '{"audio": "a.flac", "text": "x", "zz": 1}',
            "unknown key zz; known are audio, text, duration, speaker; remov",
        ),
        ('{"audio": "a.flac", "text": "x", "text": "y"}', "a key is given twice"),
        ('{"audio": "a.flac", "text": ["lamp"]}', "text must be text in quotes (given: ['lamp']); correct it"),
        ('{"audio": 7, "text": "lamp"}', "audio must be text in quotes (given: 7)"),
        ('{"audio": "a.flac", "text": "x", "speaker": 7}', "speaker must be text in quotes (given: 7)"),
        ('{"audio": " ", "text": "lamp"}', "audio is empty; give it or delete the line"),
        ('{"audio": "a\\u0000.flac", "text": "lamp"}', "audio holds a character that is none"),
        ('{"audio": "a.flac", "text": "\\ud800"}', "text holds a character that is none"),
        ('{"audio": "a.flac", "text": "x", "duration": "1"}', "duration must be a number of seconds (given: '1')"),
        ('{"audio": "a.flac", "text": "x", "duration": true}', "duration must be a number of seconds (given: True)"),
        ('{"audio": "a.flac", "text": "x", "duration": -1}', "duration must be above 0 and finite (given: -1"),
        ('{"audio": "a.flac", "text": "x", "duration": NaN}', "NaN is no JSON number"),
        ('{"audio": "a.flac", "text": "x", "duration": 1e999}', "duration must be above 0 and finite (given: inf)"),
        ('{"audio": "a.flac", "text": "x", "duration": 1.2}', "the duration is given as 1.2 s but"),
        ('{"audio": "c.flac", "text": "lamp"}', "there is no file"),
        ('{"audio": ".", "text": "lamp"}', "there is no file"),
        ('{"audio": "train.jsonl", "text": "lamp"}', "train.jsonl is no readable audio file; copy it again"),
        ('{"audio": "./b.flac", "text": "lamp"}', "train.jsonl:1; delete one of the two lines"),
    ],
)
def test_each_wrong_line_gets_one_sentence_with_its_number(manifest: Path, line: str, sentence: str) -> None:
    said = refusal(manifest, GOOD.replace("a.", "b.") + "\n" + line + "\n")
    assert said.startswith(f"{manifest}:2: ")
    assert sentence in said
    assert "\n" not in said


def test_a_manifest_that_is_none_is_refused_as_a_whole(manifest: Path, tmp_path: Path) -> None:
    assert "the manifest" in refusal(manifest, "") and "is empty; give one JSON object a line" in refusal(
        manifest, "\n"
    )
    assert refusal(manifest, GOOD.encode() + b'\n{"audio": "caf\xe9"}').startswith(
        f"{manifest}:2: the line is not UTF-8"
    )
    for place, sentence in (
        (tmp_path / "absent.jsonl", "does not exist; correct data.train"),
        (tmp_path / "a.flac", "is neither a folder nor a .jsonl manifest; correct data.train"),
    ):
        with pytest.raises(BadInputError, match=sentence):
            scan(str(place), SPEC)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
lines = st.dictionaries(st.sampled_from(["audio", "text", "duration", "speaker", "x"]), json_values | st.just("a.flac"))


@settings(max_examples=200, deadline=None)
@given(
    content=st.binary()
    | st.text().map(lambda t: t.encode(errors="replace"))
    | lines.map(lambda d: json.dumps(d).encode())
)
def test_any_line_gives_a_scan_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    if not folder.exists():
        folder.mkdir()
        soundfile.write(folder / "a.flac", np.zeros(16_000), 16_000)
    manifest = folder / "train.jsonl"
    manifest.write_bytes(content)
    try:
        found = scan(str(manifest), SPEC)
    except BadInputError as exc:
        assert str(manifest) in str(exc)
    else:
        assert found.utterances
