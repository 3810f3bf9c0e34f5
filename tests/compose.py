"""docker-compose.yml as Compose reads it, for the tests that check and run it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
COMPOSE_PATH = ROOT / "docker-compose.yml"

_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def load_compose(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read the file with its variables replaced: by ``environment``, or by the defaults that stand in the file."""
    values = environment or {}
    text = _VARIABLE.sub(lambda match: values.get(match[1]) or match[2], COMPOSE_PATH.read_text())
    assert "${" not in text, "a variable without default: `docker compose up` would not start as it is"
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded
