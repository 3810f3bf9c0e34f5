"""docker-compose.yml, Dockerfile and .dockerignore, as far as they can be checked without a Docker engine."""

import copy
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.main import get_command

from tests.compose import COMPOSE_PATH, ROOT, load_compose

SCHEMA = json.loads((ROOT / "tests/data/compose-spec.json").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = load_compose()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if name != "postgres"}
WORKERS = ["workers", "workers-cpu"]

each_service = pytest.mark.parametrize("name", SERVICES)
each_of_ours = pytest.mark.parametrize("name", OURS)


def problems(compose: dict[str, Any]) -> list[str]:
    """Return what the compose specification's schema says against the file."""
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(compose)]


def test_the_file_fits_the_compose_specification() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert problems(COMPOSE) == []


def _misspell(compose: dict[str, Any]) -> None:
    compose["services"]["workers"]["comand"] = compose["services"]["workers"].pop("command")


def _wrong_condition(compose: dict[str, Any]) -> None:
    compose["services"]["init"]["depends_on"]["postgres"]["condition"] = "service_ready"


def _no_condition(compose: dict[str, Any]) -> None:
    del compose["services"]["workers"]["depends_on"]["init"]["condition"]


def _misspell_healthcheck(compose: dict[str, Any]) -> None:
    compose["services"]["postgres"]["healthcheck"]["intervall"] = "10s"


def _wrong_type(compose: dict[str, Any]) -> None:
    compose["services"]["workers"]["stop_grace_period"] = 120


def _device_without_capabilities(compose: dict[str, Any]) -> None:
    del compose["services"]["workers"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"]


def _unknown_section(compose: dict[str, Any]) -> None:
    compose["secret"] = compose.pop("secrets")


@pytest.mark.parametrize(
    "spoil",
    [
        _misspell,
        _wrong_condition,
        _no_condition,
        _misspell_healthcheck,
        _wrong_type,
        _device_without_capabilities,
        _unknown_section,
    ],
)
def test_the_schema_finds_a_mistake(spoil: Callable[[dict[str, Any]], None]) -> None:
    compose = copy.deepcopy(COMPOSE)
    spoil(compose)
    assert problems(compose)


def test_what_services_refer_to_is_there() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert set(service.get("networks", [])) <= set(COMPOSE["networks"])
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        named = {mount["source"] for mount in service.get("volumes", []) if mount["type"] == "volume"}
        assert named <= set(COMPOSE["volumes"])


@each_service
def test_no_service_is_root_or_can_become_it(name: str) -> None:
    service = SERVICES[name]
    user, group = service["user"].split(":")
    assert int(user) > 0 and int(group) > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not service.get("privileged") and "cap_add" not in service


def test_only_the_dashboard_is_published_and_only_on_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"dashboard": ["127.0.0.1:8080:8080"]}
    assert not any("network_mode" in service or "expose" in service for service in SERVICES.values())
    assert COMPOSE["networks"]["database"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == ["database"]


def test_the_password_is_in_the_secret_file_only() -> None:
    assert COMPOSE["secrets"] == {"postgres_password": {"file": "./secrets/postgres_password"}}
    mounted = "/run/secrets/postgres_password"
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD_FILE"] == mounted
    for service in OURS.values():
        assert service["environment"]["DISTUNE_PASSWORD_FILE"] == mounted
        assert service["secrets"] == ["postgres_password"]
    for service in SERVICES.values():
        names = set(service["environment"])
        assert not {name for name in names if "PASSWORD" in name and not name.endswith("_FILE")}
    assert not re.search(r"://[^/\s]*:[^/\s]*@", COMPOSE_PATH.read_text()), "a URL with a password"
    for path in ("Dockerfile", ".env.example"):
        assert not re.search(r"(?i)(password|token|secret)\w*\s*=", (ROOT / path).read_text())


def test_services_and_server_agree_on_user_and_database() -> None:
    settings = SERVICES["postgres"]["environment"]
    url = f"postgresql://{settings['POSTGRES_USER']}@postgres:5432/{settings['POSTGRES_DB']}"
    assert {service["environment"]["DISTUNE_STORAGE"] for service in OURS.values()} == {url}
    assert "--auth-local=scram-sha-256 --auth-host=scram-sha-256" in settings["POSTGRES_INITDB_ARGS"]
    assert "POSTGRES_HOST_AUTH_METHOD" not in settings


def test_postgres_keeps_its_data_where_version_18_has_it_and_says_when_it_is_ready() -> None:
    postgres = SERVICES["postgres"]
    assert postgres["image"].split("@")[0] == "postgres:18"
    assert [mount["target"] for mount in postgres["volumes"]] == ["/var/lib/postgresql"]
    assert "--host=127.0.0.1" in postgres["healthcheck"]["test"]


def test_everything_starts_after_the_database_and_its_tables() -> None:
    ready, prepared = {"condition": "service_healthy"}, {"condition": "service_completed_successfully"}
    assert SERVICES["init"]["depends_on"] == {"postgres": ready}
    assert SERVICES["init"]["restart"] == "no"
    for name in ("coordinator", "dashboard", *WORKERS):
        assert SERVICES[name]["depends_on"] == {"postgres": ready, "init": prepared}


@pytest.mark.parametrize("name", WORKERS)
def test_workers_scale_and_have_time_to_give_their_trial_back(name: str) -> None:
    service = SERVICES[name]
    assert "container_name" not in service and "ports" not in service and "hostname" not in service
    assert load_compose({"DISTUNE_WORKERS": "4"})["services"][name]["deploy"]["replicas"] == 4
    assert service["stop_grace_period"] == "120s"
    assert service["init"] is True
    assert service["shm_size"] == "2gb"
    assert service["restart"] == "unless-stopped"


def test_gpu_workers_see_all_gpus_and_share_them_out() -> None:
    workers = SERVICES["workers"]
    (device,) = workers["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and "gpu" in device["capabilities"]
    # `count: 1` would be GPU 0 for every replica; then the locks would have nothing to share out.
    assert device["count"] == "all"
    folder = workers["command"][workers["command"].index("--gpu-locks") + 1]
    (locks,) = [mount for mount in workers["volumes"] if mount["target"] == folder]
    assert locks["type"] == "volume" and not locks.get("read_only")
    assert f"{folder} " in DOCKERFILE + " "


def test_cpu_workers_want_no_gpu_and_the_profiles_choose_one_of_both() -> None:
    cpu = SERVICES["workers-cpu"]
    assert "resources" not in cpu["deploy"] and "--gpu-locks" not in cpu["command"]
    assert (SERVICES["workers"]["profiles"], cpu["profiles"]) == (["gpu"], ["cpu"])
    assert not any("profiles" in service for name, service in SERVICES.items() if name not in WORKERS)
    assert "COMPOSE_PROFILES=gpu" in (ROOT / ".env.example").read_text().splitlines()


@each_of_ours
def test_inputs_are_mounted_read_only_and_folders_are_never_made_by_docker(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        if mount["type"] == "bind":
            assert mount["bind"] == {"create_host_path": False}
            assert bool(mount.get("read_only")) == (mount["target"] != "/runs")


@each_of_ours
def test_commands_and_their_options_exist(name: str) -> None:
    from search.cli import app

    service = SERVICES[name]
    assert "entrypoint" not in service and service["image"] == "distune"
    command: Any = get_command(app)
    words = list(service["command"])
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_env_example_names_the_variables_of_the_compose_file() -> None:
    variables = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE_PATH.read_text()))
    example = dict(
        line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if line and line[0] != "#"
    )
    del example["COMPOSE_PROFILES"], variables["DISTUNE_SECRET"]
    assert example == variables


def test_the_image_runs_distune_as_a_user_that_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert 'ENTRYPOINT ["distune"]' in DOCKERFILE
    assert project["scripts"]["distune"] == "search.cli:main"
    final = DOCKERFILE.split("\nFROM ")[-1]
    assert final.startswith("python:3.11-slim-")
    assert re.findall(r"^USER (.*)$", final, re.MULTILINE) == [SERVICES["init"]["user"]]
    assert "useradd --uid 10001 --gid 10001" in final
    assert "apt-get" not in final and "pip install" not in final


def test_the_image_installs_the_dependencies_of_the_project_before_its_source() -> None:
    (script,) = re.findall(r"RUN python -c '([^']*)'", DOCKERFILE)
    printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert printed.stdout.splitlines() == project["project"]["dependencies"]
    assert "--constraint constraints.txt" in DOCKERFILE
    steps = [DOCKERFILE.index(f"COPY {package} ") for package in project["tool"]["setuptools"]["packages"]]
    assert DOCKERFILE.index("--requirement requirements.txt") < min(steps)


def test_only_what_the_image_needs_is_sent_to_the_build() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    build = DOCKERFILE.split("\nFROM ")[1]
    copied = {
        str(PurePosixPath(word))
        for line in re.findall(r"^COPY (?!--from)(.*)$", build, re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == allowed
