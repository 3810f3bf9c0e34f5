"""The command line's surface: help, exit codes, and what it does not load."""

import subprocess
import sys
from pathlib import Path

import pytest

import search
import storage
import trainer

COMMANDS = ["launch", "resume", "worker", "status", "best", "dashboard", "database init"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "search.cli", *arguments], capture_output=True, text=True, check=False)


def test_help_lists_every_command() -> None:
    output = run("--help").stdout
    assert all(command.split()[0] in output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.returncode == 0
    assert f"Example: distune {command}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["launch"], "Missing argument 'STUDY.YAML'"),
        (["launch", "/nowhere.yaml"], "distune: cannot read the study file /nowhere.yaml: No such file or directory"),
        (["launch", "s.yaml", "--workers", "-1"], "Invalid value for '--workers'"),
        (["resume", "x", "--trials", "20"], "distune: --trials 20: write +K to add K trials"),
        (["status", "x", "--storage", "sqlite:///x"], "distune: sqlite is not supported, only PostgreSQL is"),
        (["status", "x", "--storage", "nonsense"], "distune: the database URL cannot be parsed"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unreachable_database_is_exit_code_1_and_no_password_is_shown() -> None:
    result = run("status", "x", "--storage", "postgresql://u:hunter2@localhost:1/d")
    assert result.returncode == 1
    assert result.stderr.startswith("distune: PostgreSQL at localhost, port 1, database d, cannot be reached")
    assert "hunter2" not in result.stdout + result.stderr


@pytest.mark.parametrize("module", ["search.cli", "search.worker", "search.coordinator"])
def test_the_worker_and_the_command_line_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_packages_are_ours_and_not_somebody_elses_trainer() -> None:
    root = Path(__file__).parents[2]
    for package in (search, storage, trainer):
        assert package.__file__ is not None
        assert Path(package.__file__).parents[1] == root
