"""Which searched fields cannot change the student, and what a study hears of it."""

from typing import Any

import pytest

from search.config import StudySpec
from search.dead_knobs import find_dead_knobs, judge
from tests.studies import make_study_spec
from trainer.events import Metrics, PreflightResult, Split, TermReach

WEIGHT = {"low": 0.001, "high": 10, "log": True}


def found(*, geodesic: int = 36, has_dropout: bool = True, **fields: Any) -> PreflightResult:
    """What a preflight reports."""
    split = Split(path="/train", utterances=1, hours=1.0, speakers=1, dropped={})
    metrics = Metrics(wer=0.1, errors=1, words=10, utterances=1, interval=(0, 1), cross_entropy=1.0, kl=None, rtf=0.1)
    reach = {"cross_entropy": 36, "kl": 36, "geodesic": geodesic, **fields}
    return PreflightResult(
        train=split,
        dev=split,
        test=None,
        teacher_dev=metrics,
        teacher_test=None,
        student_parameters=100,
        trainable_parameters=10,
        trainable_tensors=36,
        reach=tuple(TermReach(term=term, tensors=tensors) for term, tensors in reach.items()),
        has_dropout=has_dropout,
        device="cpu",
        precision="fp32",
        warnings=("something else",),
    )


def paths(spec: StudySpec, result: PreflightResult) -> list[str]:
    return [each.path for each in find_dead_knobs(spec, result)]


def with_loss(spec: StudySpec, **loss: Any) -> StudySpec:
    trial = spec.trial.model_copy(update={"loss": spec.trial.loss.model_copy(update=loss)})
    return spec.model_copy(update={"trial": trial})


def test_the_notes_default_recipe_searches_a_weight_that_reaches_nothing_that_is_kept() -> None:
    spec = make_study_spec(space={"geo_weight": WEIGHT, "kl_weight": WEIGHT})
    (dead,) = find_dead_knobs(spec, found(geodesic=0))
    assert dead.path == "loss.geo_weight"
    assert dead.sentence == (
        "searching geo_weight cannot change the student: the geodesic term reaches none of its 36 trainable tensors "
        "(measured by a backward pass); it trains the projector, which is thrown away; set loss.geo_states: decoder, "
        "or let the encoder learn, or take geo_weight out of the space"
    )
    assert paths(spec, found(geodesic=4)) == []


def test_what_matters_only_through_a_dead_term_is_dead_too() -> None:
    space = {"temperature": {"low": 1, "high": 3}, "kl_weight": WEIGHT, "kl_warmup_fraction": {"low": 0, "high": 1}}
    assert paths(make_study_spec(space=space), found(kl=0)) == [
        "loss.temperature",
        "loss.kl_weight",
        "loss.kl_warmup_fraction",
    ]
    assert paths(make_study_spec(space=space), found()) == []


def test_what_matters_only_through_a_term_of_weight_0_is_dead() -> None:
    spec = with_loss(make_study_spec(space={"temperature": {"low": 1, "high": 3}}), kl_weight=0.0)
    (dead,) = find_dead_knobs(spec, found())
    assert "loss.kl_weight is 0; raise it, or take temperature out of the space" in dead.sentence
    searched = make_study_spec(space={"temperature": {"low": 1, "high": 3}, "kl_weight": {"choices": [0, 1]}})
    assert paths(with_loss(searched, kl_weight=0.0), found()) == []
    never = make_study_spec(space={"geo_states": {"choices": ["encoder", "decoder"]}, "geo_weight": {"choices": [0]}})
    assert paths(with_loss(never, geo_weight=0.0), found()) == ["loss.geo_states"]


@pytest.mark.parametrize(
    "reviving", [{"geo_states": {"choices": ["encoder", "decoder"]}}, {"encoder.frozen": {"choices": [True, False]}}]
)
def test_a_weight_is_not_called_dead_where_other_trials_reach_more(reviving: dict[str, Any]) -> None:
    assert paths(make_study_spec(space={"geo_weight": WEIGHT, **reviving}), found(geodesic=0)) == []


def test_knobs_that_are_dead_by_configuration() -> None:
    space = {"dropout": {"low": 0, "high": 0.5}, "micro_batch_size": {"choices": [2, None]}, "lr": WEIGHT}
    assert paths(make_study_spec(space=space), found(has_dropout=False)) == [
        "student.dropout",
        "optim.micro_batch_size",
    ]
    assert paths(make_study_spec(space=space), found()) == ["optim.micro_batch_size"]


def test_a_study_is_warned_and_a_strict_one_refused() -> None:
    space = {"geo_weight": WEIGHT, "lr": WEIGHT}
    result, refusal = judge(make_study_spec(space=space), found(geodesic=0))
    assert refusal is None
    assert result.dead_knobs == ("loss.geo_weight",)
    assert result.warnings[0] == "something else"
    assert result.warnings[1].startswith("searching geo_weight cannot change the student")
    _, refusal = judge(make_study_spec(space=space, strict=True), found(geodesic=0))
    assert refusal is not None
    assert refusal.startswith("searching geo_weight cannot change the student")
    assert refusal.endswith("(--strict refuses what is otherwise a warning)")
    assert judge(make_study_spec(space=space, strict=True), found()) == (found(), None)


@pytest.mark.parametrize(("schedule", "dead"), [("linear", ["loss.taid.alpha"]), ("adaptive", [])])
def test_what_a_linear_schedule_does_not_look_at_is_dead(schedule: str, dead: list[str]) -> None:
    spec = make_study_spec(space={"loss.taid.alpha": {"low": 1e-4, "high": 1e-2}}, taid={"schedule": schedule})
    assert paths(spec, found()) == dead


def test_a_hidden_term_on_a_frozen_encoders_states_is_dead() -> None:
    spec = make_study_spec(space={"hidden_weight": {"low": 0, "high": 1}})
    assert paths(spec, found(hidden=0)) == ["loss.hidden_weight"]
    assert paths(spec, found(hidden=36)) == []
