"""The search space: names, ranges, the baseline, and the way back from parameters."""

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.config import StudySpec
from search.errors import ConfigError
from search.space import baseline, distributions, recorded_parameters, searched_values, trial_spec
from tests.studies import make_study_spec
from trainer.config import TaidSpec
from trainer.student_spec import LoraSpec, WhisperStudentSpec


def test_short_and_dotted_names_mean_the_same_field() -> None:
    short = make_study_spec(space={"lr": {"low": 1e-5, "high": 1e-3}})
    dotted = make_study_spec(space={"optim.lr": {"low": 1e-5, "high": 1e-3}})
    assert trial_spec(short, {"lr": 5e-4}) == trial_spec(dotted, {"optim.lr": 5e-4})


def test_the_type_of_the_field_decides_the_distribution() -> None:
    spec = make_study_spec(
        space={
            "lr": {"low": 1e-5, "high": 1e-3, "log": True},
            "batch_size": {"low": 4, "high": 32, "step": 4},
            "geo_states": {"choices": ["encoder", "decoder"]},
            "student.decoder.keep": {"low": 1, "high": 4},
        }
    )
    assert distributions(spec) == {
        "lr": FloatDistribution(1e-5, 1e-3, log=True),
        "batch_size": IntDistribution(4, 32, step=4),
        "geo_states": CategoricalDistribution(("encoder", "decoder")),
        "student.decoder.keep": IntDistribution(1, 4),
    }


def test_an_optional_section_is_searched_where_it_is_given() -> None:
    space = {
        "loss.taid.start": {"low": 0.1, "high": 0.5},
        "alpha": {"low": 1e-5, "high": 1e-2, "log": True},
        "taid.space": {"choices": ["logit", "prob"]},
    }
    content = make_study_spec(space=space).model_dump()
    content["trial"]["loss"]["taid"] = {"schedule": "adaptive"}
    spec = StudySpec.model_validate(content)
    assert distributions(spec)["loss.taid.start"] == FloatDistribution(0.1, 0.5)
    parameters = {"loss.taid.start": 0.2, "alpha": 1e-3, "taid.space": "prob"}
    resolved = trial_spec(spec, parameters)
    assert resolved.loss.taid == TaidSpec(schedule="adaptive", start=0.2, alpha=1e-3, space="prob")
    assert recorded_parameters(spec, resolved) == parameters
    assert baseline(spec) == {"loss.taid.start": 0.1, "alpha": 5e-4, "taid.space": "logit"}


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"lrr": {"low": 1, "high": 2}}, "space.lrr: no field that a trial can vary has this name; did you mean lr?"),
        ({"lr": {"low": -1, "high": 2}}, "space.lr: -1.0 cannot be optim.lr: Input should be greater than 0"),
        ({"dropout": {"low": 0, "high": 1}}, "space.dropout: 1.0 cannot be student.dropout"),
        ({"batch_size": {"low": 1.5, "high": 2}}, "space.batch_size: optim.batch_size is a whole number"),
        ({"batch_size": {"choices": [0, 4]}}, "space.batch_size: 0 cannot be optim.batch_size"),
        ({"temperature": {"choices": ["hot"]}}, "space.temperature: 'hot' cannot be loss.temperature"),
        ({"geo_states": {"low": 1, "high": 2}}, "space.geo_states: loss.geo_states is not a number"),
        ({"seed": {"low": 1, "high": 2}}, "space.seed: this must be the same for every trial"),
        ({"optim.examples": {"low": 1, "high": 2}}, "space.optim.examples: this must be the same for every trial"),
        (
            {"loss.taid.start": {"low": 0, "high": 1}},
            "space.loss.taid.start: the trial section gives no loss.taid; add",
        ),
        (
            {"taid.start": {"low": 0, "high": 1}},
            "space.taid.start: the trial section gives no loss.taid; add trial.loss",
        ),
        ({"init": {"choices": ["copy"]}}, "space.init could mean student.encoder.init or student.decoder.init"),
        (
            {"student.lora.rank": {"low": 4, "high": 16}},
            "space.student.lora.rank: the trial section gives no student.lora; add trial.student.lora",
        ),
        (
            {"lr": {"low": 1e-5, "high": 1e-3}, "optim.lr": {"low": 1e-5, "high": 1e-3}},
            "space.optim.lr and space.lr both mean optim.lr; keep one",
        ),
    ],
)
def test_a_space_that_does_not_fit_the_trial_is_refused(space: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        distributions(make_study_spec(space=space))
    assert str(caught.value).startswith(sentence)


def test_the_fields_of_adapters_are_searched_by_dotted_name() -> None:
    space = {
        "student.lora.rank": {"low": 4, "high": 32, "step": 4},
        "alpha": {"low": 4, "high": 64, "log": True},
        "preset": {"choices": ["qv", "qkv"]},
        "student.lora.dropout": {"low": 0, "high": 0.3},
        "dropout": {"low": 0, "high": 0.5},
    }
    plain = make_study_spec(space=space)
    student = WhisperStudentSpec(lora=LoraSpec(dropout=0.1))
    spec = plain.model_copy(update={"trial": plain.trial.model_copy(update={"student": student})})
    assert distributions(spec)["student.lora.rank"] == IntDistribution(4, 32, step=4)
    parameters = {"student.lora.rank": 16, "alpha": 32.0, "preset": "qkv", "student.lora.dropout": 0.0, "dropout": 0.2}
    chosen = trial_spec(spec, parameters).student
    assert chosen.lora == LoraSpec(rank=16, alpha=32.0, preset="qkv", dropout=0.0)
    assert chosen.dropout == 0.2 and chosen.decoder.frozen


def test_the_values_of_a_field_are_those_it_is_searched_over_or_its_own() -> None:
    spec = make_study_spec(space={"lr": {"low": 1e-5, "high": 1e-3}, "batch_size": {"choices": [8, 16]}})
    assert searched_values(spec, "optim.lr") == (1e-5, 1e-3)
    assert searched_values(spec, "optim.batch_size") == (8, 16)
    assert searched_values(spec, "loss.temperature") == (2.0,)


def test_the_baseline_is_what_the_trial_section_says() -> None:
    spec = make_study_spec()
    assert baseline(spec) == {"kl_weight": 0.020584, "lr": 2.6e-4, "batch_size": 8}


def test_a_baseline_outside_the_space_is_refused() -> None:
    spec = make_study_spec(space={"lr": {"low": 1e-3, "high": 1e-2}})
    with pytest.raises(ConfigError, match=r"trial.optim.lr is 0.00026, outside space.lr; the trial section is the"):
        baseline(spec)


def test_parameters_and_trial_configuration_translate_both_ways() -> None:
    spec = make_study_spec()
    parameters = {"kl_weight": 0.5, "lr": 3e-4, "batch_size": 16}
    resolved = trial_spec(spec, parameters)
    assert (resolved.loss.kl_weight, resolved.optim.lr, resolved.optim.batch_size) == (0.5, 3e-4, 16)
    assert recorded_parameters(spec, resolved) == parameters
    with pytest.raises(ConfigError, match="learning_rate is not in the space of study s: kl_weight, lr, batch_size"):
        trial_spec(spec, {"learning_rate": 1.0})


def test_a_choice_that_does_not_fit_the_rest_is_refused_with_the_rests_own_sentence() -> None:
    spec = make_study_spec(space={"batch_size": {"choices": [4, 64]}})
    data = spec.trial.data.model_copy(update={"bucket_window": 64})
    spec = spec.model_copy(update={"trial": spec.trial.model_copy(update={"data": data})})
    with pytest.raises(ConfigError, match=r"^space\.batch_size: data\.bucket_window \(64\) must be above optim\.batch"):
        distributions(spec)
