"""The pages that say what equals what are true: measured again, counted again, and written again word for word."""

from __future__ import annotations

import json

import pytest

import attendo
import test_conversion as conversion
from attendo.layers._base import LAYERS
from conformance import PAGES, PAPERS, PARITY, conformance_page, published_page, published_row

ROWS = json.loads(PARITY.read_text())


def rows(kind: str) -> list[dict]:
    return [row for row in ROWS if row["kind"] == kind]


def test_the_conformance_page_is_what_the_generator_writes():
    assert PAGES["conformance"].read_text() == conformance_page(ROWS)


@pytest.mark.slow
def test_the_page_of_published_numbers_is_what_the_generator_writes():
    assert PAGES["published"].read_text() == published_page()


@pytest.mark.parametrize(
    "name", ["se_resnet18", "cbam_resnet50", "eca_mobilenetv2", "epsanet50_large", "se_resnet50_cifar"]
)
def test_a_line_of_published_numbers_is_counted(name):
    assert published_row(name) in PAGES["published"].read_text().splitlines()


def test_every_registered_network_and_mechanism_has_its_line():
    published, conformance = (PAGES[page].read_text() for page in ("published", "conformance"))
    assert all(f"\n| {name} |" in published for name in attendo.list_models())
    assert all(f"\n| `{name}` |" in conformance for name in attendo.list_layers())
    assert set(PAPERS) <= set(attendo.list_models())


def test_published_parameters_are_ours_in_the_units_of_their_source():
    for line in PAGES["published"].read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 10 or cells[1] not in PAPERS:
            continue
        name, parameters, printed = cells[1], int(cells[3].replace(",", "")), cells[6]
        million = 1024**2 if printed.endswith("*") else 1e6
        digits = len(printed.rstrip("*").partition(".")[2])
        # ECA-Net-152 prints 57.41 for 57.4046: a unit of the last digit is allowed
        assert abs(parameters / million - float(printed.rstrip("*"))) < 1.01 * 10**-digits, name


def test_every_published_mechanism_equals_some_source():
    equal = {row["ours"] for row in rows("mechanism")}
    assert set(attendo.list_layers()) - equal == {"static"}  # the control, from no paper
    assert equal <= set(LAYERS)


def test_every_bound_is_within_what_is_promised():
    assert all(row["bound"] <= (1e-5 if row["kind"] == "mechanism" else 1e-4) for row in ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("row", rows("transcription"), ids=lambda row: row["call"])
def test_parity_with_the_second_implementation_is_within_its_bound(row):
    assert conversion.call_difference(row["call"], row["side"]) <= row["bound"]


@pytest.mark.slow
@pytest.mark.parametrize("row", rows("timm"), ids=lambda row: row["ours"])
def test_parity_with_timm_is_within_its_bound(row):
    assert conversion.timm_difference(row["ours"]) <= row["bound"]


@conversion.in_shared
@pytest.mark.slow
@pytest.mark.parametrize("row", rows("network"), ids=lambda row: row["fixture"])
def test_parity_with_recorded_networks_is_within_its_bound(row):
    assert conversion.network_difference(row["fixture"], "hash") <= row["bound"]


@conversion.in_shared
def test_parity_with_recorded_mechanisms_is_within_its_bound():
    bounds = {row["fixture"]: row["bound"] for row in rows("mechanism")}
    for parity in conversion.MODULES:
        assert conversion.module_difference(parity, "sin") <= bounds[parity.fixture], parity.fixture
