"""Our tables, beside Optuna's in the same database. All times are the database's clock, with time zone."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    func,
)

PREFLIGHT = -1
"""The number under which a study's preflight is leased, like a trial."""

metadata = MetaData()
# JSON and not JSONB: it keeps the order of keys, and the order of the search space decides what a sampler draws.

# Optuna's own tables, only so far as ours refer to them; Optuna creates and changes them.
optuna_studies = Table("studies", metadata, Column("study_id", Integer, primary_key=True))
optuna_trials = Table(
    "trials",
    metadata,
    Column("trial_id", Integer, primary_key=True),
    Column("number", Integer),
    Column("study_id", Integer),
    Column("state", Text),
)

studies = Table(
    "distune_studies",
    metadata,
    Column("study_id", ForeignKey("studies.study_id", ondelete="CASCADE"), primary_key=True),
    Column("budget", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("preflight", JSON),
    Column("refusal", Text),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
"""One row per study. ``budget``: how many trials it gets. ``spec``: its configuration, as resolved by ``launch``.
``preflight``: what was found before the first trial. ``refusal``: why no trial may start, one sentence."""

leases = Table(
    "distune_leases",
    metadata,
    Column("study_id", ForeignKey("distune_studies.study_id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("trial_id", Integer),
    Column("attempt", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("acquired_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("fruitless", Integer, nullable=False, server_default="0"),
    Column("checkpoint", BigInteger, nullable=False, server_default="0"),
    Column("checkpoint_at_start", BigInteger, nullable=False, server_default="0"),
    Column("examples", BigInteger, nullable=False, server_default="0"),
    Column("outcome", JSON),
    Column("note", Text),
)
"""Who runs which trial. ``(number, attempt)`` is the fencing token; ``state`` is held, released or finished.
``fruitless``: consecutive attempts that ended without a new checkpoint. ``checkpoint``, ``examples``: the newest
checkpoint, and how far the attempt is, in examples seen. ``outcome``: what the trial ended with, written before
Optuna is told. ``note``: why the last attempt ended."""

workers = Table(
    "distune_workers",
    metadata,
    Column("worker", Text, primary_key=True),
    Column("study_id", ForeignKey("distune_studies.study_id", ondelete="CASCADE")),
    Column("number", Integer),
    Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
"""Who is there: shown by ``status``, decides nothing."""

OURS = (studies, leases, workers)


def create_tables(engine: Engine) -> None:
    """Create our tables where they are missing; Optuna's must be there already."""
    metadata.create_all(engine, tables=list(OURS))
