"""optuna-dashboard on our database: to look at, not to touch, and on this machine only unless asked otherwise."""

import json
import logging
import signal
import sys
import threading
from collections.abc import Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.storages import RDBStorage
from optuna_dashboard import wsgi

from search.errors import SearchError, StudyError
from search.study import has_tables
from storage.database import Database

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

READ_ONLY = "the dashboard only shows studies; change them with the distune commands"
READS = ("GET", "HEAD")
MOST_DRAINED_BYTES = 1_000_000
ENDING = (signal.SIGINT, signal.SIGTERM)


class DashboardAddressError(SearchError):
    """The dashboard cannot listen where it was asked to."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request, as in optuna-dashboard's own server: one slow page must not hold up the others."""

    daemon_threads = True

    def server_bind(self) -> None:
        # HTTPServer asks DNS for its own name here, which takes long where there is no DNS.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser that went away is no news; whatever the application raises was answered and logged before.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _QuietHandler(WSGIRequestHandler):
    """A page asks for its state every few seconds: nobody wants to read that."""

    timeout = 60  # seconds; a connection that says nothing keeps its thread no longer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base class names it
        """Say nothing."""


def open_server(database: Database, host: str, port: int) -> WSGIServer:
    """Return a server that listens already; port 0 takes a free one. ``serve_forever`` starts it.

    Raises:
        StudyError: the database has no tables yet.
        DashboardAddressError: the address cannot be used.
    """
    if not has_tables(database):
        raise StudyError("this database has no studies yet; start one with `distune launch STUDY.YAML`")
    application = _for_reading(wsgi(_read_only_storage(database)))
    try:
        return make_server(host, port, application, server_class=_Server, handler_class=_QuietHandler)
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise DashboardAddressError(
            f"the dashboard cannot listen on {host}, port {port}: {reason}; choose others with --host and --port, "
            "for example --port 0 for a free one"
        ) from exc


def serve_dashboard(database: Database, *, host: str, port: int, study_id: int | None) -> None:
    """Serve until SIGINT (Ctrl-C) or SIGTERM. To be called in the main thread.

    Raises:
        As ``open_server``.
    """
    path = "" if study_id is None else f"dashboard/studies/{study_id}"
    with open_server(database, host, port) as server:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            thread = threading.Thread(target=server.serve_forever, name="dashboard", daemon=True)
            thread.start()
            shown = "127.0.0.1" if host in ("", "0.0.0.0") else host  # noqa: S104 we listen where we were told to
            print(f"optuna-dashboard: http://{shown}:{server.server_port}/{path} (Ctrl-C ends it)", flush=True)
            signal.sigwait(ENDING)
            server.shutdown()
            thread.join()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _read_only_storage(database: Database) -> RDBStorage:
    """Optuna's storage over connections that cannot write: optuna-dashboard has no login and can delete studies."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options = database.engine_options
    options["connect_args"]["options"] += " -c default_transaction_read_only=on"
    return RDBStorage(database.storage_url_for_optuna(), engine_kwargs=options, skip_table_creation=True)


def _for_reading(application: "WSGIApplication") -> "WSGIApplication":
    """Answer what would write with the reason, in the form that the page shows, instead of an error of the database."""
    refusal = json.dumps({"reason": READ_ONLY}).encode()

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in READS:
            return application(environ, start_response)
        # Closing on unread data would reset the connection before the answer is read.
        length = environ.get("CONTENT_LENGTH") or "0"
        environ["wsgi.input"].read(min(int(length), MOST_DRAINED_BYTES) if length.isdecimal() else 0)
        start_response("403 Forbidden", [("Content-Type", "application/json"), ("Content-Length", str(len(refusal)))])
        return [refusal]

    return answer
