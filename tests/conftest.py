"""Fixtures shared by the tests: one embedded PostgreSQL for the session, a fresh database for each test."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy
from sqlalchemy import URL

from storage.database import Database, open_database
from storage.embedded import EmbeddedServer, open_embedded
from tests.homes import MakeHome, temporary_homes


@pytest.fixture(scope="session")
def session_home() -> Iterator[MakeHome]:
    """As ``make_home``, for fixtures that live as long as the session."""
    yield from temporary_homes()


@pytest.fixture
def make_home() -> Iterator[MakeHome]:
    """Makes folders for ``--home``; a server left on one is killed. Not ``tmp_path``: as root, the server's user may
    not enter that."""
    yield from temporary_homes()


@pytest.fixture(scope="session")
def server(session_home: MakeHome) -> Iterator[EmbeddedServer]:
    """The embedded server of the session. It forgets nothing it needs, but does not wait for the disk."""
    server = open_embedded(session_home())
    engine = sqlalchemy.create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("ALTER SYSTEM SET fsync = off")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    yield server
    server.close()


@pytest.fixture(scope="session")
def make_database(server: EmbeddedServer) -> Callable[[str], URL]:
    """Makes databases: ``make_database("template1")`` is the URL of a new copy of template1."""
    engine = sqlalchemy.create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    names = (f"test_{number}" for number in itertools.count())

    def make(template: str) -> URL:
        name = next(names)
        with engine.connect() as connection:
            # A template must have no connection; those of pools that were not disposed of end here.
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (template,)
            )
            connection.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return server.url.set(database=name)

    return make


@pytest.fixture
def empty_database(make_database: Callable[[str], URL]) -> Iterator[Database]:
    """A fresh database without tables, opened by URL."""
    with open_database(make_database("template1").render_as_string(hide_password=False)) as database:
        yield database


@pytest.fixture(scope="session")
def template(make_database: Callable[[str], URL]) -> str:
    """The name of a database with all tables, Optuna's and ours, and no study."""
    from search.study import create_tables

    url = make_database("template1")
    with open_database(url.render_as_string(hide_password=False)) as database:
        create_tables(database)
    assert url.database is not None
    return url.database


@pytest.fixture
def database(make_database: Callable[[str], URL], template: str) -> Iterator[Database]:
    """A fresh database with all tables and no study, opened by URL."""
    with open_database(make_database(template).render_as_string(hide_password=False)) as database:
        yield database
