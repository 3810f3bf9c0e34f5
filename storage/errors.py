"""What storage raises on purpose: one leaf per decision that a caller makes; messages end with the remedy."""


class StorageError(Exception):
    """Base of what storage raises on purpose."""


class DatabaseUrlError(StorageError):
    """The database URL is not one we can use: bad usage, whatever the server does. Never shows the URL's password."""


class DatabaseUnavailableError(StorageError):
    """No connection to the database. Never shows the password.

    Attributes:
        is_transient: waiting may help (unreachable, starting up, out of connections), as opposed to a wrong password
            or a database that does not exist.
    """

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class EmbeddedServerError(DatabaseUnavailableError):
    """The embedded PostgreSQL cannot be used here; waiting does not help, the remedy in the message does."""

    def __init__(self, message: str) -> None:
        super().__init__(message, is_transient=False)
