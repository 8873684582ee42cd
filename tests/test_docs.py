"""What the documents show is what happens."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch

import attendo

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [m.name for m in pkgutil.walk_packages(attendo.__path__, "attendo.") if not m.name.endswith("__main__")]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_show(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert failed == 0


@every_page
def test_examples_in_pages_give_what_they_show(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    examples = "\n".join(re.findall(r"```python\n(>>>.*?)```", page.read_text(), flags=re.DOTALL))
    test = doctest.DocTestParser().get_doctest(examples, {}, page.name, str(page), 0)
    out = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=out.write)
    assert runner.failures == 0, out.getvalue()


@every_page
def test_commands_in_pages_exist_with_their_options(page):
    helps: dict[str, str] = {}
    for line in re.findall(r"(?:^    |`|&& )(attendo [^`\n&]*)", page.read_text(), flags=re.MULTILINE):
        words = shlex.split(line)
        if len(words) < 2 or words[1].startswith("-"):
            continue
        if words[1] not in helps:
            helps[words[1]] = help_of(words[1])
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"{option}\b", helps[words[1]]), f"{page.name}: {line}"


def help_of(command: str) -> str:
    from attendo.cli import app

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app([command, "--help"], exit_on_error=False, result_action="return_value")
    return out.getvalue()


@every_page
def test_links_in_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_shows_both_commands():
    text = (ROOT / "README.md").read_text()
    assert "    pip install . && attendo compare\n" in text
    assert '    pip install ".[test]" && pytest\n' in text
