"""Each service's command of docker-compose.yml as a plain process: same arguments, same environment, same secret."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.study import create_study, create_tables, has_tables, list_names, load_study
from storage.database import Database
from storage.embedded import EmbeddedServer
from tests.compose import load_compose
from tests.studies import make_study_spec, wait_for

SERVICES: dict[str, dict[str, Any]] = load_compose()["services"]
EVERY_ADDRESS, THIS_MACHINE = "0.0.0.0", "127.0.0.1"


@dataclass
class Service:
    """A service's process. What it printed is read whenever it is asked for."""

    process: subprocess.Popen[bytes]
    output_path: Path

    @property
    def output(self) -> str:
        return self.output_path.read_text()

    def wait_for_output(self, pattern: str) -> re.Match[str]:
        """Return the first match in what it prints, as soon as there is one."""

        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.output)
            assert found or self.process.poll() is None, self.output
            return found

        try:
            return wait_for(look, timeout_s=90)
        except AssertionError as exc:
            raise AssertionError(f"{pattern!r} is not in: {self.output}") from exc

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, as `docker compose stop` does, and see that it ends well."""
        self.process.send_signal(how)
        self.finish(code=0)

    def finish(self, *, code: int, timeout_s: float = 30) -> str:
        """Wait for its end, check the exit code, and return what it printed."""
        assert self.process.wait(timeout=timeout_s) == code, self.output
        assert "Traceback" not in self.output
        return self.output


@dataclass
class Compose:
    """Starts services as Compose would: folders of this test stand for the mounts, the test's database for postgres."""

    folder: Path
    database: Database
    password: str
    services: list[Service] = field(default_factory=list)

    def path(self, inside: str) -> str:
        """Return what stands for a container's path: the folder of this test under the same name."""
        return str(self.folder / inside.lstrip("/"))

    def start(self, name: str, **environment: str) -> Service:
        """Start the service's command."""
        service = SERVICES[name]
        targets = [mount["target"] for mount in service.get("volumes", [])]
        for target in targets:
            Path(self.path(target)).mkdir(parents=True, exist_ok=True)

        def outside(word: str) -> str:
            is_mounted = any(word.startswith(target) for target in [*targets, "/run/secrets"])
            return self.path(word) if is_mounted else word

        settings = {key: outside(value) for key, value in service["environment"].items()}
        # The session's server says in its URL where its own password file is: here only the secret may open it.
        url = self.database.url.difference_update_query(["passfile"]).update_query_dict({"application_name": name})
        settings["DISTUNE_STORAGE"] = url.render_as_string(hide_password=False)
        command = [outside(word) for word in service["command"]]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "DISTUNE"))}
        output_path = self.folder / f"output-{len(self.services)}.txt"
        with output_path.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "search.cli", *command],
                env={**kept, **settings, "COLUMNS": "300", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.services.append(Service(process=process, output_path=output_path))
        return self.services[-1]

    def processes(self) -> set[int]:
        """Return what lives of the services and of the processes they started."""
        sessions = {service.process.pid for service in self.services}
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            # After the name in brackets: state, parent, group, session.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, _, _, session = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
                if int(session) in sessions and state not in "ZX":
                    found.add(int(entry.name))
        return found

    def assert_no_leak(self) -> None:
        """See that the password is in no command line, no environment of ours, and nothing that was printed."""
        secret = self.password.encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                assert secret not in (entry / "cmdline").read_bytes()
        for pid in self.processes():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                assert secret not in Path(f"/proc/{pid}/environ").read_bytes()
        for service in self.services:
            assert self.password not in service.output


@pytest.fixture
def compose(tmp_path: Path, empty_database: Database, server: EmbeddedServer) -> Iterator[Compose]:
    """The services over an empty database; all that a test leaves running is ended."""
    assert server.password
    compose = Compose(tmp_path, empty_database, server.password)
    # Once, before anything starts: a service that reads the secret while it is written finds it empty, and ends.
    secret = Path(compose.path("/run/secrets/postgres_password"))
    secret.parent.mkdir(parents=True)
    secret.write_text(server.password + "\n")
    yield compose
    for pid in compose.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for service in compose.services:
        service.process.wait()
    wait_for(lambda: not compose.processes())


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dashboard's service on a free port of this machine."""
    command = [{"8080": "0", EVERY_ADDRESS: THIS_MACHINE}.get(word, word) for word in SERVICES["dashboard"]["command"]]
    assert command != SERVICES["dashboard"]["command"]
    monkeypatch.setitem(SERVICES["dashboard"], "command", command)


def write_study(folder: Path, *, trials: int = 4, learning_rate: float = 1e-3, name: str = "there") -> None:
    """Write the study file of the coordinator; its data folder is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "study": {"name": name, "trials": trials, "runs": "../runs", "lease_ttl_s": 2},
        "space": {"kl_weight": {"low": 0.001, "high": 1}},
        "trial": {
            "data": {"train": "../data/train", "dev": "../data/dev"},
            "teacher": {"model": "../models/teacher"},
            "optim": {"examples": 100, "lr": learning_rate},
            "runtime": {"device": "cpu", "threads": 1},
        },
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))


def get(url: str) -> tuple[int, str]:
    """Fetch a page, following redirects."""
    with urllib.request.urlopen(url, timeout=20) as response:
        return response.status, response.read().decode()


def test_init_makes_the_tables_and_may_be_repeated(compose: Compose) -> None:
    assert not has_tables(compose.database)
    for _ in range(2):
        assert "tables are ready" in compose.start("init").finish(code=0)
        assert has_tables(compose.database)
    compose.assert_no_leak()


def test_a_wrong_password_is_one_sentence_with_a_remedy(compose: Compose) -> None:
    wrong = compose.folder / "wrong"
    wrong.write_text("not the password")
    output = compose.start("init", DISTUNE_PASSWORD_FILE=str(wrong)).finish(code=1)
    assert output.startswith("distune: ") and output.count("\n") == 1
    assert "refused the login" in output and "DISTUNE_PASSWORD_FILE" in output
    assert "not the password" not in output


def test_a_secret_that_is_not_there_is_one_sentence_with_a_remedy(compose: Compose) -> None:
    output = compose.start("init", DISTUNE_PASSWORD_FILE="/nonexistent/secret").finish(code=2)
    assert output.startswith("distune: cannot read the password file /nonexistent/secret")
    assert output.count("\n") == 1


@pytest.mark.usefixtures("port")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_dashboard_shows_studies_until_it_is_asked_to_end(compose: Compose, how: signal.Signals) -> None:
    create_tables(compose.database)
    create_study(make_study_spec(name="shown"), compose.database)
    dashboard = compose.start("dashboard")
    url = dashboard.wait_for_output(r"http://\S+")[0]
    status, page = get(url)
    assert status == 200 and "<html" in page
    status, studies = get(f"{url}api/studies")
    assert status == 200
    assert [each["study_name"] for each in json.loads(studies)["study_summaries"]] == ["shown"]
    compose.assert_no_leak()
    dashboard.end(how)


@pytest.mark.usefixtures("port")
def test_the_health_check_of_the_dashboard_tells_whether_it_answers(compose: Compose) -> None:
    create_tables(compose.database)
    dashboard = compose.start("dashboard")
    url = dashboard.wait_for_output(r"http://\S+")[0]
    kind, *check = SERVICES["dashboard"]["healthcheck"]["test"]
    assert (kind, check[0]) == ("CMD", "python")
    command = [sys.executable, *(word.replace("http://127.0.0.1:8080/", url) for word in check[1:])]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    dashboard.end()
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


@pytest.mark.parametrize(("name", "environment"), [("workers", {"CUDA_VISIBLE_DEVICES": "0"}), ("workers-cpu", {})])
def test_a_worker_waits_for_a_study_and_ends_when_it_is_asked_to(
    compose: Compose, name: str, environment: dict[str, str]
) -> None:
    create_tables(compose.database)
    worker = compose.start(name, **environment)
    wait_for(lambda: is_waiting(compose.database, name))
    compose.assert_no_leak()
    worker.end()


def is_waiting(database: Database, name: str) -> bool:
    """Whether the service has connected and asks for nothing at this moment."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state = 'idle'"
    with database.engine.begin() as connection:
        return bool(connection.exec_driver_sql(query, (name,)).scalar_one())


def test_two_gpu_workers_take_two_gpus_and_a_third_waits_for_one(compose: Compose) -> None:
    create_tables(compose.database)
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1"}
    workers = [compose.start("workers", **gpus) for _ in range(2)]
    taken = [worker.wait_for_output(r"working on GPU (\d)")[1] for worker in workers]
    assert sorted(taken) == ["0", "1"]
    third = compose.start("workers", **gpus)
    third.wait_for_output("every GPU of this machine has its worker already")
    workers[0].process.kill()
    assert third.wait_for_output(r"working on GPU (\d)")[1] == taken[0]
    fourth = compose.start("workers", **gpus)
    fourth.wait_for_output("every GPU of this machine has its worker already")
    for worker in (fourth, third, workers[1]):
        worker.end()


def test_a_gpu_worker_without_gpu_is_refused(compose: Compose) -> None:
    output = compose.start("workers", CUDA_VISIBLE_DEVICES="").finish(code=2)
    assert "no GPU can be seen here" in output and "workers-cpu" in output


def test_a_study_without_data_is_refused_with_a_sentence(compose: Compose, material: Path) -> None:
    write_study(compose.folder / "study")
    (compose.folder / "models").symlink_to(material)
    compose.start("init").finish(code=0)
    worker = compose.start("workers-cpu")
    coordinator = compose.start("coordinator")
    wait_for(lambda: "there" in list_names(compose.database), timeout_s=60)
    compose.assert_no_leak()
    output = coordinator.finish(code=2, timeout_s=120)
    assert "study there is refused" in output and str(compose.folder / "data" / "dev") in output
    assert (compose.folder / "runs" / "there" / "study.yaml").is_file()
    assert worker.process.poll() is None, "a worker outlives a refused study"
    again = compose.start("coordinator").finish(code=2, timeout_s=120)
    assert "preflight pending" in again, "what stood in its way may be mended: it is checked again"
    compose.assert_no_leak()
    worker.end()


def test_the_coordinator_started_again_goes_on_with_the_same_study(compose: Compose) -> None:
    study_folder = compose.folder / "study"
    write_study(study_folder)
    create_tables(compose.database)

    def run(trials: int) -> None:
        """`docker compose up`, then `docker compose stop`."""
        write_study(study_folder, trials=trials)
        coordinator = compose.start("coordinator")
        coordinator.wait_for_output("preflight")
        coordinator.process.send_signal(signal.SIGTERM)
        assert "go on with: distune resume there" in coordinator.finish(code=130)

    run(trials=4)
    first = load_study("there", compose.database)
    run(trials=5)  # what `resume --trials` changes is not compared
    assert load_study("there", compose.database).study_id == first.study_id
    write_study(study_folder, learning_rate=2e-3)
    output = compose.start("coordinator").finish(code=2)
    assert "study there exists" in output and "with another trial.optim" in output
    assert list_names(compose.database) == ["there"]
