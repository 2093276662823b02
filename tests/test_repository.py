"""The files around the package say what is true of it: versions, image, compose file, commands, CI."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from sqlalchemy import Engine, text

from screening.pipeline.dispatch import QUEUES
from screening.services import workers
from screening.settings import Settings

ROOT = Path(__file__).parent.parent
PREREQUISITES = ("pyproject.toml", "constraints.txt", "package.json", "package-lock.json")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CLUSTER: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docs" / "compose.cluster.yml").read_text())["services"]
WORKERS = ("worker-cpu", "worker-gpu")
ENVIRONMENT = {  # of make as a user runs it; the tests may be run by another make
    name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
}
INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "VOLUME", "WORKDIR"}


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def needed_packages(python: str) -> set[str]:
    """Names of what the project needs with a version of Python, and what that needs, as far as it is known here."""
    environment = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    looked_at: set[tuple[str, str]] = set()
    waiting = [("screening", ""), ("screening", "dev")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in looked_at:
            continue
        looked_at.add((name, extra))
        for requirement in map(Requirement, requirements_of(name)):
            if requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra}):
                waiting += [(canonicalize_name(requirement.name), wanted) for wanted in ("", *requirement.extras)]
    from_gpu_wheels = re.compile(r"nvidia-|cuda-|triton")  # torch brings its own, of the versions that it wants
    names = {name for name, _ in looked_at} - {"screening", "setuptools"}
    return {name for name in names if not from_gpu_wheels.match(name)}


def requirements_of(name: str) -> list[str]:
    """What a package needs; nothing is known of one that this Python does not need."""
    return next((found.requires or [] for found in metadata.distributions(name=name)), [])


@pytest.mark.parametrize("python", ["3.11.2", "3.11.9", "3.12.8", "3.13.1"])
def test_every_package_that_is_needed_is_pinned(python: str) -> None:
    assert needed_packages(python) <= set(pins())


def test_nothing_is_pinned_that_is_not_needed() -> None:
    assert set(pins()) == needed_packages("3.11.2") | needed_packages("3.12.8")


def test_what_is_pinned_is_what_is_installed() -> None:
    names = needed_packages(".".join(map(str, sys.version_info[:3])))
    assert {(name, Version(metadata.version(name)).public) for name in names} <= set(pins().items())


def test_every_dependency_is_pinned_in_a_version_that_it_allows() -> None:
    texts = [*project()["dependencies"], *project()["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, texts):
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), requirement


def test_every_command_of_the_project_exists() -> None:
    for target in project()["scripts"].values():
        module, _, function = target.partition(":")
        program = f"import {module} as module; assert callable(module.{function})"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_dockerfile_has_instructions_that_are_understood_and_begins_with_an_image() -> None:
    names = [name for name, _ in dockerfile()]
    assert set(names) <= INSTRUCTIONS
    assert names[0] == "FROM"
    assert names.count("FROM") == 3


def test_the_dockerfile_copies_what_is_in_the_repository_and_not_ignored() -> None:
    kept = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    sources = set()
    for name, arguments in dockerfile():
        if name == "COPY" and "--from" not in arguments:
            sources |= {source.rstrip("/") for source in arguments.split()[:-1]}
    assert sources == kept
    assert all((ROOT / source).exists() for source in sources)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= sources


def test_the_image_does_not_run_as_root_and_starts_the_command_of_the_package() -> None:
    instructions = dict(dockerfile())
    assert instructions["USER"] not in ("root", "0")
    assert instructions["ENTRYPOINT"] == '["screening"]'
    assert "screening" in project()["scripts"]
    stages = [arguments for name, arguments in dockerfile() if name == "FROM"]
    minor = re.match(r"python:(3\.\d+)-slim", stages[-1])
    assert minor is not None
    assert Version(minor[1]) >= Version("3.11")


def test_the_dockerfile_installs_the_pinned_versions() -> None:
    installs = [arguments for name, arguments in dockerfile() if name == "RUN" and "pip install" in arguments]
    assert len(installs) == 1
    assert "-c constraints.txt" in installs[0]


def test_compose_has_the_services_of_the_design() -> None:
    assert {"postgres", "redis", "migrate", "web", "worker-cpu", "worker-gpu", "beat"} <= set(SERVICES)


def test_workers_of_the_compose_file_serve_the_queues_of_the_application() -> None:
    queues = {option(SERVICES[name]["command"], "--queues") for name in ("worker-cpu", "worker-gpu")}
    assert queues == set(QUEUES.values())


@pytest.mark.parametrize("name", ["worker-cpu", "worker-gpu", "beat"])
def test_celery_understands_the_command_of_the_compose_file(name: str) -> None:
    entrypoint, command = SERVICES[name]["entrypoint"], SERVICES[name]["command"]
    assert entrypoint == ["celery", "--app", "workers.app"]
    assert (ROOT / "workers" / "app.py").exists()
    helped = subprocess.run(
        [sys.executable, "-m", "celery", command[0], "--help"], capture_output=True, text=True, check=True
    )
    assert all(word in helped.stdout for word in command if word.startswith("--"))


@pytest.mark.parametrize("name", WORKERS)
def test_containers_of_a_worker_can_be_many(name: str) -> None:
    worker = SERVICES[name]
    assert not {"container_name", "hostname", "ports"} & set(worker)  # each of which only one container can have
    hostname = option(worker["command"], "--hostname")
    assert hostname.endswith("@%h")  # the container's
    assert worker["healthcheck"]["test"][1].endswith(f"--destination {hostname.replace('%h', '$$(hostname)')}")
    assert {"--without-gossip", "--without-mingle"} <= set(worker["command"])


@pytest.mark.parametrize("name", WORKERS)
def test_processes_of_a_container_do_not_take_all_cores_each(name: str) -> None:
    assert SERVICES[name]["environment"]["OMP_NUM_THREADS"] == 1


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_time_to_give_back_its_units_when_its_container_stops(name: str) -> None:
    assert SERVICES[name]["stop_grace_period"] == f"{2 * workers._GRACE_S:.0f}s"


def test_the_cluster_file_changes_services_that_there_are_and_publishes_on_one_address() -> None:
    assert set(CLUSTER) == {"postgres", "redis"} <= set(SERVICES)
    for name, port in (("postgres", 5432), ("redis", 6379)):
        assert CLUSTER[name]["ports"] == [f"${{SERVER_ADDRESS:?set it in .env}}:{port}:{port}"]
        assert "ports" not in SERVICES[name]


def test_postgresql_understands_the_settings_of_the_compose_files(engine: Engine) -> None:
    with engine.connect() as connection:
        known = set(connection.scalars(text("SELECT name FROM pg_settings")))
    for services in (SERVICES, CLUSTER):
        command = services["postgres"]["command"]
        assert command[0] == "postgres"
        assert command[1::2] == ["-c"] * (len(command) // 2)
        assert {setting.partition("=")[0] for setting in command[2::2]} <= known


def test_screening_understands_the_command_of_the_compose_file() -> None:
    program = "import sys; from screening.cli import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", program, SERVICES["migrate"]["command"][0], "--help"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--workers" in finished.stdout
    assert SERVICES["migrate"]["command"][1:] == ["--workers", "none", "--no-web"]


def test_the_web_server_of_the_compose_file_is_published_on_loopback_only() -> None:
    command = SERVICES["web"]["command"]
    program = "import sys; from screening.cli import app; app(sys.argv[1:])"
    helped = subprocess.run(
        [sys.executable, "-c", program, command[0], "--help"], capture_output=True, text=True, check=True
    )
    assert all(word in helped.stdout for word in command if word.startswith("--"))
    assert SERVICES["web"]["ports"] == [f"127.0.0.1:{option(command, '--port')}:{option(command, '--port')}"]


def test_scripts_of_npm_are_pinned_and_without_the_address_of_a_registry() -> None:
    wanted = json.loads((ROOT / "package.json").read_text())
    locked = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    for name, version in {**wanted["dependencies"], **wanted["devDependencies"]}.items():
        assert locked[f"node_modules/{name}"]["version"] == version
    assert not any("resolved" in package for package in locked.values())
    assert all(name == "" or "integrity" in package for name, package in locked.items())
    assert "ignore-scripts=true" in (ROOT / ".npmrc").read_text()


def test_every_variable_of_the_image_and_the_compose_file_is_one_that_settings_read() -> None:
    known = {f"SCREENING_{name.upper()}" for name in Settings.model_fields}
    texts = [(ROOT / name).read_text() for name in ("Dockerfile", "docker-compose.yml", ".env.example")]
    used = {name for text in texts for name in re.findall(r"\bSCREENING_\w+", text)}
    assert used <= known
    assert {"SCREENING_DATABASE_URL", "SCREENING_REDIS_URL", "SCREENING_HOME", "SCREENING_DEVICE"} <= used


def test_passwords_come_from_variables_that_must_be_set() -> None:
    text = "".join((ROOT / name).read_text() for name in ("docker-compose.yml", "docs/compose.cluster.yml"))
    example = (ROOT / ".env.example").read_text()
    assert re.findall(r"PASSWORD(?![:}\"\\:?])\S*", text) == []
    for name in set(re.findall(r"\$\{(\w+)", text)):
        assert f"{name}=\n" in example
    assert all(":?" in use for use in re.findall(r"\$\{\w*PASSWORD\S*", text))


def test_services_wait_for_what_they_need() -> None:
    for name in ("worker-cpu", "worker-gpu", "beat"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    for name in ("postgres", "redis"):
        assert SERVICES["migrate"]["depends_on"][name]["condition"] == "service_healthy"
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD-SHELL"
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= set(SERVICES)


def test_the_gpu_worker_reserves_a_gpu_and_the_cpu_worker_none() -> None:
    devices = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert SERVICES["worker-gpu"]["environment"]["SCREENING_DEVICE"] == "cuda"
    assert SERVICES["worker-cpu"]["environment"]["SCREENING_DEVICE"] == "cpu"
    assert "deploy" not in SERVICES["worker-cpu"]


def test_every_volume_is_declared() -> None:
    named = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert named == set(COMPOSE["volumes"])


def make(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def test_the_makefile_has_the_commands_of_the_readme() -> None:
    assert {"install", "demo", "demo-2dmd", "test", "lint", "bench", "stop", "clean"} <= makefile_targets()


def test_make_is_installed_once_and_runs_what_exists(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in PREREQUISITES:
        (tmp_path / name).touch()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed").touch()
    planned = make("-n", "demo", directory=tmp_path).stdout
    assert planned.strip() == ".venv/bin/screening demo"
    (tmp_path / ".venv" / "installed").unlink()
    planned = make("-n", "demo", directory=tmp_path).stdout
    assert "pip install --quiet -c constraints.txt -e '.[dev]'" in planned


def test_make_says_which_python_it_wants(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in PREREQUISITES:
        (tmp_path / name).touch()
    finished = make("install", "PYTHON=python-is-absent", directory=tmp_path)
    assert finished.returncode != 0
    assert "older than Python 3.11" in finished.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_demo_2dmd_without_data_says_what_to_give(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in PREREQUISITES:
        (tmp_path / name).touch()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed").touch()
    finished = make("demo-2dmd", directory=tmp_path)
    assert finished.returncode != 0
    assert "DATA=path/to/2dmd" in finished.stderr


@pytest.mark.parametrize(
    ("tests", "lint", "returncode"), [("exit 0", "exit 0", 0), ("exit 1", "exit 0", 1), ("exit 0", "exit 1", 1)]
)
def test_ci_fails_if_one_part_fails_and_closes_with_the_line_of_pytest(
    tmp_path: Path, tests: str, lint: str, returncode: int
) -> None:
    (tmp_path / ".ci").mkdir()
    script = shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    assert Path(script).stat().st_mode & 0o100
    closing = "========== 3 passed, 1 skipped in 12.34s =========="
    makefile = f"test:\n\t@echo '{closing}'; {tests}\nlint:\n\t@echo 'said by lint'; {lint}\n"
    (tmp_path / "Makefile").write_text(makefile)
    finished = subprocess.run([script], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert finished.returncode == returncode
    assert "said by lint" in finished.stdout
    assert finished.stdout.splitlines()[-1] == closing


def test_ci_fails_if_pytest_does_not_come_to_its_end(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / "Makefile").write_text("test:\n\t@echo collected\nlint:\n\t@true\n")
    finished = subprocess.run([script], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stdout.splitlines()[-1] == "pytest did not come to its end"


def test_shell_commands_of_the_compose_file_are_well_formed() -> None:
    for service in SERVICES.values():
        test = service.get("healthcheck", {}).get("test", ["CMD-SHELL", "true"])
        checked = subprocess.run(["sh", "-n", "-c", test[1].replace("$$", "$")], check=False)
        assert checked.returncode == 0
        assert shlex.split(test[1])
