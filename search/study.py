"""Studies in the database: created once with their configuration inside, opened by name from anywhere."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState, create_trial
from pydantic import ValidationError
from sqlalchemy import Connection, Row, select, text, update
from sqlalchemy.dialects.postgresql import insert

from search import guard
from search.config import StudySpec, check_name
from search.errors import ConfigError, StudyError
from search.pruners import build_pruner
from search.samplers import check_sampler
from search.space import baseline, distributions
from storage.database import Database
from storage.schema import PREFLIGHT, leases, studies
from storage.schema import create_tables as create_our_tables
from trainer.events import PreflightResult


@dataclass(frozen=True, kw_only=True)
class OpenStudy:
    """A study of the database, with what is needed to work on it."""

    study_id: int
    spec: StudySpec
    budget: int
    refusal: str | None
    """Why no trial may start: the preflight's sentence."""
    preflight: PreflightResult | None
    """What was found before the first trial; None until then."""
    storage: RDBStorage
    optuna_study: optuna.Study
    """With the study's pruner, and a sampler that does nothing: ``samplers.propose`` decides."""
    database: Database

    @property
    def name(self) -> str:
        """The study's name."""
        return self.spec.study.name

    def trial(self, trial_id: int) -> Trial:
        """Return the trial for writing. Its parameters must be recorded already."""
        # Optuna looks a trial up in its cache, which knows it only once it has listed the study's trials.
        self.optuna_study.get_trials(deepcopy=False)
        return Trial(self.optuna_study, trial_id)


def create_tables(database: Database) -> None:
    """Create Optuna's tables and ours, once, whoever comes first: together they would collide."""
    with only_one(database, "create tables"):
        RDBStorage(database.storage_url_for_optuna(), engine_kwargs=database.engine_options).remove_session()
        create_our_tables(database.engine)


def has_tables(database: Database) -> bool:
    """Whether `create_tables` has been here."""
    with database.engine.begin() as connection:
        return bool(connection.execute(text("SELECT to_regclass('distune_workers') IS NOT NULL")).scalar_one())


def open_storage(database: Database) -> RDBStorage:
    """Return Optuna's storage on a database that has its tables, with our guards installed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = RDBStorage(
        database.storage_url_for_optuna(), engine_kwargs=database.engine_options, skip_table_creation=True
    )
    guard.install(storage)
    return storage


def check_spec(spec: StudySpec) -> None:
    """Check what needs no model and no data: space, baseline, sampler and pruner.

    Raises:
        ConfigError: one sentence with the key and the remedy.
    """
    distributions(spec)
    baseline(spec)
    check_sampler(spec)
    build_pruner(spec)


def create_study(spec: StudySpec, database: Database) -> OpenStudy:
    """Create the study, its configuration inside, with the baseline as its first waiting trial.

    Our row comes last: no worker sees the study before its baseline is there. A study of this name that nobody ran
    is made anew: a launch died on the way, or the preflight refused it and the study file was mended.

    Raises:
        ConfigError: the configuration is refused.
        StudyError: the name is taken.
    """
    check_spec(spec)
    storage = open_storage(database)
    name = spec.study.name
    with only_one(database, f"create {name}"):
        try:
            study = optuna.create_study(storage=storage, study_name=name, direction="minimize")
        except DuplicatedStudyError:
            study = optuna.load_study(storage=storage, study_name=name)
            row = _row(study._study_id, database)
            if not _nobody_ran(study) or (row is not None and row.refusal is None):
                raise StudyError(
                    f"study {name} exists already; go on with `distune resume {name}`, or choose another study.name"
                ) from None
        _enqueue_baseline(study, spec)
        study.set_user_attr("distune", "run by distune: change its budget with `distune resume`")
        fresh = {"budget": spec.study.trials, "spec": spec.model_dump(mode="json"), "preflight": None, "refusal": None}
        with database.engine.begin() as connection:
            forget_preflight(connection, study._study_id)
            connection.execute(
                insert(studies)
                .values(study_id=study._study_id, **fresh)
                .on_conflict_do_update(index_elements=["study_id"], set_=fresh)
            )
    return load_study(name, database, storage)


def _nobody_ran(study: optuna.Study) -> bool:
    trials = study.get_trials(deepcopy=False)
    return len(trials) <= 1 and all(trial.state == TrialState.WAITING for trial in trials)


def _enqueue_baseline(study: optuna.Study, spec: StudySpec) -> None:
    fixed = baseline(spec)
    waiting = create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": fixed})
    # A reply lost after COMMIT makes Optuna create the trial again: then the guard finds the first one.
    with guard.no_trials_yet(study._study_id):
        study._storage.create_new_trial(study._study_id, waiting)
    (trial,) = study.get_trials(deepcopy=False)
    study._storage.set_trial_system_attr(trial._trial_id, "fixed_params", fixed)


def forget_preflight(connection: Connection, study_id: int) -> None:
    """Let the study be checked again."""
    connection.execute(leases.delete().where(leases.c.study_id == study_id, leases.c.number == PREFLIGHT))


def _row(study_id: int, database: Database) -> Row[Any] | None:
    with database.engine.begin() as connection:
        return connection.execute(select(studies).where(studies.c.study_id == study_id)).one_or_none()


@contextmanager
def only_one(database: Database, what: str) -> Iterator[None]:
    """Do the block in one process at a time. The lock goes with its connection, so a dead holder blocks nobody."""
    key = int.from_bytes(hashlib.sha256(f"distune: {what}".encode()).digest()[:8], "big", signed=True)
    with database.engine.connect() as connection:
        # Whoever is before us may take longer than a row lock may; the connections' lock_timeout is for those.
        connection.execute(text("SET LOCAL lock_timeout = '120s'"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        connection.commit()
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})
            connection.commit()


def load_study(name: str, database: Database, storage: RDBStorage | None = None) -> OpenStudy:
    """Open a study by its name.

    Raises:
        StudyError: there is none of this name, or it is not distune's, or of another version.
    """
    try:
        check_name(name)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    if not has_tables(database):
        raise StudyError(f"there is no study {name}: this database has none yet; start with `distune launch`")
    storage = storage or open_storage(database)
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        known = ", ".join(list_names(database)) or "none"
        raise StudyError(f"there is no study {name}; studies here: {known}") from None
    row = _row(study_id, database)
    if row is None:
        raise StudyError(f"study {name} was not made by distune; choose another study.name")
    try:
        spec, preflight = StudySpec.model_validate(row.spec), _preflight(row)
    except ValidationError as exc:
        raise StudyError(
            f"study {name} was made by another version of distune; use that version for it, or launch it anew "
            "under another study.name"
        ) from exc
    return OpenStudy(
        study_id=study_id,
        spec=spec,
        budget=row.budget,
        refusal=row.refusal,
        preflight=preflight,
        storage=storage,
        optuna_study=optuna.load_study(
            study_name=name, storage=storage, sampler=RandomSampler(seed=0), pruner=build_pruner(spec)
        ),
        database=database,
    )


def _preflight(row: Row[Any]) -> PreflightResult | None:
    return None if row.preflight is None else PreflightResult.model_validate(row.preflight)


def load_same_study(spec: StudySpec, database: Database) -> OpenStudy | None:
    """Open the study that was created with this configuration; None if there is none of its name.

    The budget may differ: it is the study's own, and ``resume`` extends it. A refused study is checked again: what
    stood in its way may be mended.

    Raises:
        ConfigError: the study of this name has another configuration.
    """
    if spec.study.name not in list_names(database):
        return None
    study = load_study(spec.study.name, database)
    given, stored = (each.model_dump(mode="json") for each in (spec, study.spec))
    for key in ("trials", "storage"):  # resume changes the first, and where we are is no matter
        given["study"][key] = stored["study"][key]
    for section in given:
        for key in given[section]:
            if given[section][key] != stored[section].get(key):
                raise ConfigError(
                    f"study {study.name} exists with another {section}.{key}; choose another study.name, "
                    f"or go on as it is with `distune resume {study.name}`"
                )
    return study


def refresh(study: OpenStudy) -> OpenStudy:
    """Return the study with its budget, its preflight and its refusal as they are now."""
    row = _row(study.study_id, study.database)
    if row is None:
        raise StudyError(f"study {study.name} was deleted while it ran")
    return replace(study, budget=row.budget, refusal=row.refusal, preflight=_preflight(row))


def extend_budget(study: OpenStudy, trials: int) -> OpenStudy:
    """Add ``trials`` to the study's budget."""
    with study.database.engine.begin() as connection:
        connection.execute(
            update(studies).where(studies.c.study_id == study.study_id).values(budget=studies.c.budget + trials)
        )
    return refresh(study)


def list_open_names(database: Database) -> Sequence[str]:
    """Return the names of the studies that have work left, oldest first."""
    if not has_tables(database):
        return []
    query = text(
        "SELECT study_name FROM studies JOIN distune_studies d USING (study_id) WHERE refusal IS NULL AND budget > "
        "(SELECT count(*) FROM trials t WHERE t.study_id = d.study_id AND t.state IN ('COMPLETE', 'PRUNED', 'FAIL')) "
        "ORDER BY study_id"
    )
    with database.engine.begin() as connection:
        return list(connection.execute(query).scalars())


def list_names(database: Database) -> Sequence[str]:
    """Return the names of distune's studies, oldest first; none where the tables are still missing."""
    if not has_tables(database):
        return []
    query = text("SELECT study_name FROM studies JOIN distune_studies USING (study_id) ORDER BY study_id")
    with database.engine.begin() as connection:
        return list(connection.execute(query).scalars())
