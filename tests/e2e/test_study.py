"""A study from `distune launch` to `best_params.json`, with whatever number of workers."""

import json
from collections import Counter
from pathlib import Path

import pytest

from search.proposal import PROPOSAL
from search.space import recorded_parameters, trial_spec
from search.study_file import parse_study_spec
from storage.results import read_best
from tests.e2e.conftest import Playground
from tests.homes import MakeHome, has_server
from trainer.config import TrialSpec


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_a_study_ends_with_exactly_its_budget(playground: Playground, workers: int) -> None:
    output = playground.run("launch", playground.write(trials=12, examples=32), "--workers", str(workers))
    states = Counter(trial.state.name for trial in playground.study().optuna_study.get_trials())
    assert sum(states.values()) == 12
    assert states["COMPLETE"] + states["PRUNED"] == 12
    assert not playground.survivors()
    assert "the best of 12 trials" in output


def test_the_run_folder_holds_what_the_readme_says(playground: Playground) -> None:
    playground.run("launch", playground.write(trials=2))
    folder = playground.run_folder()
    best = read_best(folder / "best_params.json")
    attempt = folder / "trials" / f"{best.trial:04d}" / "attempt-1"
    assert {path.name for path in attempt.iterdir()} >= {
        "training_config.json",
        "training_history.json",
        "checkpoint.pt",
        "tb",
    }
    assert list((attempt / "tb").iterdir())
    spec = parse_study_spec((folder / "study.yaml").read_text(), source="study.yaml", base=Path("/"))
    assert spec == playground.study().spec


def test_best_params_leads_back_to_the_same_configuration(playground: Playground) -> None:
    playground.run("launch", playground.write(trials=3))
    best = read_best(playground.run_folder() / "best_params.json")
    study = playground.study()
    resolved = TrialSpec.model_validate(best.trial_spec)
    assert trial_spec(study.spec, best.parameters) == resolved
    assert recorded_parameters(study.spec, resolved) == best.parameters
    assert best.value == best.dev.wer == min(t.value for t in study.optuna_study.get_trials() if t.value is not None)
    assert best.dev.words > 0 and best.dev.interval[0] <= best.value <= best.dev.interval[1]
    assert best.teacher is not None and best.baseline is not None and best.baseline.dev is not None
    assert json.loads(playground.run("best", "tiny", "--json"))["parameters"] == best.parameters


def test_one_worker_gives_the_same_study_twice(playground: Playground) -> None:
    playground.run(
        "launch", playground.write(trials=4, examples=32, name="one", sampler={"name": "tpe", "n_startup_trials": 2})
    )
    playground.run(
        "launch", playground.write(trials=4, examples=32, name="two", sampler={"name": "tpe", "n_startup_trials": 2})
    )
    one, two = (
        [
            (trial.state, trial.params, trial.value, trial.intermediate_values, trial.user_attrs[PROPOSAL])
            for trial in playground.study(name).optuna_study.get_trials()
        ]
        for name in ("one", "two")
    )
    assert one == two


def test_an_existing_name_is_refused_and_resume_adds_exactly_what_is_asked(playground: Playground) -> None:
    file = playground.write(trials=2)
    playground.run("launch", file)
    output = playground.run("launch", file, code=2)
    assert output.strip() == (
        "distune: study tiny exists already; go on with `distune resume tiny`, or choose another study.name"
    )
    playground.run("resume", "tiny")
    assert len(playground.study().optuna_study.get_trials()) == 2
    playground.run("resume", "tiny", "--trials", "+4", "--workers", "2")
    trials = playground.study().optuna_study.get_trials()
    assert len(trials) == 6
    assert all(trial.state.is_finished() for trial in trials)


def test_a_worker_without_a_name_serves_every_open_study_in_turn(playground: Playground) -> None:
    launches = [
        playground.start("launch", playground.write(trials=2, name=name), "--workers", "0")
        for name in ("one", "two")
        if playground.folder  # the file is rewritten: wait until it was read
        and (not playground.processes or playground.wait_for_trial(lambda trial: True, name="one"))
    ]
    worker = playground.start("worker")
    for launch in launches:
        assert launch.wait(120) == 0
    worker.terminate()
    assert worker.wait(30) == 0


def test_a_study_needs_no_url_and_its_server_ends_with_it(playground: Playground, make_home: MakeHome) -> None:
    home = make_home()
    playground.run("launch", playground.write(trials=2), "--home", home, "--workers", "2", storage=False)
    status = json.loads(playground.run("status", "tiny", "--json", "--home", home, storage=False))
    assert status["finished"] == 2
    assert not has_server(home)


def test_a_study_with_bad_data_is_refused_with_one_sentence_and_can_be_mended(playground: Playground) -> None:
    file = playground.write(trials=2)
    truncated = playground.folder / "train"
    speaker = truncated / "1" / "1"
    speaker.mkdir(parents=True)
    (speaker / "1-1.trans.txt").write_text("1-1-0000 LAMP ON\n")
    file.write_text(file.read_text().replace(str(playground.material / "train"), str(truncated)))
    output = playground.run("launch", file, code=2)
    (sentence,) = [line for line in output.splitlines() if line.startswith("distune:")]
    assert "1-1-0000" in sentence and sentence.endswith("then launch it again")
    assert all(not trial.state.is_finished() for trial in playground.study().optuna_study.get_trials())
    real = playground.material / "train" / "1" / "1"
    for path in real.iterdir():
        (speaker / path.name).write_bytes(path.read_bytes())
    playground.run("launch", file)
    assert playground.look().is_over


def test_a_strict_study_that_searches_a_weight_which_reaches_nothing_is_refused(playground: Playground) -> None:
    file = playground.write(trials=1)  # its encoder is frozen, and the geodesic term compares encoder states
    file.write_text(file.read_text().replace("kl_weight:", "geo_weight:"))
    warning = "searching geo_weight cannot change the student: the geodesic term reaches none of its"
    output = playground.run("launch", file, "--strict", code=2)
    assert f"warning: {warning}" in output
    (sentence,) = [line for line in output.splitlines() if line.startswith("distune:")]
    assert sentence.startswith(f"distune: study tiny is refused: {warning}")
    assert sentence.endswith("(--strict refuses what is otherwise a warning); then launch it again")
    status = json.loads(playground.run("status", "tiny", "--json"))
    assert (status["preflight"], status["dead_knobs"]) == ("refused", ["loss.geo_weight"])
    assert any(each.startswith(warning) for each in status["warnings"])
    assert not any(trial.state.is_finished() for trial in playground.study().optuna_study.get_trials())
