"""Every recipe is a study that can be launched, as far as can be told without its data and models."""

from pathlib import Path

import pytest

from search.dead_knobs import find_dead_knobs
from search.study import check_spec
from search.study_file import load_study_spec
from tests.unit.test_dead_knobs import found

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"demo", "librispeech-whisper-large-v2"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_study(path: Path) -> None:
    spec = load_study_spec(path)
    check_spec(spec)
    assert spec.study.runs == str(path.parents[1] / "runs")


def test_the_notes_recipe_searches_no_dead_knob_and_would_on_encoder_states() -> None:
    spec = load_study_spec(next(path for path in RECIPES if path.stem == "librispeech-whisper-large-v2"))
    assert spec.trial.loss.geo_states == "decoder"
    assert find_dead_knobs(spec, found()) == ()
    assert [each.path for each in find_dead_knobs(spec, found(geodesic=0))] == ["loss.geo_weight"]
