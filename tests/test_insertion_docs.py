"""Every example of the how-to page runs and prints what the page shows."""

from __future__ import annotations

import doctest
import os
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "insertion.md"
SECTIONS = re.split(r"(?m)^## ", PAGE.read_text())[1:]
NEEDS = {"Ultralytics YOLO": "ultralytics", "A U-Net": "segmentation_models_pytorch"}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.splitlines()[0])
def test_the_page_shows_what_happens(section, tmp_path, monkeypatch):
    title = section.splitlines()[0]
    monkeypatch.chdir(tmp_path)
    if title in NEEDS:
        monkeypatch.setenv("YOLO_CONFIG_DIR", os.environ.get("YOLO_CONFIG_DIR", str(tmp_path)))
        pytest.importorskip(NEEDS[title], reason=f"pip install {NEEDS[title].replace('_', '-')}")
    first = doctest.DocTestParser().get_doctest(SECTIONS[0], {}, "first", str(PAGE), 0)
    names = {}
    for line in first.examples:  # what the first section imports, the others use
        if line.source.startswith(("import ", "from ")):
            exec(line.source, names)
    exec("images = torch.randn(2, 3, 224, 224)\nfrom attendo.insertion import *", names)
    test = doctest.DocTestParser().get_doctest(section, names, title, str(PAGE), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    out: list[str] = []
    runner.run(test, out=out.append)
    assert runner.failures == 0, "".join(out)


def test_the_page_shows_each_kind_of_network():
    text = PAGE.read_text()
    assert all(
        word in text for word in ("resnet50", "efficientnet_b0", "yolov8n.yaml", "smp.Unet", "class Net(nn.Module)")
    )
    assert text.count(">>>") > 40
