"""constraints.txt fits what users get: no pin of what only torch or only CI brings (.ci/resolve.py resolves it)."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def _pins(file: str) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def _brought_by(requirements: list[str], without: str = "") -> set[str]:
    """All that pip installs for these in this environment; what `without` requires is not followed."""
    brought: set[str] = set()
    waiting = [Requirement(line) for line in requirements]
    done: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = f"{name}[{sorted(requirement.extras)}]"
        if key in done or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        done.add(key)
        brought.add(name)
        if name == without:
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for required in map(Requirement, lines):
            marker = required.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
                required.marker = None
                waiting.append(required)
    return brought


def _of_users() -> list[str]:
    return [*PROJECT["dependencies"], *(line for extra, lines in EXTRAS.items() if extra != "dev" for line in lines)]


def test_no_pin_of_what_only_torch_brings() -> None:
    pinned = _pins("constraints.txt")
    cuda = {name for name in pinned if name.startswith(("nvidia-", "cuda-", "triton", "pytorch-"))}
    assert cuda == set(), "each build of torch names its own"
    only_torch = _brought_by(["torch"]) - {"torch"} - _brought_by(_of_users(), without="torch")
    assert "sympy" in only_torch  # the walk sees torch's requirements
    assert only_torch & set(pinned) == set()


def test_tools_of_ci_are_pinned_apart() -> None:
    users, tools = _pins("constraints.txt"), _pins(".ci/constraints.txt")
    assert set(users) & set(tools) == set()
    direct = {canonicalize_name(Requirement(line).name) for line in EXTRAS["dev"]}
    assert direct <= set(tools)
    assert direct & _brought_by(_of_users()) == set()


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_pins_fit_the_ranges_of_pyproject(extra: str) -> None:
    pins = _pins("constraints.txt") | _pins(".ci/constraints.txt")
    for requirement in map(Requirement, EXTRAS[extra] if extra else PROJECT["dependencies"]):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is None or requirement.specifier.contains(version), f"{requirement} but {version} is pinned"


def test_torch_is_pinned() -> None:
    """Otherwise pip replaces a CPU build that is installed already by the newest one, with gigabytes of CUDA."""
    assert "torch" in _pins("constraints.txt")


def test_readme_fetches_the_pinned_torch() -> None:
    """With another CPU build than the pinned one, the next command of the README would replace it by the CUDA build."""
    named = set(re.findall(r"torch(?:==| )(\d+\.\d+\.\d+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named == {_pins("constraints.txt")["torch"]}
