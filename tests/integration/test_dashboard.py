"""The dashboard's server on a real database: it shows, and it changes nothing."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from optuna.exceptions import StorageInternalError

from search.dashboard import DashboardAddressError, _read_only_storage, open_server
from search.errors import StudyError
from search.study import OpenStudy, create_study, list_names
from storage.database import Database
from tests.studies import make_study_spec


@pytest.fixture
def study(database: Database) -> OpenStudy:
    return create_study(make_study_spec(), database)


@pytest.fixture
def url(study: OpenStudy) -> Iterator[str]:
    with open_server(study.database, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_study_and_its_trials_are_shown(url: str, study: OpenStudy) -> None:
    with urllib.request.urlopen(f"{url}/dashboard/studies/{study.study_id}", timeout=20) as page:
        assert b"<html" in page.read()
    with urllib.request.urlopen(f"{url}/api/studies/{study.study_id}?after=0", timeout=20) as answer:
        detail = json.load(answer)
    assert detail["name"] == "s"
    assert [trial["state"] for trial in detail["trials"]] == ["Waiting"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "/api/studies/{id}", None),
        ("POST", "/api/studies", {"study_name": "new", "directions": ["minimize"]}),
        ("POST", "/api/studies/{id}/rename", {"study_name": "renamed"}),
        ("PUT", "/api/studies/{id}/note", {"body": "n" * 100_000, "version": 1}),
        ("POST", "/api/trials/1/tell", {"state": "Fail"}),
    ],
)
def test_nothing_can_be_changed(url: str, study: OpenStudy, method: str, path: str, body: object) -> None:
    request = urllib.request.Request(
        url + path.format(id=study.study_id),
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    with caught.value as answer:
        assert answer.code == 403
        assert "distune commands" in json.load(answer)["reason"]
    assert list_names(study.database) == ["s"]


def test_its_database_sessions_cannot_write_either(study: OpenStudy) -> None:
    storage = _read_only_storage(study.database)
    with pytest.raises(StorageInternalError) as caught:
        storage.delete_study(study.study_id)
    assert "read-only transaction" in str(caught.value.__cause__)
    storage.engine.dispose()
    assert list_names(study.database) == ["s"]


def test_a_connection_that_says_nothing_holds_nobody_up(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))), urllib.request.urlopen(f"{url}/api/studies", timeout=20) as page:
        assert page.status == 200


def test_a_port_in_use_and_an_unknown_host_are_one_sentence(study: OpenStudy) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(DashboardAddressError, match=rf"port {port}: address already in use; .*--port 0"):
            open_server(study.database, "127.0.0.1", port)
    with pytest.raises(DashboardAddressError, match=r"--host"):
        open_server(study.database, "no.such.host.invalid", 0)


def test_a_database_without_tables_is_one_sentence(empty_database: Database) -> None:
    with pytest.raises(StudyError, match="distune launch"):
        open_server(empty_database, "127.0.0.1", 0)
