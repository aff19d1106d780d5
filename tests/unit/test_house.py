"""The house rules that a machine can hold: packaging, links, guards, budgets."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAPPED = ("pipelines", "training", "configs", "assets")
LIBRARY = ("vgen", *MAPPED)


def _python_files() -> list[Path]:
    return [
        path
        for top in LIBRARY
        for path in sorted((ROOT / top).rglob("*.py"))
        if not any(parent.is_symlink() for parent in path.parents) and "__pycache__" not in path.parts
    ]


def test_packages_list_equals_the_folders_with_an_init() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for path in _python_files():
        if path.name == "__init__.py":
            parts = path.parent.relative_to(ROOT).parts
            found.add(".".join(parts if parts[0] == "vgen" else ("vgen", *parts)))
    assert found == listed


def test_every_module_lies_in_a_listed_package() -> None:
    orphans = [str(p.relative_to(ROOT)) for p in _python_files() if not (p.parent / "__init__.py").exists()]
    assert orphans == []


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_folders_are_linked_and_guarded(name: str) -> None:
    link = ROOT / "vgen" / name
    assert link.is_symlink() and link.resolve() == ROOT / name
    run = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0 and f"vgen.{name}" in run.stderr


def test_no_top_level_package_called_tests() -> None:
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_files_and_functions_keep_their_budget() -> None:
    """At most 400 lines a file and 100 a function (HOUSE rules, hard limits)."""
    over = []
    for path in _python_files():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            over.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 100:
                    over.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert over == []


def _module(path: Path) -> str:
    """Name of the module in a file of the library."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "vgen" else ("vgen", *parts)).removesuffix(".__init__")


def test_no_modules_import_each_other() -> None:
    """No import cycle, with imports inside functions and under TYPE_CHECKING; also through a package's own names."""
    files = {_module(path): path for path in _python_files()}
    imports: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                inside = (f"{node.module}.{alias.name}" for alias in node.names)
                imports[name] |= {module if module in files else node.module for module in inside}
            elif isinstance(node, ast.Import):
                imports[name] |= {alias.name for alias in node.names}
    before = 0
    while len(imports) != before:  # what imports nothing that is left, or is imported by nothing that is left, goes
        before = len(imports)
        imported = set().union(*imports.values())
        imports = {name: entry & imports.keys() for name, entry in imports.items() if name in imported}
        imports = {name: entry for name, entry in imports.items() if entry}
    assert sorted(imports) == []


def test_nobody_asks_for_the_kind_of_an_objective_or_a_guidance() -> None:
    """A variant is one file in one room; what differs is asked of it, by a method."""
    rooms = {"Objective": "training/objectives/", "Guidance": "vgen/diffusion/guidance/"}
    asked = []
    for path in _python_files():
        place = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                kinds = ast.unparse(node.args[1])
                asked += [
                    f"{place}:{node.lineno}" for kind, room in rooms.items() if kind in kinds and room not in place
                ]
    assert asked == []


def test_fields_name_their_default() -> None:
    """Field(default=...): a default by place makes the field a required argument to type checkers of users."""
    by_place = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _python_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Field" and node.args
    ]
    assert by_place == []


def test_generation_imports_nothing_from_training() -> None:
    code = (
        "import sys, vgen.pipelines as p; p.TextToVideoPipeline, p.ImageToVideoPipeline, p.MaskedPredictionPipeline, "
        "p.InterpolationPipeline; print([m for m in sys.modules if m.startswith('vgen.training')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_importing_vgen_is_light() -> None:
    code = "import sys, vgen; print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_pipelines_import_little_that_diffusers_does_not() -> None:
    """diffusers' own bases take seconds to import (peft and dynamo with them, at its module level); ours add little."""
    program = """
import sys
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.loaders import LTXVideoLoraLoaderMixin
from diffusers.video_processor import VideoProcessor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel
before = set(sys.modules)
import vgen.pipelines
added = {name for name in sys.modules if name not in before}
print(*sorted({name.partition(".")[0] for name in added} - set(sys.stdlib_module_names)))
print(*sorted(name for name in added if name.startswith(("torch._dynamo", "torch._inductor", "xformers", "peft."))))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    packages, heavy = done.stdout.split("\n")[:2]
    allowed = {"vgen", "diffusers", "transformers", "torch", "accelerate", "einops", "pydantic", "pydantic_core",
               "annotated_types", "typing_inspection", "psutil"}  # fmt: skip
    assert set(packages.split()) <= allowed
    assert heavy == ""


def test_no_folder_shows_more_than_15_modules() -> None:
    shown = Counter(path.parent for path in _python_files() if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): count for folder, count in shown.items() if count > 15} == {}


def test_every_module_lies_in_a_layer() -> None:
    """import-linter then refuses a module that no layer names."""
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert contract["type"] == "layers" and contract["exhaustive"] is True


def test_docstrings_of_private_functions_are_one_line() -> None:
    longer = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in _python_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_") and not node.name.startswith("__")
        and "\n" in (ast.get_docstring(node) or "")
    ]  # fmt: skip
    assert longer == []
