"""The way to the database: one function opens it, an external PostgreSQL or the embedded one."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg2
import psycopg2.extensions
import sqlalchemy
import tenacity
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from storage.embedded import EmbeddedServer, open_embedded
from storage.errors import DatabaseUnavailableError, DatabaseUrlError
from storage.password_file import read_password_file

DRIVER = "postgresql+psycopg2"
URL_EXAMPLE = "postgresql://user@host:5432/database"
# A dead network is noticed in seconds, not minutes: libpq would hang for over 40 s, with Python's signal handlers
# held up meanwhile. Times are compared in UTC whatever the machine's zone is, a frozen client blocks nobody for long,
# and Optuna's claim of a trial is right under READ COMMITTED only.
CONNECTION_DEFAULTS: dict[str, str | int] = {
    "application_name": "distune",
    "connect_timeout": 5,  # seconds
    "tcp_user_timeout": 5000,  # milliseconds
    "keepalives": 1,
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 3,
}
SESSION_OPTIONS = (
    "-c timezone=UTC -c lock_timeout=10s -c idle_in_transaction_session_timeout=30s"
    r" -c default_transaction_isolation=read\ committed"
)
RETRYABLE_SQLSTATES = ("08", "53", "57P", "25P03", "40001", "40P01", "55P03")
NOT_READY_SIGNS = ("starting up", "shutting down", "recovery mode", "not yet accepting", "too many", "connection slots")


class Database:
    """An open database: our engine, what another engine needs to be like it, and the embedded server's share, if any.

    ``url`` has no password in it; ``engine_options`` hands it to the driver. Close it, or use it in a ``with`` block:
    the last user of an embedded server stops it.
    """

    def __init__(self, url: URL, password: str | None, server: EmbeddedServer | None = None) -> None:
        self.url = url
        self._password = password
        self._server = server
        self.engine = sqlalchemy.create_engine(url, **self.engine_options)

    @property
    def engine_options(self) -> dict[str, Any]:
        """Keyword arguments for ``sqlalchemy.create_engine``; the same for our engine and for Optuna's."""
        arguments: dict[str, Any] = {k: v for k, v in CONNECTION_DEFAULTS.items() if k not in self.url.query}
        arguments["options"] = f"{SESSION_OPTIONS} {_query_text(self.url, 'options') or ''}".strip()
        arguments["connection_factory"] = _connect_in_utc
        if self._password is not None:
            arguments["password"] = self._password
        return {
            "pool_pre_ping": True,
            "pool_size": 2,
            "max_overflow": 2,
            "pool_recycle": 1800,  # seconds
            "connect_args": arguments,
        }

    def storage_url_for_optuna(self) -> str:
        """The URL as Optuna's ``RDBStorage`` wants it: it goes through ``str.format`` there. Without a password."""
        return self.url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")

    def revive(self) -> None:
        """Start the embedded server again if it has died; nothing to do for an external one.

        Raises:
            EmbeddedServerError: it does not start.
        """
        if self._server is not None:
            self._server.revive()

    def close(self) -> None:
        """Close our connections and, as the last user of an embedded server, stop it. May be repeated."""
        self.engine.dispose()
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def open_database(url: str | None, home: Path | None = None) -> Database:
    """Connect to the PostgreSQL at ``url``; without one, to the embedded server in ``home`` or its default.

    A URL without a password leaves it to DISTUNE_PASSWORD_FILE; without that one to PGPASSWORD, PGPASSFILE or
    ``passfile=`` in the URL, as everywhere with libpq.

    Raises:
        DatabaseUrlError: ``url`` is not a PostgreSQL URL, or there is no password in DISTUNE_PASSWORD_FILE.
        DatabaseUnavailableError: no connection; an ``EmbeddedServerError`` where the embedded server is to blame.
    """
    if url is None:
        server = open_embedded(home)
        database = Database(server.url, server.password, server)
    else:
        bare, password = _split_password(_parse(url))
        database = Database(bare, password if password is not None else read_password_file())
    try:
        with database.engine.connect():
            pass
    except (SQLAlchemyError, psycopg2.Error) as exc:
        database.close()
        raise _as_unavailable(database, exc) from None
    return database


def redacted(url: str) -> str:
    """``url`` for people's eyes: the password replaced by ``***``; nothing at all of a URL that cannot be parsed."""
    try:
        parsed, password = _split_password(_parse(url))
    except DatabaseUrlError:
        return "(not a PostgreSQL URL)"
    return (parsed if password is None else parsed.set(password=password)).render_as_string(hide_password=True)


def is_connection_error(exc: BaseException | None) -> bool:
    """Whether ``exc`` comes from a database that is away, busy or restarting, so that the same call may succeed later.

    That is: a lost connection, a server that starts or stops, too many connections, a full disk, a deadlock, a lock not
    granted in time; also inside what wraps it (SQLAlchemy's ``orig``, Optuna's ``StorageInternalError``).
    """
    while exc is not None:
        if isinstance(exc, DatabaseUnavailableError):
            return exc.is_transient
        if isinstance(exc, DBAPIError):
            if exc.connection_invalidated:
                return True
            exc = exc.orig
        elif isinstance(exc, psycopg2.Error):
            if exc.pgcode is not None:
                return exc.pgcode.startswith(RETRYABLE_SQLSTATES)
            return isinstance(exc, psycopg2.OperationalError | psycopg2.InterfaceError)
        else:
            exc = exc.__cause__
    return False


def retrying(
    *,
    timeout_s: float = 30.0,
    stop: threading.Event | None = None,
    before_retry: Callable[[], None] | None = None,
) -> tenacity.Retrying:
    """Repeat a short transaction over connection errors: ``retrying()(function, *arguments)``.

    Waits are random and grow to 2 s; after ``timeout_s`` the last error is raised. Only for what may be repeated: the
    reply to a COMMIT may be what was lost.

    Args:
        stop: when set, ends the waiting at once and raises the last error.
        before_retry: called before each wait, for example ``database.revive``.
    """
    until: tenacity.stop.stop_base = tenacity.stop_after_delay(timeout_s)
    if stop is not None:
        until = until | tenacity.stop_when_event_set(stop)
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_connection_error),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=2.0),
        stop=until,
        sleep=tenacity.nap.sleep if stop is None else tenacity.sleep_using_event(stop),
        before_sleep=None if before_retry is None else lambda _: before_retry(),
        reraise=True,
    )


def _connect_in_utc(dsn: str) -> psycopg2.extensions.connection:
    """A connection whose zone is UTC even where the environment has PGTZ, which libpq sends after our options."""
    connection = psycopg2.extensions.connection(dsn)
    if connection.get_parameter_status("TimeZone") != "UTC":
        with connection, connection.cursor() as cursor:
            cursor.execute("SET TIME ZONE 'UTC'")
    return connection


def _parse(url: str) -> URL:
    # `from None` throughout: the parser's own messages may quote a piece of the password.
    try:
        parsed = sqlalchemy.make_url(url)
    except (SQLAlchemyError, ValueError):
        raise DatabaseUrlError(
            f"the database URL cannot be parsed; write it as {URL_EXAMPLE}, and special characters in it as %40, %2F …"
        ) from None
    scheme = parsed.drivername
    if scheme not in ("postgres", "postgresql", DRIVER):
        raise DatabaseUrlError(
            f"{scheme} is not supported, only PostgreSQL is; write the database URL as {URL_EXAMPLE}"
        )
    if "@" in (parsed.host or ""):
        raise DatabaseUrlError("the database URL has more than one @; write the one in the password as %40")
    return parsed.set(drivername=DRIVER)


def _split_password(url: URL) -> tuple[URL, str | None]:
    password = url.password if url.password is not None else _query_text(url, "password")
    bare = URL.create(DRIVER, url.username, None, url.host, url.port, url.database, url.query)
    return bare.difference_update_query(["password"]), password


def _query_text(url: URL, key: str) -> str | None:
    value = url.query.get(key)
    return " ".join(value) if isinstance(value, tuple) else value


def _as_unavailable(database: Database, exc: Exception) -> DatabaseUnavailableError:
    """One sentence for a connection that failed. libpq gives no SQLSTATE here, so the kind is read from its text."""
    url, cause = database.url, exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
    host = url.host or _query_text(url, "host") or "the default host"
    port = url.port or _query_text(url, "port") or 5432
    name = url.database or url.username or "(default)"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    reason = lines[0].rsplit("failed: ", 1)[-1].removeprefix("FATAL:").strip()
    place = f"PostgreSQL at {host}, port {port}, database {name}"
    if isinstance(cause, psycopg2.ProgrammingError):
        return DatabaseUnavailableError(
            f"{place}: {reason}; correct the parameters of the database URL", is_transient=False
        )
    if "authentication failed" in reason or "no password supplied" in reason:
        remedy = "correct the password in the URL, PGPASSWORD or PGPASSFILE, or in the file of DISTUNE_PASSWORD_FILE"
        return DatabaseUnavailableError(f"{place}, refused the login ({reason}); {remedy}", is_transient=False)
    if "does not exist" in reason:
        remedy = f"create it (createdb {name}) or correct the URL"
        return DatabaseUnavailableError(f"{place}: {reason}; {remedy}", is_transient=False)
    if any(sign in reason for sign in NOT_READY_SIGNS):
        remedy = "try again in a moment, or raise its max_connections"
        return DatabaseUnavailableError(f"{place}, is not ready ({reason}); {remedy}", is_transient=True)
    if "FATAL" in str(cause):
        remedy = "correct the URL or the server's pg_hba.conf"
        return DatabaseUnavailableError(f"{place}, refused the connection ({reason}); {remedy}", is_transient=False)
    remedy = "check that it runs and can be reached from here, or correct the URL"
    return DatabaseUnavailableError(f"{place}, cannot be reached ({reason}); {remedy}", is_transient=True)
