"""Claims, leases, fences and the exact budget, on a real PostgreSQL."""

import threading
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from search import dispatch, guard
from search.dispatch import Claim, Outcome, PreflightClaim, Sightings, Spent, Wait
from search.errors import BudgetSpentError, LeaseLostError, StudyError
from search.preflight import refuse
from search.proposal import PROPOSAL, as_seen_running
from search.samplers import propose
from search.space import baseline
from search.study import OpenStudy, create_study, extend_budget, load_study, open_storage
from search.worker import WorkerOptions, _studies
from storage import leases
from storage.database import Database, open_database
from storage.schema import PREFLIGHT
from tests.studies import make_study_spec, wait_for


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def finished(wer: float, attempt: int = 1) -> Outcome:
    return Outcome(state="COMPLETE", kind="finished", value=wer, attempt=attempt)


def open_for_trials(database: Database, **study: Any) -> OpenStudy:
    """Create a study whose preflight is done."""
    created = create_study(make_study_spec(**study), database)
    lease = leases.acquire(
        database.engine, study_id=created.study_id, number=PREFLIGHT, trial_id=None, worker="w", ttl_s=10
    )
    assert lease is not None
    leases.finish(database.engine, lease)
    return created


def claim_now(study: OpenStudy, worker: str = "w") -> Claim | Wait | Spent | PreflightClaim:
    return dispatch.claim(study, worker, Sightings(ttl_s=study.spec.study.lease_ttl_s))


def claim_trial(study: OpenStudy, worker: str = "w") -> Claim:
    claimed = claim_now(study, worker)
    assert isinstance(claimed, Claim)
    return claimed


def claim_after_patience(study: OpenStudy, worker: str) -> Claim:
    """Claim as a worker does that sees a lease expired for long enough."""
    sightings = Sightings(ttl_s=study.spec.study.lease_ttl_s)
    return wait_for(lambda: claimed if isinstance(claimed := dispatch.claim(study, worker, sightings), Claim) else None)


def expire(study: OpenStudy, number: int) -> None:
    with study.database.engine.begin() as connection:
        connection.execute(
            text("UPDATE distune_leases SET expires_at = now() - interval '1 s' WHERE study_id = :s AND number = :n"),
            {"s": study.study_id, "n": number},
        )


def test_the_preflight_comes_first_and_only_once(database: Database) -> None:
    study = create_study(make_study_spec(), database)
    first = claim_now(study, "a")
    assert isinstance(first, PreflightClaim)
    assert isinstance(claim_now(study, "b"), Wait)
    leases.finish(database.engine, first.lease)
    assert isinstance(claim_now(study, "b"), Claim)


def test_the_first_trial_is_the_baseline(database: Database) -> None:
    study = open_for_trials(database)
    claimed = claim_trial(study)
    assert claimed.lease.number == 0
    assert claimed.parameters == baseline(study.spec)


def test_a_study_ends_with_exactly_its_budget_whoever_works_on_it(database: Database) -> None:
    budget = 40
    open_for_trials(database, trials=budget, sampler={"name": "random"})
    numbers: list[int] = []

    def work(worker: str) -> None:
        with open_database(database.url.set(password=database._password).render_as_string(False)) as mine:
            study = load_study("s", mine)
            while not isinstance(claimed := claim_now(study, worker), Spent):
                if isinstance(claimed, Claim):
                    dispatch.finish(study, claimed.lease, finished(0.5))
                    numbers.append(claimed.lease.number)

    threads = [threading.Thread(target=work, args=(f"w{index}",)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(budget))
    trials = load_study("s", database).optuna_study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * budget


def test_a_worker_frozen_between_counting_and_creating_cannot_exceed_the_budget(database: Database) -> None:
    study = open_for_trials(database, trials=2)
    claim_trial(study)
    counted, may_go_on = threading.Event(), threading.Event()
    outcome: list[object] = []
    original = study.storage._get_prepared_new_trial

    def frozen(*args: Any, **kwargs: Any) -> Any:
        counted.set()
        assert may_go_on.wait(20)
        return original(*args, **kwargs)

    study.storage._get_prepared_new_trial = frozen  # type: ignore[method-assign]
    slow = threading.Thread(target=lambda: outcome.append(claim_now(study, "slow")))
    slow.start()
    assert counted.wait(20)
    with open_database(database.url.set(password=database._password).render_as_string(False)) as mine:
        other = load_study("s", mine)
        fast = threading.Thread(target=lambda: outcome.append(claim_now(other, "fast")))
        fast.start()
        blocked = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")

        def is_blocked() -> bool:
            with database.engine.begin() as connection:
                return connection.execute(blocked).scalar_one() > 0

        wait_for(is_blocked)
        may_go_on.set()
        slow.join()
        fast.join()
        assert sorted(type(each).__name__ for each in outcome) == ["Claim", "Wait"]
        assert len(other.optuna_study.get_trials()) == 2


def test_a_refused_creation_leaves_the_storage_usable(database: Database) -> None:
    study = open_for_trials(database, trials=1)
    for _ in range(5):
        with pytest.raises(BudgetSpentError), guard.within_budget(study.study_id):
            study.storage.create_new_trial(study.study_id)
    extend_budget(study, 1)
    with guard.within_budget(study.study_id):
        study.storage.create_new_trial(study.study_id)
    assert len(study.optuna_study.get_trials()) == 2


def test_a_running_trial_without_lease_is_adopted(database: Database) -> None:
    study = open_for_trials(database)
    dispatch.finish(study, claim_trial(study).lease, finished(0.5))
    orphan = study.storage.create_new_trial(study.study_id)  # its owner died before it wrote the lease
    claimed = claim_trial(study, "b")
    assert (claimed.trial_id, claimed.lease.number, claimed.lease.attempt) == (orphan, 1, 1)


def test_an_expired_lease_is_taken_over_with_the_same_parameters(database: Database) -> None:
    study = open_for_trials(database, trials=2)
    dispatch.finish(study, claim_trial(study).lease, finished(0.5))
    first = claim_trial(study, "a")
    dispatch.report(study, first, 100, 0.9)
    expire(study, 1)
    second = claim_after_patience(study, "b")
    assert (second.lease.number, second.lease.attempt, second.trial_id) == (1, 2, first.trial_id)
    assert second.parameters == first.parameters
    assert second.last_step == 100


def test_an_expired_lease_is_left_alone_until_it_was_seen_expired_for_half_a_ttl() -> None:
    clock = Clock()
    sightings = Sightings(ttl_s=20.0, clock=clock)
    dead = leases.Expired(number=3, attempt=1, is_released=False)
    assert sightings.observe([dead]) == []
    clock.now += 6
    assert sightings.observe([dead]) == []
    clock.now += 6
    assert sightings.observe([dead]) == [dead]


@pytest.mark.parametrize("break_contact", [lambda s, c: s.forget(), lambda s, c: setattr(c, "now", c.now + 11)])
def test_a_break_in_contact_starts_the_patience_again(break_contact: Callable[[Sightings, Clock], None]) -> None:
    clock = Clock()
    sightings = Sightings(ttl_s=20.0, clock=clock)
    dead = leases.Expired(number=3, attempt=1, is_released=False)
    sightings.observe([dead])
    clock.now += 6
    sightings.observe([dead])
    break_contact(sightings, clock)
    assert sightings.observe([dead]) == []
    clock.now += 6
    assert sightings.observe([dead]) == []
    clock.now += 6
    assert sightings.observe([dead]) == [dead]


def test_a_released_trial_goes_on_at_once_and_does_not_count_as_fruitless(database: Database) -> None:
    study = open_for_trials(database)
    first = claim_trial(study, "a")
    assert leases.release(database.engine, first.lease, note="preempted", examples=50, checkpoint=0)
    second = claim_trial(study, "b")
    assert (second.lease.number, second.lease.attempt, second.lease.fruitless) == (0, 2, 0)


def test_attempts_count_only_without_progress(database: Database) -> None:
    study = open_for_trials(database, trials=1)
    claim_trial(study, "a")
    expire(study, 0)
    second = claim_after_patience(study, "b")
    assert second.lease.fruitless == 1
    leases.renew(database.engine, second.lease, ttl_s=10, examples=100, checkpoint=100)
    expire(study, 0)
    third = claim_after_patience(study, "c")
    assert (third.lease.attempt, third.lease.fruitless) == (3, 0)


def test_a_trial_that_always_kills_its_worker_fails_with_its_reason(database: Database) -> None:
    study = open_for_trials(database, trials=1, max_attempts=2)
    claim_trial(study, "a")
    expire(study, 0)
    assert claim_after_patience(study, "b").lease.fruitless == 1
    expire(study, 0)
    sightings = Sightings(ttl_s=0.4)
    wait_for(lambda: isinstance(dispatch.claim(study, "c", sightings), Spent))
    (trial,) = study.optuna_study.get_trials()
    assert trial.state == TrialState.FAIL
    assert "worker b was lost" in trial.user_attrs[dispatch.OUTCOME]["reason"]


def test_a_woken_zombie_changes_nothing(database: Database) -> None:
    study = open_for_trials(database, trials=1)
    zombie = claim_trial(study, "zombie")
    expire(study, 0)
    heir = claim_after_patience(study, "heir")
    dispatch.report(study, heir, 100, 0.4)
    before = study.optuna_study.get_trials()
    with pytest.raises(LeaseLostError):
        dispatch.report(study, zombie, 200, 0.9)
    with pytest.raises(LeaseLostError):
        dispatch.finish(study, zombie.lease, finished(0.01))
    assert not leases.renew(database.engine, zombie.lease, ttl_s=10, examples=1, checkpoint=1)
    assert not leases.release(database.engine, zombie.lease, note="", examples=1, checkpoint=1)
    assert study.optuna_study.get_trials() == before
    dispatch.finish(study, heir.lease, finished(0.4, attempt=2))
    assert study.optuna_study.get_trials()[0].value == 0.4


def test_the_fence_holds_inside_the_transaction_that_writes(database: Database) -> None:
    """A check before the write is not enough: here the lease changes hands after Optuna was called."""
    study = open_for_trials(database, trials=1)
    zombie = claim_trial(study, "zombie")
    trial = study.trial(zombie.trial_id)
    with guard.fenced(zombie.lease):
        expire(study, 0)
        heir = claim_after_patience_elsewhere(database)
        with pytest.raises(LeaseLostError):
            trial.report(0.9, 100)
    assert heir.lease.attempt == 2
    assert study.optuna_study.get_trials()[0].intermediate_values == {}


def claim_after_patience_elsewhere(database: Database) -> Claim:
    """As ``claim_after_patience``, in a thread: the guard in force here must not be in force there."""
    found: list[Claim] = []
    thread = threading.Thread(target=lambda: found.append(claim_after_patience(load_study("s", database), "heir")))
    thread.start()
    thread.join()
    return found[0]


def test_an_outcome_that_optuna_was_not_told_is_told_by_the_next_worker(database: Database) -> None:
    study = open_for_trials(database, trials=1)
    claimed = claim_trial(study, "a")
    leases.record_outcome(database.engine, claimed.lease, finished(0.3).model_dump(mode="json"))
    expire(study, 0)  # and died here
    sightings = Sightings(ttl_s=0.4)
    wait_for(lambda: isinstance(dispatch.claim(study, "b", sightings), Spent))
    (trial,) = study.optuna_study.get_trials()
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.3)


def test_finishing_may_be_repeated_after_a_lost_reply(database: Database) -> None:
    study = open_for_trials(database, trials=1)
    claimed = claim_trial(study)
    leases.record_outcome(database.engine, claimed.lease, finished(0.3).model_dump(mode="json"))
    study.storage.set_trial_state_values(claimed.trial_id, TrialState.COMPLETE, [0.3])  # the reply was lost here
    dispatch.finish(study, claimed.lease, finished(0.3))
    assert isinstance(claim_now(study), Spent)


def test_others_wait_while_the_last_trial_runs(database: Database) -> None:
    study = open_for_trials(database, trials=1)
    claimed = claim_trial(study, "a")
    assert isinstance(claim_now(study, "b"), Wait)
    dispatch.finish(study, claimed.lease, finished(0.5))
    assert isinstance(claim_now(study, "b"), Spent)


def test_a_finished_study_starts_nothing_and_an_extension_adds_exactly_its_trials(database: Database) -> None:
    study = open_for_trials(database, trials=2)
    for _ in range(2):
        dispatch.finish(study, claim_trial(study).lease, finished(0.5))
    assert isinstance(claim_now(study), Spent)
    study = extend_budget(study, 3)
    for _ in range(3):
        dispatch.finish(study, claim_trial(study).lease, finished(0.5))
    assert isinstance(claim_now(study), Spent)
    assert len(study.optuna_study.get_trials()) == 5


def test_an_enqueued_trial_runs_with_its_parameters_and_within_the_budget(database: Database) -> None:
    study = open_for_trials(database, trials=2)
    study.optuna_study.enqueue_trial({"lr": 0.005})
    study.optuna_study.enqueue_trial({"lr": 0.006})  # one too many
    dispatch.finish(study, claim_trial(study).lease, finished(0.5))
    enqueued = claim_trial(study)
    assert enqueued.parameters["lr"] == 0.005
    assert set(enqueued.parameters) == set(study.spec.space)
    dispatch.finish(study, enqueued.lease, finished(0.5))
    assert isinstance(claim_now(study), Spent)


def test_an_enqueued_trial_outside_the_space_fails_and_the_study_goes_on(database: Database) -> None:
    study = open_for_trials(database, trials=3)
    study.optuna_study.enqueue_trial({"learning_rate": 0.005})
    dispatch.finish(study, claim_trial(study).lease, finished(0.5))
    assert claim_trial(study).lease.number == 2
    failed = study.optuna_study.get_trials()[1]
    assert failed.state == TrialState.FAIL
    assert "learning_rate" in failed.user_attrs[dispatch.OUTCOME]["reason"]


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_parameters_can_be_replayed_from_the_trials_that_were_seen(database: Database, sampler: str) -> None:
    study = open_for_trials(database, trials=16, sampler={"name": sampler})
    running: list[Claim] = []
    for number in range(16):
        running.append(claim_trial(study))
        if number % 2:  # two at a time, finished out of order
            for claimed in reversed(running):
                dispatch.finish(study, claimed.lease, finished(1.0 / (1 + claimed.lease.number)))
            running.clear()
    trials = study.optuna_study.get_trials()
    for trial in trials[1:]:
        proposal = trial.user_attrs[PROPOSAL]
        assert trial.params == proposal["parameters"]
        seen = [trials[number] for number in proposal["finished"]]
        seen += [as_seen_running(study.spec, trials[number]) for number in proposal["running"]]
        assert propose(study.spec, trial.number, seen, {}) == trial.params
    assert any(trial.user_attrs[PROPOSAL]["running"] for trial in trials)
    assert len({trial.params["lr"] for trial in trials}) == 16


def test_a_grid_is_visited_point_by_point_beside_the_baseline(database: Database) -> None:
    space = {"batch_size": {"choices": [4, 8, 16]}, "dropout": {"low": 0.1, "high": 0.4, "step": 0.1}}
    created = create_study(make_study_spec(trials=13, sampler={"name": "grid"}, space=space), database)
    lease = leases.acquire(
        database.engine, study_id=created.study_id, number=PREFLIGHT, trial_id=None, worker="w", ttl_s=10
    )
    assert lease is not None
    leases.finish(database.engine, lease)
    for _ in range(13):
        dispatch.finish(created, claim_trial(created).lease, finished(0.5))
    points = [tuple(sorted(trial.params.items())) for trial in created.optuna_study.get_trials()[1:]]
    assert len(set(points)) == 12
    assert isinstance(claim_now(created), Spent)


def test_the_baseline_is_never_pruned_and_others_are(database: Database) -> None:
    study = open_for_trials(database, trials=4, pruner={"name": "median", "n_startup_trials": 1})
    base, good = claim_trial(study), claim_trial(study)
    assert not dispatch.report(study, good, 100, 0.1)
    dispatch.finish(study, good.lease, finished(0.1))
    assert not dispatch.report(study, base, 100, 0.9)
    assert dispatch.report(study, claim_trial(study), 100, 0.9)


def test_a_refused_study_is_made_anew_by_the_next_launch_and_a_running_one_is_not(database: Database) -> None:
    study = create_study(make_study_spec(), database)
    claimed = claim_now(study)
    assert isinstance(claimed, PreflightClaim)
    refuse(study, claimed.lease, "the data folder does not exist")
    again = create_study(make_study_spec(trials=9, max_attempts=7), database)
    assert (again.study_id, again.budget, again.refusal) == (study.study_id, 9, None)
    assert again.spec.study.max_attempts == 7
    assert isinstance(claim_now(again), PreflightClaim)
    with pytest.raises(StudyError, match="study s exists already"):
        create_study(make_study_spec(), database)
    assert len(again.optuna_study.get_trials()) == 1


def test_a_launch_that_died_half_way_is_completed_by_the_next(database: Database) -> None:
    half = optuna.create_study(storage=open_storage(database), study_name="s", direction="minimize")
    half.enqueue_trial({"lr": 0.009})
    study = open_for_trials(database)
    assert claim_trial(study).parameters == baseline(study.spec)


def test_eight_launches_at_once_make_one_study(database: Database) -> None:
    made: list[object] = []

    def launch() -> None:
        with open_database(database.url.set(password=database._password).render_as_string(False)) as mine:
            try:
                made.append(create_study(make_study_spec(), mine))
            except StudyError as exc:
                made.append(exc)

    threads = [threading.Thread(target=launch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(each, OpenStudy) for each in made) == 1
    assert len(made) == 8
    assert len(load_study("s", database).optuna_study.get_trials()) == 1


def test_a_study_of_another_version_is_named_and_stops_nobody_else(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    open_for_trials(database, name="old", trials=1)
    with database.engine.begin() as connection:
        connection.execute(text('UPDATE distune_studies SET spec = \'{"study": {"name": "old"}}\''))
    with pytest.raises(StudyError, match="study old was made by another version of distune; use that version"):
        load_study("old", database)
    create_study(make_study_spec(name="new"), database)
    stop = threading.Event()
    studies = _studies(WorkerOptions(study=None, name="w"), database, stop)
    assert next(studies).name == "new"
    assert "study old was made by another version" in caplog.text
