"""Small study configurations for tests, and waiting for a condition."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from search.config import StudySpec

Found = TypeVar("Found")


def make_study_spec(
    *, runs: str = "/nonexistent", space: dict[str, Any] | None = None, taid: dict[str, Any] | None = None, **study: Any
) -> StudySpec:
    """Return a study over three fields whose data and models do not exist; ``study`` adds to its study section."""
    return StudySpec.model_validate(
        {
            "study": {"name": "s", "trials": 5, "lease_ttl_s": 0.4, "runs": runs, **study},
            "space": space
            or {
                "kl_weight": {"low": 0.001, "high": 10, "log": True},
                "lr": {"low": 1e-5, "high": 1e-2, "log": True},
                "batch_size": {"choices": [4, 8, 16]},
            },
            "trial": {
                "data": {"train": "/nonexistent/train", "dev": "/nonexistent/dev"},
                "teacher": {"model": "/nonexistent/teacher"},
                "optim": {"examples": 400},
                "loss": {"taid": taid},
                "evaluation": {"count": 4},
            },
        }
    )


def wait_for(condition: Callable[[], Found], *, timeout_s: float = 30.0) -> Found:
    """Return the first truthy value of ``condition``; fail after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.01)
