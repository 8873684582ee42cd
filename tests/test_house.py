"""The house: imports point one way, files stay readable, and importing attendo stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import attendo

PACKAGE = Path(attendo.__file__).parent

# A part imports only from parts to its left; parts within one group do not import each other.
LINE = [
    {"_errors"},
    {"_registry"},
    {"kernels"},
    {"functional"},
    {"layers"},
    {"insertion"},
    {"models"},
    {"profiling"},
    {"exports"},
    {"checkpoints"},
    {"data"},
    {"training"},
    {"comparison"},
    {"report"},
    {"cli"},
]
OUTSIDE = {"__init__", "__main__", "_timm"}  # the front door, and what it does when timm is imported

FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    inner = path.relative_to(PACKAGE)
    return inner.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of attendo that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            if node.module == "attendo":
                names = [f"attendo.{alias.name}" for alias in node.names]
            else:
                names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("attendo.")}
    return found


def test_every_part_of_the_house_has_its_place():
    assert {part(path) for path in FILES} - OUTSIDE == set().union(*LINE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = part(path)
    if own in OUTSIDE:
        return
    place = next(i for i, group in enumerate(LINE) if own in group)
    allowed = set().union(*LINE[:place]) | {own}
    public = {"__version__", *attendo.__all__}  # names of the front door, which lead to the left as well
    assert imported(path) - public <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_one_idea(path):
    assert len(path.read_text().splitlines()) <= 320


def test_mechanisms_are_files_that_can_be_read_without_scrolling_twice():
    for path in (PACKAGE / "layers").glob("*.py"):
        code = [line for line in path.read_text().splitlines() if line.strip()]
        assert len(code) <= 130, path.name


def test_the_library_neither_asserts_nor_prints():
    for path in FILES:
        calls = list(ast.walk(ast.parse(path.read_text())))
        assert not any(isinstance(node, ast.Assert) for node in calls), path
        named = {node.func.id for node in calls if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert "print" not in named, path


def test_the_public_names_are_all_there():
    assert sorted(attendo.__all__) == attendo.__all__
    for name in attendo.__all__:
        assert getattr(attendo, name) is not None


def test_importing_attendo_imports_torch_and_nothing_heavy_besides():
    code = (
        "import torch, sys, time\n"
        "before, start = set(sys.modules), time.process_time()\n"
        "import attendo\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'timm', 'torchvision', 'lightning', 'matplotlib', 'sklearn', 'scipy', 'datasets', 'rich',"
        " 'cyclopts', 'jinja2', 'PIL', 'safetensors', 'huggingface_hub', 'onnx', 'torchmetrics'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
