"""Connections: what is asked of every one, what is said when there is none, and that no password gets out."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psycopg2
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from storage.database import Database, is_connection_error, open_database, redacted, retrying
from storage.embedded import EmbeddedServer
from storage.errors import DatabaseUnavailableError, DatabaseUrlError

SECRET = "Se{0}cr%et@:/?#[]'\" \\é"
ODD_NAME = "odd{SCHEMA_VERSION}%40@:/?"


def text_of(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.fixture
def admin(server: EmbeddedServer) -> Iterator[Engine]:
    engine = sqlalchemy.create_engine(
        server.url, isolation_level="AUTOCOMMIT", connect_args={"password": server.password}
    )
    yield engine
    engine.dispose()


@pytest.fixture
def plain_url(server: EmbeddedServer, empty_database: Database) -> URL:
    """The URL of a fresh database for user ``distune``, with no password or password file in it."""
    return empty_database.url.difference_update_query(["passfile"])


@pytest.fixture
def odd_url(admin: Engine) -> Iterator[URL]:
    """A role and a database with names and a password that need every kind of escaping."""
    with admin.connect() as connection:
        connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{ODD_NAME}"'.replace("%", "%%"))
        connection.exec_driver_sql(f'DROP ROLE IF EXISTS "{ODD_NAME}"'.replace("%", "%%"))
        literal = "E'" + SECRET.replace("\\", "\\\\").replace("'", "''").replace("%", "%%") + "'"
        connection.exec_driver_sql(f'CREATE ROLE "{ODD_NAME}" LOGIN PASSWORD {literal}'.replace("%40", "%%40"))
        connection.exec_driver_sql(f'CREATE DATABASE "{ODD_NAME}" OWNER "{ODD_NAME}"'.replace("%", "%%"))
    host, port = admin.url.query["host"], admin.url.query["port"]
    yield URL.create("postgresql", ODD_NAME, SECRET, database=ODD_NAME, query={"host": host, "port": port})


def show(engine: Engine, name: str) -> str:
    with engine.connect() as connection:
        return str(connection.exec_driver_sql(f"SHOW {name}").scalar())


# What every connection has


@pytest.mark.parametrize("whose", ["ours", "Optuna's"])
def test_every_connection_has_the_agreed_settings(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")  # goes before any option of ours
    with open_database(text_of(empty_database.url)) as database:
        engine = database.engine
        if whose == "Optuna's":
            engine = RDBStorage(database.storage_url_for_optuna(), engine_kwargs=database.engine_options).engine
        assert engine.url.drivername == "postgresql+psycopg2"
        assert {name: show(engine, name) for name in ("timezone", "lock_timeout", "application_name")} == {
            "timezone": "UTC",
            "lock_timeout": "10s",
            "application_name": "distune",
        }
        assert show(engine, "idle_in_transaction_session_timeout") == "30s"
        assert show(engine, "transaction_isolation") == "read committed"
        with engine.connect() as connection:
            parameters = connection.connection.driver_connection.info.dsn_parameters
        assert {"connect_timeout": "5", "tcp_user_timeout": "5000", "keepalives": "1"}.items() <= parameters.items()
        engine.dispose()


def test_a_database_with_another_default_isolation_is_overridden(empty_database: Database) -> None:
    with empty_database.engine.begin() as connection:
        name = empty_database.url.database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    with open_database(text_of(empty_database.url)) as database:
        assert show(database.engine, "transaction_isolation") == "read committed"
        assert show(database.engine, "timezone") == "UTC"


def test_what_the_url_says_goes_before_our_defaults(empty_database: Database) -> None:
    query = {"application_name": "mine", "options": "-c lock_timeout=3s", "connect_timeout": "9"}
    with open_database(text_of(empty_database.url.update_query_dict(query))) as database:
        assert show(database.engine, "application_name") == "mine"
        assert show(database.engine, "lock_timeout") == "3s"
        assert show(database.engine, "timezone") == "UTC"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_usual_scheme_is_accepted(empty_database: Database, scheme: str) -> None:
    url = text_of(empty_database.url).replace("postgresql+psycopg2", scheme, 1)
    with open_database(url) as database:
        assert database.url.drivername == "postgresql+psycopg2"


def test_a_connection_that_was_cut_in_the_pool_is_replaced(empty_database: Database, admin: Engine) -> None:
    show(empty_database.engine, "timezone")
    with admin.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            (empty_database.url.database,),
        )
    assert show(empty_database.engine, "timezone") == "UTC"


# Passwords


def test_any_password_and_name_work_through_our_engine_and_optunas(odd_url: URL) -> None:
    with open_database(text_of(odd_url)) as database:
        with database.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT current_user").scalar() == ODD_NAME
        storage = RDBStorage(database.storage_url_for_optuna(), engine_kwargs=database.engine_options)
        study = optuna.create_study(storage=storage)
        study.tell(study.ask(), 0.5)
        assert study.best_value == 0.5
        storage.remove_session()
        storage.engine.dispose()


def test_the_password_may_be_in_the_query_of_the_url(odd_url: URL) -> None:
    bare = URL.create("postgresql", ODD_NAME, database=ODD_NAME, query=odd_url.query)
    with open_database(text_of(bare.update_query_dict({"password": SECRET}))) as database:
        assert "password" not in database.url.query


@pytest.mark.parametrize("how", ["PGPASSWORD", "PGPASSFILE", "passfile"])
def test_a_url_without_a_password_takes_it_from_the_usual_places(
    plain_url: URL, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    password_file = tmp_path / "pgpass"
    password_file.write_text(f"*:*:*:distune:{server.password}\n")
    password_file.chmod(0o600)
    match how:
        case "PGPASSWORD":
            monkeypatch.setenv(how, server.password)
        case "PGPASSFILE":
            monkeypatch.setenv(how, str(password_file))
        case _:
            plain_url = plain_url.update_query_dict({"passfile": str(password_file)})
    open_database(text_of(plain_url)).close()


def test_no_password_is_in_what_a_database_shows_of_itself(odd_url: URL) -> None:
    with open_database(text_of(odd_url)) as database:
        shown = [str(database.url), text_of(database.url), repr(database), database.storage_url_for_optuna()]
        shown += [repr(database.engine), str(database.engine.url), redacted(text_of(odd_url))]
    for text in shown:
        assert "Se" not in text.replace("SCHEMA", ""), text


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://me:hunter2@h:1/d", "postgresql+psycopg2://me:***@h:1/d"),
        ("postgresql://me@h/d?password=hunter2", "postgresql+psycopg2://me:***@h/d"),
        ("postgresql://me@h/d", "postgresql+psycopg2://me@h/d"),
        ("me:hunter2@h", "(not a PostgreSQL URL)"),
        ("mysql://me:hunter2@h/d", "(not a PostgreSQL URL)"),
    ],
)
def test_a_redacted_url_has_no_password(url: str, expected: str) -> None:
    assert redacted(url) == expected


# What is said when there is no connection


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:///hunter2.db", "sqlite is not supported, only PostgreSQL is"),
        ("mysql+pymysql://u:hunter2@h/d", r"mysql\+pymysql is not supported"),
        ("postgresql+psycopg://u:hunter2@h/d", r"postgresql\+psycopg is not supported"),
        ("hunter2", "cannot be parsed; write it as postgresql://"),
        ("", "cannot be parsed"),
        ("postgresql://u:@h:hunter2/d", "cannot be parsed"),
        ("postgresql://u:pass@hunter2@h/d", "more than one @"),
    ],
)
def test_a_url_that_is_no_postgresql_url_is_refused_without_repeating_it(url: str, sentence: str) -> None:
    with pytest.raises(DatabaseUrlError, match=sentence) as caught:
        open_database(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def refused(url: str) -> DatabaseUnavailableError:
    """The error of opening ``url``, which must be one sentence without the password ``hunter2``."""
    with pytest.raises(DatabaseUnavailableError) as caught:
        open_database(url)
    message = str(caught.value)
    assert "\n" not in message
    assert "hunter2" not in message
    assert caught.value.__suppress_context__
    return caught.value


def test_a_server_that_is_not_there_is_named_with_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    error = refused(f"postgresql://u:hunter2@127.0.0.1:{port}/d")
    assert f"PostgreSQL at 127.0.0.1, port {port}, database d, cannot be reached (Connection refused)" in str(error)
    assert error.is_transient
    assert is_connection_error(error)


def test_a_host_that_does_not_exist_is_named() -> None:
    error = refused("postgresql://u:hunter2@nowhere.invalid/d")
    assert "PostgreSQL at nowhere.invalid, port 5432, database d, cannot be reached" in str(error)


def test_a_wrong_password_is_said_to_be_one(plain_url: URL) -> None:
    error = refused(text_of(plain_url.set(password="hunter2")))
    assert re.search(r"database test_\d+, refused the login \(password authentication failed", str(error))
    assert "correct the password in the URL, PGPASSWORD or PGPASSFILE" in str(error)
    assert not error.is_transient
    assert not is_connection_error(error)


def test_a_missing_password_is_said_to_be_missing(plain_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSFILE", "/nowhere")
    assert "no password supplied" in str(refused(text_of(plain_url)))


def test_an_unknown_database_is_named_with_the_remedy(empty_database: Database) -> None:
    error = refused(text_of(empty_database.url.set(database="nosuch")))
    assert 'database "nosuch" does not exist; create it (createdb nosuch) or correct the URL' in str(error)
    assert not error.is_transient


def test_an_unknown_parameter_in_the_url_is_named(empty_database: Database) -> None:
    error = refused(text_of(empty_database.url.update_query_dict({"sslmoed": "require"})))
    assert "sslmoed" in str(error)
    assert not error.is_transient


def test_a_server_without_free_connections_is_not_ready(odd_url: URL, admin: Engine) -> None:
    with admin.connect() as connection:
        connection.exec_driver_sql(f'ALTER ROLE "{ODD_NAME}" CONNECTION LIMIT 0'.replace("%", "%%"))
    error = refused(text_of(odd_url))
    assert "is not ready (too many connections" in str(error)
    assert error.is_transient


# Which errors are worth a retry


def error_of(action: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


def test_a_connection_cut_in_mid_transaction_is_retried(empty_database: Database, admin: Engine) -> None:
    def be_cut() -> None:
        with empty_database.engine.begin() as connection:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            with admin.connect() as killer:
                killer.exec_driver_sql("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            connection.exec_driver_sql("SELECT 1")

    error = error_of(be_cut)
    assert is_connection_error(error)
    wrapped = StorageInternalError("optuna's words")
    wrapped.__cause__ = error
    assert is_connection_error(wrapped)


def test_a_lock_that_is_not_granted_in_time_is_retried(empty_database: Database) -> None:
    engine = empty_database.engine

    def wait_for_the_lock() -> None:
        with engine.begin() as other:
            other.exec_driver_sql("SET LOCAL lock_timeout = '10ms'")
            other.exec_driver_sql("LOCK TABLE t")

    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x int PRIMARY KEY)")
    with engine.begin() as holder:
        holder.exec_driver_sql("LOCK TABLE t")
        assert is_connection_error(error_of(wait_for_the_lock))


def test_optunas_error_for_a_database_that_takes_no_connections_is_retried(
    empty_database: Database, admin: Engine
) -> None:
    storage = RDBStorage(empty_database.storage_url_for_optuna(), engine_kwargs=empty_database.engine_options)
    name = empty_database.url.database
    with admin.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,)
        )
    assert is_connection_error(error_of(storage.get_all_studies))
    storage.remove_session()
    storage.engine.dispose()


def test_mistakes_are_not_retried(empty_database: Database) -> None:
    def violate() -> None:
        with empty_database.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (x int PRIMARY KEY)")
            connection.exec_driver_sql("INSERT INTO t VALUES (1), (1)")

    assert not is_connection_error(error_of(violate))
    assert not is_connection_error(error_of(lambda: show(empty_database.engine, "nonsense")))
    assert not is_connection_error(ValueError("x"))
    assert not is_connection_error(None)


def outage() -> DBAPIError:
    return OperationalError("SELECT 1", {}, psycopg2.OperationalError("server closed the connection unexpectedly"))


def test_a_call_is_repeated_until_the_database_is_back() -> None:
    errors, revived = [outage(), outage()], []

    def act(word: str) -> str:
        if errors:
            raise errors.pop()
        return word

    assert retrying(timeout_s=30, before_retry=lambda: revived.append(1))(act, "done") == "done"
    assert revived == [1, 1]


def test_retrying_ends_with_the_last_error_when_the_time_is_over() -> None:
    with pytest.raises(OperationalError):
        retrying(timeout_s=0)(lambda: (_ for _ in ()).throw(outage()))


def test_retrying_ends_when_it_is_told_to_stop() -> None:
    stop, calls = threading.Event(), []

    def act() -> None:
        calls.append(1)
        stop.set()
        raise outage()

    with pytest.raises(OperationalError):
        retrying(timeout_s=1000, stop=stop)(act)
    assert len(calls) == 1


def test_other_errors_are_raised_at_once() -> None:
    calls: list[int] = []

    def act() -> None:
        calls.append(1)
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        retrying()(act)
    assert calls == [1]
