"""The database password from a file, as compose and Kubernetes hand their secrets over."""

import os
from pathlib import Path

from storage.errors import DatabaseUrlError

VARIABLE = "DISTUNE_PASSWORD_FILE"


def read_password_file() -> str | None:
    """Return the content of the file that DISTUNE_PASSWORD_FILE names, without the line break at its end.

    None where the variable is not set. Only the file's name stands in the environment, so that the password shows up
    in no `docker inspect`, no process list, and no child's environment.

    Raises:
        DatabaseUrlError: the file cannot be read, or there is no password in it.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    try:
        password = Path(name).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise DatabaseUrlError(
            f"cannot read the password file {name}: {reason}; make it readable for user id {os.getuid()}, "
            f"or unset {VARIABLE}"
        ) from None
    if not password:
        raise DatabaseUrlError(f"the password file {name} is empty; write the password into it, or unset {VARIABLE}")
    return password
