"""What the search raises on purpose: one leaf per decision that a caller makes."""


class SearchError(Exception):
    """Base of what the search raises on purpose; the message is one sentence that ends with the remedy."""


class ConfigError(SearchError):
    """The study file, or a command's argument, is not what it must be. Nothing was started."""


class StudyError(SearchError):
    """The study named does not exist, exists already, or was refused by its preflight."""


class NoResultError(SearchError):
    """The study has no complete trial yet, so nothing has won."""


class LeaseLostError(SearchError):
    """The trial belongs to another attempt now; whatever we know of it must not be written."""

    def __init__(self, number: int, attempt: int) -> None:
        super().__init__(f"trial {number} was taken over; attempt {attempt} no longer owns it")
        self.number = number
        self.attempt = attempt


class BudgetSpentError(SearchError):
    """The study has as many trials as its budget allows."""
