"""The embedded PostgreSQL of a home folder: all processes that open it share one server, and the last one out stops it.

What lies in a home::

    data/           PostgreSQL's data folder; belongs to the user that the server runs as
    password        the server's password, mode 0600, in the format of PGPASSFILE
    server.log      the server's messages; put aside as server.log.1 at a start, when it has grown large
    server.json     where the server was started that runs now, or that was never stopped
    start.lock      held by whoever starts, stops or attaches to the server, while doing so
    users.lock      shared by every process that uses the server; to get it alone is to be the last one
    server.lock     inherited by the server's own processes; if it is free, none of them lives

When a server is wanted, under start.lock:

===========  =============================  ==========================================================================
server.lock  server.json                    what is done
===========  =============================  ==========================================================================
free         none                           start: the last one was stopped
free         same boot                      start, and PostgreSQL recovers: it crashed, or its container was ended
free         same host, another boot        the same: the machine was restarted
free         another host and boot          refuse: it may live there, as locks on a network folder may not reach here
held         same boot and PID namespace    attach as soon as a connection works
held         anything else                  refuse: its processes and its socket are out of our sight
===========  =============================  ==========================================================================

A server whose users were all killed goes on running; the next user attaches to it, and stops it when leaving.
"""

import atexit
import contextlib
import logging
import os
import secrets
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import psycopg2
from sqlalchemy import URL

from storage import locks, postmaster
from storage.account import REMEDY, Account, server_account
from storage.errors import EmbeddedServerError
from storage.files import write_atomic
from storage.origin import Origin

ANSWER_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
LOCK_TIMEOUT_S = 90.0
NUM_START_ATTEMPTS = 2

log = logging.getLogger(__name__)


def default_home() -> Path:
    """``~/.local/share/distune``; for root /var/lib/distune, since the server's user may not enter /root."""
    return Path("/var/lib/distune") if os.geteuid() == 0 else Path.home() / ".local" / "share" / "distune"


def open_embedded(home: Path | None = None) -> "EmbeddedServer":
    """Attach to the server of ``home`` (``None``: ``default_home()``), starting it if there is none.

    Raises:
        EmbeddedServerError: it cannot be used here; the message says why and what to do.
    """
    account = server_account()
    home = (home if home is not None else default_home()).resolve()
    with _explained(home):
        account.check_reach(next(folder for folder in (home, *home.parents) if folder.is_dir()))
        if not home.is_dir():
            home.mkdir(parents=True, exist_ok=True)
            home.chmod(0o700 if account.is_ours else 0o711)  # whatever the umask is
        account.check_reach(home)
        return EmbeddedServer(home, account)


class EmbeddedServer:
    """One process's share in the server of ``home``, from construction to ``close``. See ``open_embedded``."""

    def __init__(self, home: Path, account: Account) -> None:
        self.home = home
        self._account = account
        self._data = home / "data"
        self._socket_folder: Path | None = None
        self._users_lock = -1
        with locks.exclusive(home / "start.lock", LOCK_TIMEOUT_S):
            users_lock = locks.open_lock(home / "users.lock")
            try:
                locks.share(users_lock)
                self._ensure_running()
            except BaseException:
                os.close(users_lock)
                raise
            self._users_lock = users_lock
        atexit.register(self.close)
        forget = weakref.WeakMethod(self._forget)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    @property
    def password(self) -> str:
        """For the driver: a PGPASSWORD in the environment would go before the file that the URL names."""
        with _explained(self.home):
            return (self.home / "password").read_text().strip().rsplit(":", 1)[-1]

    @property
    def url(self) -> URL:
        """Of the database ``distune``; no secret in it, as it names the password's file."""
        query = {"host": str(self._socket_folder), "port": str(postmaster.PORT)}
        query["passfile"] = str(self.home / "password")
        return URL.create("postgresql+psycopg2", username=postmaster.USER, database=postmaster.USER, query=query)

    def revive(self) -> None:
        """Start the server again if it has died. Its URL stays the same.

        Raises:
            EmbeddedServerError: it does not start.
        """
        with _explained(self.home), locks.exclusive(self.home / "start.lock", LOCK_TIMEOUT_S):
            self._ensure_running()

    def close(self) -> None:
        """Leave; the last one out stops the server. May be repeated."""
        users_lock, self._users_lock = self._users_lock, -1
        if users_lock < 0:
            return
        atexit.unregister(self.close)
        try:
            with locks.exclusive(self.home / "start.lock", LOCK_TIMEOUT_S):
                if locks.try_exclusive(users_lock):
                    self._stop()
        except OSError as exc:
            log.warning("the embedded server of %s was not stopped: %s", self.home, exc)
        finally:
            os.close(users_lock)

    def _forget(self) -> None:
        """Drop the share in a forked child: with its copy of the descriptor it would hold the lock after the parent."""
        if self._users_lock >= 0:
            os.close(self._users_lock)
            self._users_lock = -1

    def _ensure_running(self) -> None:
        """Return when a connection works; the table above, row by row. The caller holds start.lock."""
        origin = Origin.read(self.home / "server.json")
        deadline, num_starts = time.monotonic() + ANSWER_TIMEOUT_S, 0
        while True:
            server_lock = locks.open_lock(self.home / "server.lock")
            try:
                if locks.try_exclusive(server_lock):
                    if origin is not None and origin.may_live_elsewhere():
                        raise _refusal(self.home, origin)
                    if num_starts == NUM_START_ATTEMPTS:
                        raise EmbeddedServerError(self._complaint("does not start"))
                    origin = self._start(origin, server_lock)
                    num_starts += 1
                elif origin is None or not origin.is_in_sight():
                    raise _refusal(self.home, origin)
            finally:
                os.close(server_lock)
            self._socket_folder = Path(origin.socket_folder)
            failure = self._try_connection()
            if failure is None:
                return
            if time.monotonic() > deadline or "authentication failed" in failure or "no password" in failure:
                raise EmbeddedServerError(self._complaint(f"does not let us in: {failure}"))
            time.sleep(locks.POLL_S)

    def _start(self, origin: Origin | None, server_lock: int) -> Origin:
        """Start a server that holds ``server_lock`` from now on, on a data folder that is created if there is none."""
        programs = postmaster.find_programs(self._account, self.home)
        if not self._data.exists():
            password = secrets.token_urlsafe(24)
            write_atomic(self.home / "password", f"*:*:*:{postmaster.USER}:{password}\n", mode=0o600)
            postmaster.create_data(self._data, programs, self._account, password)
        postmaster.check_version(self._data)
        earlier = Path(origin.socket_folder) if origin is not None else None
        socket_folder = postmaster.make_socket_folder(self._account, earlier)
        origin = Origin.here(socket_folder)
        origin.save(self.home / "server.json")  # before the start: a server without it would be refused to all
        postmaster.start_server(
            self._data,
            programs,
            self._account,
            socket_folder=socket_folder,
            log_path=self.home / "server.log",
            lock_descriptor=server_lock,
        )
        return origin

    def _stop(self) -> None:
        """Stop the server and wait until none of its processes is left. The caller holds start.lock."""
        postmaster.ask_to_stop(self._data)
        server_lock = locks.open_lock(self.home / "server.lock")
        try:
            locks.wait_exclusive(server_lock, STOP_TIMEOUT_S)
        finally:
            os.close(server_lock)
        (self.home / "server.json").unlink(missing_ok=True)
        if self._socket_folder is not None:
            with contextlib.suppress(OSError):
                self._socket_folder.rmdir()

    def _try_connection(self) -> str | None:
        """Why no connection works, or ``None`` when one does; and then our database exists."""
        if self._socket_folder is None or not postmaster.is_private(self._socket_folder, self._account):
            return f"{self._socket_folder} is not a folder that only the server's user may enter"
        try:
            connection = psycopg2.connect(
                host=str(self._socket_folder),
                port=postmaster.PORT,
                user=postmaster.USER,
                password=self.password,
                dbname="postgres",
                options="",
                connect_timeout=5,
            )
        except psycopg2.OperationalError as exc:
            return postmaster.last_line(str(exc))
        with contextlib.closing(connection):
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT FROM pg_database WHERE datname = %s", (postmaster.USER,))
                if cursor.rowcount == 0:  # a first start, or one that was killed at this point
                    cursor.execute(f"CREATE DATABASE {postmaster.USER}")
        return None

    def _complaint(self, what: str) -> str:
        return f"the embedded PostgreSQL of {self.home} {what}; see {self.home / 'server.log'}, {REMEDY}"


def _refusal(home: Path, origin: Origin | None) -> EmbeddedServerError:
    place = "an unknown machine or container" if origin is None else f"{origin.host}, another machine or container"
    return EmbeddedServerError(
        f"the database in {home} is in use by {place}, or was not stopped there; stop distune there (if that place is "
        f"gone, delete {home / 'server.json'}), give another folder with --home, {REMEDY}"
    )


@contextlib.contextmanager
def _explained(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        reason = f"{exc.filename}: {exc.strerror}" if exc.filename else exc
        raise EmbeddedServerError(
            f"the database folder {home} cannot be used ({reason}); give another with --home, {REMEDY}"
        ) from exc
