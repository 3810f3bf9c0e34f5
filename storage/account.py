"""The system user that the embedded PostgreSQL runs as: ourselves, or as root an unprivileged one."""

import contextlib
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import EmbeddedServerError

REMEDY = "or give an external PostgreSQL with --storage"
NAMES_FOR_ROOT = ("distune", "postgres", "nobody")
# Nothing of the caller's environment: the server gets no PGPASSWORD or other secret, and no PGPORT steers it.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True, kw_only=True)
class Account:
    """A system user."""

    uid: int
    gid: int
    is_ours: bool  # we are this user already

    @property
    def subprocess_options(self) -> dict[str, Any]:
        """Keyword arguments with which ``subprocess`` runs a program as this user, with none of our environment."""
        options: dict[str, Any] = {"env": ENVIRONMENT, "cwd": "/", "stdin": subprocess.DEVNULL}
        return options if self.is_ours else options | {"user": self.uid, "group": self.gid, "extra_groups": []}

    def take(self, path: Path) -> None:
        """Give ``path``, which we have just created, to this user."""
        if not self.is_ours:
            os.chown(path, self.uid, self.gid)

    def can_run(self, program: Path) -> bool:
        """Whether ``program --version`` works for this user."""
        try:
            command: list[str | Path] = [program, "--version"]
            return subprocess.run(command, capture_output=True, check=False, **self.subprocess_options).returncode == 0
        except (OSError, subprocess.SubprocessError):
            return False

    def check_reach(self, folder: Path) -> None:
        """Refuse a folder that this user cannot enter; nothing on the way is opened for it.

        Raises:
            EmbeddedServerError: it cannot, or we may not become that user.
        """
        if self.is_ours:
            return
        try:
            command: list[str | Path] = ["/bin/sh", "-c", 'cd "$1"', "sh", folder]
            done = subprocess.run(command, capture_output=True, check=False, **self.subprocess_options)
        except (OSError, subprocess.SubprocessError) as exc:
            raise EmbeddedServerError(
                f"PostgreSQL does not run as root, and root may not become user id {self.uid} here ({exc}); "
                f"run as an ordinary user, {REMEDY}"
            ) from exc
        if done.returncode != 0:
            raise EmbeddedServerError(
                f"PostgreSQL does not run as root, and user id {self.uid}, which runs it then, cannot enter {folder}; "
                f"give a folder with --home whose parents it may enter, {REMEDY}"
            )


def server_account() -> Account:
    """Ourselves, or as root (which PostgreSQL refuses to run as) the first of ``NAMES_FOR_ROOT`` that exists.

    Raises:
        EmbeddedServerError: there is no such user, or we have no entry in the password database (initdb needs it).
    """
    uid = os.geteuid()
    if uid != 0:
        try:
            return Account(uid=uid, gid=pwd.getpwuid(uid).pw_gid, is_ours=True)
        except KeyError:
            raise EmbeddedServerError(
                f"user id {uid} has no entry in /etc/passwd, and PostgreSQL needs one; run as a user with one, {REMEDY}"
            ) from None
    for name in NAMES_FOR_ROOT:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(uid=entry.pw_uid, gid=entry.pw_gid, is_ours=False)
    names = ", ".join(NAMES_FOR_ROOT)
    raise EmbeddedServerError(
        f"PostgreSQL does not run as root, and there is none of the users {names}; run as an ordinary user, {REMEDY}"
    )
