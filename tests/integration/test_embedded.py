"""The embedded server: shared, stopped by the last user, recovered after every kind of death, never in two places."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Engine

from storage import embedded, postmaster
from storage.account import server_account
from storage.database import open_database, retrying
from storage.embedded import default_home, open_embedded
from storage.errors import EmbeddedServerError
from storage.locks import exclusive
from storage.origin import Origin
from tests.homes import MakeHome, end_server, has_server

ROOT = Path(__file__).parents[2]
IS_ROOT = os.geteuid() == 0
USER = """
import sys
from pathlib import Path
from storage.database import open_database
with open_database(None, Path(sys.argv[1])):
    print("attached", flush=True)
    sys.stdin.read()
"""
USER_WITH_CHILDREN = """
import os, subprocess, sys, time
from pathlib import Path
from storage.database import open_database
with open_database(None, Path(sys.argv[1])):
    forked = os.fork()  # as multiprocessing does it: no exec, so that close-on-exec does not help
    if forked == 0:
        time.sleep(100)
        os._exit(0)
    spawned = subprocess.Popen(["sleep", "100"], close_fds=False)
    print(forked, spawned.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def used_home(session_home: MakeHome) -> Path:
    """A home whose server has run and was stopped, to copy."""
    home = session_home()
    open_embedded(home).close()
    return home


@pytest.fixture
def home(used_home: Path, make_home: MakeHome) -> Path:
    """A home whose server has run and was stopped: quicker than a new one."""
    home = make_home()
    shutil.rmtree(home)
    subprocess.run(["cp", "--archive", used_home, home], check=True)
    (home / "server.log").unlink()
    return home


def start_user(home: Path, *prefix: str, script: str = USER) -> "subprocess.Popen[str]":
    """A process that uses the server until its standard input ends."""
    command = [*prefix, sys.executable, "-W", "error", "-c", script, str(home)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def wait_attached(user: "subprocess.Popen[str]") -> None:
    assert user.stdout is not None
    line = user.stdout.readline()
    assert line == "attached\n", user.communicate()[1]


def leave(user: "subprocess.Popen[str]") -> None:
    assert user.communicate(timeout=30) == ("", "")
    assert user.returncode == 0


def kill(user: "subprocess.Popen[str]") -> None:
    user.kill()
    user.communicate()


def num_starts(home: Path) -> int:
    return (home / "server.log").read_text().count("starting PostgreSQL")


def save_a_row(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE kept (x int)")
        connection.exec_driver_sql("INSERT INTO kept VALUES (42)")


def kept_row(engine: Engine) -> int | None:
    with engine.connect() as connection:
        return connection.execute(sqlalchemy.text("SELECT x FROM kept")).scalar()


def in_child(action: Callable[[], str]) -> str:
    """What ``action`` returns, or the error it raises, in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = action()
        except BaseException as exc:
            text = f"{type(exc).__name__}: {exc}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


# Who shares it, who stops it


def test_the_last_user_stops_it_and_no_earlier_one(home: Path) -> None:
    starter, second = start_user(home), start_user(home)
    wait_attached(starter)
    wait_attached(second)
    leave(starter)
    with open_database(None, home) as database:
        leave(second)
        with database.engine.connect():
            pass
    assert not has_server(home)
    assert not Path(str(database.url.query["host"])).exists()
    assert num_starts(home) == 1


def test_after_the_starter_was_killed_the_next_user_attaches_and_stops_it(home: Path) -> None:
    starter = start_user(home)
    wait_attached(starter)
    kill(starter)
    assert has_server(home)
    with open_database(None, home):
        assert num_starts(home) == 1
    assert not has_server(home)


def test_users_that_come_together_get_one_server(make_home: MakeHome) -> None:
    home = make_home()
    users = [start_user(home) for _ in range(4)]
    for user in users:
        wait_attached(user)
    assert num_starts(home) == 1
    for user in users:
        leave(user)
    assert not has_server(home)


def test_a_process_that_forgets_to_close_stops_it_on_exit(home: Path) -> None:
    script = "import sys, pathlib, storage.database as d; x = d.open_database(None, pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-W", "error", "-c", script, str(home)], cwd=ROOT, check=True)
    assert not has_server(home)


def test_two_homes_have_two_servers(make_home: MakeHome) -> None:
    with open_database(None, make_home()) as one, open_database(None, make_home()) as other:
        save_a_row(one.engine)
        assert not sqlalchemy.inspect(other.engine).has_table("kept")


def test_children_of_a_killed_user_do_not_count_as_users(home: Path) -> None:
    parent = start_user(home, script=USER_WITH_CHILDREN)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.kill()
    parent.wait()  # and not for the end of its output, which the children hold open
    try:
        with open_database(None, home):
            pass
        assert not has_server(home)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        parent.communicate()


def test_nothing_is_lost_between_two_sessions(home: Path) -> None:
    with open_database(None, home) as database:
        save_a_row(database.engine)
        with database.engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW fsync").scalar() == "on"
            assert connection.exec_driver_sql("SHOW max_connections").scalar() == "400"
    with open_database(None, home) as database:
        assert kept_row(database.engine) == 42


# Deaths


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGKILL], ids=["immediate shutdown", "killed"])
def test_a_server_that_dies_is_revived_under_the_same_url(home: Path, how: signal.Signals) -> None:
    with open_database(None, home) as database:
        save_a_row(database.engine)
        end_server(home, how)
        assert retrying(timeout_s=30, before_retry=database.revive)(kept_row, database.engine) == 42
    assert not has_server(home)


def test_a_dead_server_is_replaced_by_the_next_user(home: Path) -> None:
    starter = start_user(home)
    wait_attached(starter)
    end_server(home, signal.SIGKILL)
    with open_database(None, home):
        leave(starter)  # it was closed already for this one: only the lock counts
    assert not has_server(home)


def test_a_stale_pid_file_does_not_hinder_although_its_number_is_in_use(home: Path) -> None:
    server = open_embedded(home)
    end_server(home, signal.SIGKILL)
    stranger = subprocess.Popen(["sleep", "100"], **server_account().subprocess_options)
    try:
        pid_path = home / "data" / "postmaster.pid"
        pid_path.write_text("\n".join([str(stranger.pid), *pid_path.read_text().split("\n")[1:]]))
        server.revive()
        assert postmaster.read_pid(home / "data") != stranger.pid
        server.close()
        assert stranger.poll() is None, "a process that is not ours was signalled"
    finally:
        stranger.kill()
        stranger.wait()


def test_an_initdb_that_was_killed_is_repeated(make_home: MakeHome) -> None:
    home = make_home()
    (home / "data.partial").mkdir()
    (home / "data.partial" / "PG_VERSION").write_text("18")
    (home / "initdb.secret").mkdir()
    with open_database(None, home):
        assert not (home / "data.partial").exists()
        assert not (home / "initdb.secret").exists()


def test_a_server_that_cannot_start_is_reported_with_its_log(home: Path) -> None:
    open_embedded(home).close()
    (home / "data" / "postgresql.conf").write_text("nonsense\n")
    with pytest.raises(EmbeddedServerError, match=r"does not start; see .*server\.log, or .* --storage"):
        open_embedded(home)


def test_data_of_another_version_are_refused(home: Path) -> None:
    open_embedded(home).close()
    (home / "data" / "PG_VERSION").write_text("19\n")
    with pytest.raises(EmbeddedServerError, match="written by PostgreSQL 19"):
        open_embedded(home)


def test_a_frozen_starter_is_named_and_not_waited_for_without_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LOCK_TIMEOUT_S", 0.1)
    with (
        exclusive(home / "start.lock", timeout_s=1),
        pytest.raises(EmbeddedServerError, match=r"start\.lock: another process has held it"),
    ):
        open_embedded(home)


def test_a_large_log_is_put_aside(home: Path) -> None:
    (home / "server.log").write_bytes(b"x" * (postmaster.LOG_LIMIT_BYTES + 1))
    open_embedded(home).close()
    assert (home / "server.log.1").stat().st_size == postmaster.LOG_LIMIT_BYTES + 1
    assert num_starts(home) == 1


# Places


def leave_running(home: Path) -> Origin:
    """A server that was never stopped, and whose processes are gone; returns what it left in server.json."""
    user = start_user(home)
    wait_attached(user)
    kill(user)
    end_server(home, signal.SIGKILL)
    origin = Origin.read(home / "server.json")
    assert origin is not None
    return origin


def test_what_another_machine_did_not_stop_is_refused(home: Path) -> None:
    origin = replace(leave_running(home), host="elsewhere", boot_id="another boot")
    origin.save(home / "server.json")
    with pytest.raises(EmbeddedServerError, match=r"in use by elsewhere.*delete .*server\.json.*--home.*--storage"):
        open_embedded(home)
    assert json.loads((home / "server.json").read_text()) == asdict(origin)
    (home / "server.json").unlink()  # the remedy
    open_embedded(home).close()


def test_after_a_reboot_it_recovers(home: Path) -> None:
    origin = leave_running(home)
    shutil.rmtree(origin.socket_folder)  # as /tmp after a reboot
    replace(origin, boot_id="the boot before", pid_namespace="pid:[1]").save(home / "server.json")
    open_embedded(home).close()


def test_a_server_that_lives_under_a_foreign_name_is_refused(home: Path) -> None:
    server = open_embedded(home)
    origin = Origin.read(home / "server.json")
    assert origin is not None
    for foreign in (replace(origin, boot_id="another boot"), replace(origin, pid_namespace="pid:[1]")):
        foreign.save(home / "server.json")
        with pytest.raises(EmbeddedServerError, match="in use by"):
            open_embedded(home)
    replace(origin, host="renamed since").save(home / "server.json")
    open_embedded(home).close()
    server.close()
    assert not has_server(home)


@pytest.mark.skipif(not IS_ROOT, reason="only root can make a PID namespace everywhere")
def test_two_containers_are_never_on_one_home_at_once(home: Path) -> None:
    container = start_user(home, "unshare", "--pid", "--fork", "--kill-child")
    wait_attached(container)
    with pytest.raises(EmbeddedServerError, match=f"in use by {socket.gethostname()}, another machine or container"):
        open_embedded(home)
    kill(container)  # and with it, as with a container, all its processes
    postmaster_is_gone = home / "server.lock"
    with exclusive(postmaster_is_gone, timeout_s=30):
        pass
    with open_database(None, home):
        refused = start_user(home, "unshare", "--pid", "--fork", "--kill-child")
        assert "in use by" in refused.communicate(timeout=30)[1]


def test_a_long_path_gets_a_socket_on_a_short_one(make_home: MakeHome) -> None:
    home = make_home() / ("long" * 50)
    with open_database(None, home) as database:
        assert len(str(database.url.query["host"])) < 50
    assert not has_server(home)


def test_a_strange_path_is_only_a_path(make_home: MakeHome) -> None:
    home = make_home() / """a 'b' "c" $(touch d) `e`;&é"""
    with open_database(None, home) as database:
        url = database.url.render_as_string(hide_password=False)
        with open_database(url) as by_url:
            save_a_row(by_url.engine)
    assert not has_server(home)


def test_a_squatted_socket_folder_is_not_used(home: Path) -> None:
    origin = leave_running(home)
    Path(origin.socket_folder).chmod(0o755)
    with open_database(None, home) as database:
        assert database.url.query["host"] != origin.socket_folder
    shutil.rmtree(origin.socket_folder)


def test_a_file_in_the_place_of_the_home_is_explained(make_home: MakeHome) -> None:
    home = make_home() / "home"
    home.write_text("")
    with pytest.raises(EmbeddedServerError, match=r"home cannot be used \(.*File exists\).*--home.*--storage"):
        open_embedded(home)


def test_the_default_home_is_one_that_the_server_can_enter() -> None:
    home = default_home()
    assert home == (Path("/var/lib/distune") if IS_ROOT else Path.home() / ".local/share/distune")


# Users and secrets


def test_only_the_owner_can_read_the_password_and_enter_the_data(make_home: MakeHome) -> None:
    home = make_home() / "new"
    with open_database(None, home) as database:
        socket_folder = Path(str(database.url.query["host"]))
        assert stat.S_IMODE(home.stat().st_mode) == (0o711 if IS_ROOT else 0o700)
        for private, mode in (("password", 0o600), ("data", 0o700), ("server.log", 0o600), ("start.lock", 0o600)):
            assert stat.S_IMODE((home / private).stat().st_mode) == mode, private
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((socket_folder / ".s.PGSQL.5432").stat().st_mode) == 0o700


def test_the_password_is_in_no_process_list_url_or_other_file(home: Path) -> None:
    with open_database(None, home) as database:
        password = (home / "password").read_text().strip().rsplit(":", 1)[-1]
        assert len(password) >= 24
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert password.encode() not in process.read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
        assert password not in database.url.render_as_string(hide_password=False)
        assert password not in database.storage_url_for_optuna()
        holders = [p for p in home.rglob("*") if p.is_file() and password.encode() in p.read_bytes()]
        assert holders == [home / "password"]


def test_nobody_gets_in_without_the_password(home: Path) -> None:
    with open_database(None, home):
        (home / "password").write_text("*:*:*:distune:not-the-password\n")
        with pytest.raises(EmbeddedServerError, match="password authentication failed") as caught:
            open_embedded(home)
        assert "not-the-password" not in str(caught.value)


def test_the_environment_of_another_postgresql_does_not_matter(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGHOST": "elsewhere.invalid",
        "PGPORT": "1",
        "PGUSER": "x",
        "PGPASSWORD": "other-secret",
        "PGDATABASE": "x",
        "PGDATA": "/nowhere",
        "PGOPTIONS": "-c nonsense=1",
        "PGTZ": "Asia/Tokyo",
    }.items():
        monkeypatch.setenv(name, value)
    with open_database(None, home) as database, database.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW timezone").scalar() == "UTC"
        pid = postmaster.read_pid(home / "data")
        assert b"other-secret" not in Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.skipif(not IS_ROOT, reason="needs root to become another user")
class TestAsRoot:
    """What root can see only: the other users' part, and its own server under an unprivileged one."""

    def test_an_ordinary_user_runs_the_server_as_itself(self, make_home: MakeHome) -> None:
        if not server_account().can_run(find_wheel() / "bin" / "postgres"):
            pytest.skip("this virtual environment is closed to other users")
        home = make_home()
        os.chown(home, 65534, 65534)

        def use_it() -> str:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with open_database(None, home) as database:
                save_a_row(database.engine)
                return f"{(home / 'data').stat().st_uid} {kept_row(database.engine)}"

        assert in_child(use_it) == "65534 42"
        assert not has_server(home)

    def test_a_user_without_a_passwd_entry_is_refused(self) -> None:
        def use_it() -> str:
            os.setuid(54321)
            os.environ.pop("HOME")
            open_database(None)
            return "opened"

        assert "EmbeddedServerError: user id 54321 has no entry in /etc/passwd" in in_child(use_it)

    def test_another_users_home_is_refused(self, make_home: MakeHome) -> None:
        home = make_home()

        def use_it() -> str:
            os.setuid(65534)
            open_embedded(home)
            return "opened"

        assert "cannot be used" in in_child(use_it)

    def test_a_home_that_the_servers_user_cannot_enter_is_refused_and_left_as_it_is(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o700)
        with pytest.raises(EmbeddedServerError, match=r"does not run as root.*cannot enter.*--home.*--storage"):
            open_embedded(tmp_path / "home")
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
        assert list(tmp_path.iterdir()) == []

    def test_programs_out_of_the_servers_reach_are_copied(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tmp_path.chmod(0o700)  # as /root
        wheel = find_wheel()
        shutil.copytree(wheel, tmp_path / postmaster.WHEEL / wheel.name, symlinks=True)
        libraries = wheel.parent.with_name(f"{postmaster.WHEEL}.libs")
        shutil.copytree(libraries, tmp_path / libraries.name)
        (tmp_path / postmaster.WHEEL / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        home = home / "new"
        umask = os.umask(0o077)
        try:
            with open_database(None, home) as database:
                save_a_row(database.engine)
        finally:
            os.umask(umask)
        assert len(list(home.glob("programs-*"))) == 1
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def find_wheel() -> Path:
    from importlib.util import find_spec

    spec = find_spec(postmaster.WHEEL)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / f"pginstall{postmaster.MAJOR_VERSION}"
