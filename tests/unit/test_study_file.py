"""Study files: what is read, what is refused, and with which sentence."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.errors import ConfigError
from search.study_file import load_study_spec, parse_study_spec

GOOD = """\
study:
  name: demo
  trials: 12
  sampler: {name: tpe, n_startup_trials: 5}
  pruner: median
space:
  kl_weight: {low: 1e-3, high: 10, log: true}
  batch_size: {choices: [4, 8]}
trial:
  data: {train: train, dev: dev}
  teacher: {model: ./teacher}
  optim: {lr: 1e-3}
"""


def parse(text: str) -> object:
    return parse_study_spec(text, source="study.yaml", base=Path("/base"))


def test_a_study_file_is_read_with_absolute_paths_and_the_studys_seed() -> None:
    spec = parse_study_spec(GOOD.replace("trials: 12", "seed: 7"), source="study.yaml", base=Path("/base"))
    assert spec.trial.data.train == "/base/train"
    assert spec.trial.teacher.model == "/base/teacher"
    assert spec.study.runs == "/base/runs"
    assert spec.trial.seed == 7
    assert spec.trial.optim.lr == 0.001
    assert spec.study.sampler.options == {"n_startup_trials": 5}


def test_a_hub_name_stays_a_hub_name_unless_there_is_such_a_folder(tmp_path: Path) -> None:
    text = GOOD.replace("./teacher", "openai/whisper-large-v2")
    assert parse_study_spec(text, source="s", base=tmp_path).trial.teacher.model == "openai/whisper-large-v2"
    (tmp_path / "openai" / "whisper-large-v2").mkdir(parents=True)
    spec = parse_study_spec(text, source="s", base=tmp_path)
    assert spec.trial.teacher.model == str(tmp_path / "openai" / "whisper-large-v2")


def test_the_resolved_configuration_reads_back_equal() -> None:
    spec = parse_study_spec(GOOD, source="study.yaml", base=Path("/base"))
    assert parse_study_spec(spec.to_yaml(), source="study.yaml", base=Path("/elsewhere")) == spec


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("  trials: 12", "  trial: 12", "study.yaml:3: study.trial: unknown key; did you mean trials?"),
        ("study:", "studi:", "study.yaml:1: studi: unknown key; did you mean study?"),
        ("lr: 1e-3", "learnrate: 1", "study.yaml:12: trial.optim.learnrate: unknown key"),
        ("log: true", "logg: true", "study.yaml:7: space.kl_weight.logg: unknown key; did you mean log?"),
        ("trials: 12", "trials: -3", "study.yaml:3: study.trials: Input should be greater than or equal to 1"),
        ("trials: 12", "trials: many", "study.yaml:3: study.trials: Input should be a valid integer"),
        ("trials: 12", "trials: 12\n  trials: 13", "study.yaml:4: study.trials is given twice; keep one"),
        ("name: demo", "name: ../x", "study.yaml:2: study.name: '../x' cannot name a study; use 1 to 100 of"),
        ("name: demo\n", "seed: 1\n", "study.yaml:1: study.name: is missing; add it"),
        ("low: 1e-3", "low: 20", "study.yaml:7: space.kl_weight: low (20) is above high (10); swap them"),
        ("low: 1e-3", "low: -1", "study.yaml:7: space.kl_weight: low (-1) must be above 0 on a log scale"),
        ("choices: [4, 8]", "choices: []", "study.yaml:8: space.batch_size: choices is empty"),
        ("choices: [4, 8]", "choices: [4, 4]", "study.yaml:8: space.batch_size: choices lists a value twice"),
        ("pruner: median", "pruner: wilcoxon", "study.yaml:5: study.pruner.name: Input should be 'median'"),
        ("name: tpe", "name: cmaes", "study.yaml:4: study.sampler.name: Input should be 'tpe'"),
        ("dev: dev}", "dev: dev", "study.yaml:11: not YAML: expected ',' or '}'"),
        ("trials: 12", "storage: 'postgresql://u:pw@h/d'", "study.yaml:3: study.storage: holds a password"),
        (
            "optim: {lr: 1e-3}",
            "student: {lora: {rang: 4}}",
            "study.yaml:12: trial.student.lora.rang: unknown key; did you mean rank?",
        ),
        ("lr: 1e-3", "lr: .nan", "study.yaml:12: trial.optim.lr: Input should be"),
    ],
)
def test_a_mistake_is_named_with_its_key_its_line_and_the_remedy(old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        parse(GOOD.replace(old, new, 1))
    assert str(caught.value).startswith(sentence)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "3", "[]", "study", "\0", "a: !!python/object:os.system {}", "a: &a [*a]"])
def test_what_is_no_study_file_gets_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith("study.yaml")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the study file /nowhere/s.yaml: No such file"):
        load_study_spec(Path("/nowhere/s.yaml"))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD)), st.text(max_size=8))
def test_whatever_is_typed_into_a_study_file_gives_a_study_or_a_sentence(at: int, typed: str) -> None:
    try:
        parse(GOOD[:at] + typed + GOOD[at:])
    except ConfigError as exc:
        assert str(exc).startswith("study.yaml")
