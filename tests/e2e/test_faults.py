"""Workers, training processes and coordinators that die or are told to stop, in the middle of a study."""

import contextlib
import json
import os
import signal

from optuna.trial import TrialState

from search.dispatch import OUTCOME
from search.overview import TrialGlance
from tests.e2e.conftest import Playground, children, worker_pid
from tests.homes import MakeHome, end_server
from tests.studies import wait_for

LONG = 1600
"""Examples of a trial that takes long enough to be caught in the middle."""


def is_in_the_middle(trial: TrialGlance) -> bool:
    return trial.state == "RUNNING" and trial.worker is not None and trial.wer is not None and trial.fraction < 0.8


def test_a_killed_workers_trial_is_finished_by_another_from_its_checkpoint(playground: Playground) -> None:
    launch = playground.start("launch", playground.write(trials=2, examples=LONG), "--workers", "2")
    victim = playground.wait_for_trial(is_in_the_middle)
    reported = dict(playground.study().optuna_study.get_trials()[victim.number].intermediate_values)
    os.kill(worker_pid(victim), signal.SIGKILL)
    output, _ = launch.communicate(timeout=200)
    assert launch.returncode == 0, output
    trials = playground.study().optuna_study.get_trials()
    assert len(trials) == 2
    assert all(trial.state in {TrialState.COMPLETE, TrialState.PRUNED} for trial in trials)
    assert reported.items() <= trials[victim.number].intermediate_values.items()
    status = json.loads(playground.run("status", "tiny", "--json"))
    assert status["trials"][victim.number]["attempt"] == 2
    history = playground.run_folder() / "trials" / f"{victim.number:04d}" / "attempt-2" / "training_history.json"
    marks = [row["examples"] for row in json.loads(history.read_text())["evaluations"]]
    assert marks == sorted(set(marks))
    assert marks[0] == LONG // 4  # it went on from the checkpoint, whose evaluations it carries


def test_a_killed_training_process_is_replaced(playground: Playground) -> None:
    launch = playground.start("launch", playground.write(trials=2, examples=LONG))
    victim = playground.wait_for_trial(is_in_the_middle)
    (training,) = children(worker_pid(victim))
    os.kill(training, signal.SIGKILL)
    assert launch.wait(200) == 0
    overview = playground.look()
    assert overview.trials[victim.number].attempt == 2
    assert [trial.state for trial in overview.trials] == ["COMPLETE", "COMPLETE"]


def test_a_trial_that_kills_its_training_process_every_time_fails_with_its_reason(playground: Playground) -> None:
    launch = playground.start("launch", playground.write(trials=1, examples=LONG, max_attempts=2))
    killed: set[int] = set()
    while launch.poll() is None:
        running = playground.wait_for_trial(lambda trial: True)
        if running.state == "RUNNING" and running.worker is not None and running.attempt == len(killed) + 1:
            for pid in children(worker_pid(running)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
    (trial,) = playground.study().optuna_study.get_trials()
    assert trial.state == TrialState.FAIL
    assert "killed by signal 9" in trial.user_attrs[OUTCOME]["reason"]
    assert "killed by signal 9" in playground.run("status", "tiny")


def test_ctrl_c_checkpoints_and_resume_goes_on_where_it_stood(playground: Playground) -> None:
    launch = playground.start("launch", playground.write(trials=2, examples=LONG))
    caught = playground.wait_for_trial(is_in_the_middle)
    launch.send_signal(signal.SIGINT)
    output, _ = launch.communicate(timeout=90)
    assert launch.returncode == 130, output
    assert "go on with: distune resume tiny" in output
    assert not playground.survivors()
    stood = playground.look().trials[caught.number]
    assert stood.state == "RUNNING" and stood.worker is None
    playground.run("resume", "tiny")
    overview = playground.look()
    assert [trial.state for trial in overview.trials] == ["COMPLETE", "COMPLETE"]
    assert overview.trials[caught.number].attempt == 2


def test_a_second_ctrl_c_exits_at_once_and_loses_nothing_reported(playground: Playground) -> None:
    launch = playground.start("launch", playground.write(trials=2, examples=LONG))
    caught = playground.wait_for_trial(is_in_the_middle)
    (training,) = children(worker_pid(caught))
    os.kill(training, signal.SIGSTOP)  # it will not answer the first one
    launch.send_signal(signal.SIGINT)
    assert launch.stdout is not None
    while "Ctrl-C again ends them at once" not in launch.stdout.readline():
        pass
    launch.send_signal(signal.SIGINT)
    launch.communicate(timeout=20)
    assert launch.returncode == 130
    wait_for(lambda: not playground.survivors())
    reported = playground.study().optuna_study.get_trials()[caught.number].intermediate_values
    assert reported
    playground.run("resume", "tiny")
    trial = playground.study().optuna_study.get_trials()[caught.number]
    assert trial.state == TrialState.COMPLETE
    assert reported.items() <= trial.intermediate_values.items()


def test_a_preempted_worker_hands_its_trial_on_at_once(playground: Playground) -> None:
    launch = playground.start("launch", playground.write(trials=1, examples=LONG, lease_ttl_s=600), "--workers", "1")
    victim = playground.wait_for_trial(is_in_the_middle)
    os.kill(worker_pid(victim), signal.SIGTERM)
    # With this ttl nobody would live to see the lease run out: it must have been released.
    assert launch.wait(200) == 0
    (trial,) = playground.look().trials
    assert (trial.state, trial.attempt) == ("COMPLETE", 2)


def test_workers_finish_the_budget_without_their_coordinator(playground: Playground) -> None:
    launch = playground.start("launch", playground.write(trials=2, examples=LONG))
    playground.wait_for_trial(is_in_the_middle)
    launch.kill()
    wait_for(lambda: playground.look().is_over, timeout_s=120)
    wait_for(lambda: not playground.survivors())
    assert (playground.run_folder() / "best_params.json").exists()


def test_a_trial_that_takes_too_long_fails_with_its_reason(playground: Playground) -> None:
    playground.run("launch", playground.write(trials=1, examples=200_000, trial_timeout_s=3), code=1)
    (trial,) = playground.look().trials
    assert trial.state == "FAIL"
    assert trial.note is not None and "study.trial_timeout_s (3 s)" in trial.note


def test_training_goes_on_while_the_database_is_away(playground: Playground, make_home: MakeHome) -> None:
    home = make_home()
    file = playground.write(trials=2, examples=LONG)
    launch = playground.start("launch", file, "--home", home, storage=False)
    assert launch.stdout is not None
    while "running, WER" not in launch.stdout.readline():
        assert launch.poll() is None
    end_server(home, signal.SIGQUIT)  # as a crash would; the coordinator starts it again
    output, _ = launch.communicate(timeout=200)
    assert launch.returncode == 0, output
    assert "the database cannot be reached; workers go on without it" in output
    status = json.loads(playground.run("status", "tiny", "--json", "--home", home, storage=False))
    assert [(trial["state"], trial["attempt"]) for trial in status["trials"]] == [("COMPLETE", 1), ("COMPLETE", 1)]
