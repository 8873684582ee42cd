"""The benchmark of the CPU kernels runs to its end, writes what it says it writes, and judges rightly."""

from __future__ import annotations

import csv
import importlib.metadata
from typing import Any

import pytest

from scripts import load_script

COLUMNS = (
    "section name peer mode shape format allocator threads median_ms lower upper ratio ratio_lower ratio_upper peak_mb "
    "base rounds note machine torch timm torchvision attendo date"
)


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """The script benchmarks/cpu.py."""
    return load_script("cpu")


def made_up(benchmark: Any, times: list[float], base: list[float], **more: Any) -> Any:
    """A row of these times."""
    settings = {
        "section": "networks",
        "name": "se",
        "peer": "attendo",
        "mode": "inference",
        "shape": "16x3x224x224",
        "format": "contiguous",
        "allocator": "tuned",
        "threads": 2,
        "base": "timm plain",
        "peak_mb": 1234.5,
    }
    return benchmark.fill(benchmark.Row(**{**settings, **more}), times, base)


def line_about(said: str, start: str) -> str:
    """The one line that begins so."""
    (line,) = [line for line in said.splitlines() if line.startswith(start)]
    return line


@pytest.mark.slow
def test_two_sections_run_to_their_end_and_a_base_is_once_itself(benchmark, tmp_path, capsys):
    path = tmp_path / "cpu.csv"
    asked = ["modules", "out-of-the-box", "--quick", "--threads", "1", "--csv", str(path)]
    assert benchmark.main(asked) == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == COLUMNS.split()
    assert {row["section"] for row in rows} == {"modules", "out-of-the-box"}
    assert {row["torch"] for row in rows} == {importlib.metadata.version("torch")}
    assert not any(row["note"] for row in rows)
    assert {"tuned", "default"} == {row["allocator"] for row in rows}
    for row in rows:
        assert float(row["lower"]) <= float(row["median_ms"]) <= float(row["upper"])
        assert float(row["ratio_lower"]) <= float(row["ratio"]) <= float(row["ratio_upper"])
        assert float(row["peak_mb"]) > 50
    bases = [row for row in rows if row["base"] == f"{row['peer']} {row['name']}"]
    copies = [row for row in rows if row["peer"] == "copy"]
    assert len(bases) == 1
    assert len(copies) == 5  # two layouts, inference and training; one of them with the other allocator
    for row in bases + copies:
        assert [row["ratio"], row["ratio_lower"], row["ratio_upper"]] == ["1"] * 3
    peers = {row["peer"] for row in rows if row["section"] == "modules"}
    ours = {"attendo", "attendo in place", "attendo definition"}
    assert peers == {"copy", "timm", "timm compiled", "torchvision", *ours}
    assert "all numbers" in capsys.readouterr().out


def test_a_section_without_time_left_says_what_it_skips(benchmark, tmp_path):
    path = tmp_path / "cpu.csv"
    assert benchmark.main(["networks", "--quick", "--minutes", "0", "--csv", str(path)]) == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["note"], row["median_ms"]) for row in rows} == {("skipped: out of time", "")}
    assert [f"{row['peer']} {row['name']}" for row in rows] == ["timm plain", "timm se", "attendo se"]


def test_a_ratio_is_the_median_of_the_ratios_within_rounds(benchmark):
    row = made_up(benchmark, [2.0, 30.0, 4.0], [1.0, 10.0, 4.0])  # the medians' own ratio is 1
    assert (row.median_ms, row.ratio, row.rounds) == (4.0, 2.0, 3)
    assert (row.ratio_lower, row.ratio_upper) == (1.5, 2.5)


def test_the_table_has_a_paragraph_per_case_and_says_what_a_number_is_against(benchmark):
    rows = [
        made_up(benchmark, [100.0] * 3, [100.0] * 3, name="plain", peer="timm"),
        made_up(benchmark, [101.0] * 3, [100.0] * 3),
        made_up(benchmark, [9.0] * 3, [8.0] * 3, shape="1x3x224x224"),
    ]
    rows.append(benchmark.replace(rows[0], median_ms=None, note="skipped: out of time", shape="1x3x224x224"))
    first, base, ours, second, _, skipped = benchmark.table(rows).splitlines()
    assert first == "networks: inference, 16x3x224x224, contiguous, 2 threads"
    assert second == "networks: inference, 1x3x224x224, contiguous, 2 threads"
    assert base.split()[:6] == ["plain", "timm", "tuned", "100.000", "ms", "1.000"]
    assert ours.split()[:6] == ["se", "attendo", "tuned", "101.000", "ms", "1.010"]
    assert ours.endswith("(1.010 to 1.010)       1,234 MB  over timm plain")
    assert skipped.endswith("skipped: out of time")


def test_targets_are_met_missed_or_not_measured(benchmark):
    rows = [
        made_up(benchmark, [100.0] * 3, [100.0] * 3, format="channels_last"),
        made_up(benchmark, [102.0] * 3, [100.0] * 3),
        made_up(benchmark, [210.0] * 3, [100.0] * 3, section="out-of-the-box", peer="timm", allocator="default"),
        made_up(benchmark, [199.0] * 3, [100.0] * 3, section="out-of-the-box", name="cbam", peer="timm"),
        made_up(benchmark, [18.0] * 3, [10.0] * 3, section="modules", peer="attendo in place", shape="32x256x56x56"),
        made_up(
            benchmark,
            [99.0] * 3,
            [10.0] * 3,
            section="modules",
            peer="attendo in place",
            shape="32x256x56x56",
            allocator="default",
        ),
    ]
    said = benchmark.target_table(rows)
    both = line_about(said, "eager, batch 16, se / plain")
    assert both.endswith("1.020 (1.020 to 1.020) contiguous: MISSED, 1.000 (1.000 to 1.000) channels_last: met")
    assert line_about(said, "out of the box, batch 16, se").endswith(">= 1.95  2.100 (2.100 to 2.100) contiguous: met")
    assert line_about(said, "out of the box, batch 16, cbam").endswith("contiguous: MISSED")
    assert line_about(said, "module 32x256x56x56, se").endswith("<= 1.80  1.800 (1.800 to 1.800) contiguous: met")
    assert line_about(said, "EPSANet-50 / plain, batch 1 ").endswith("not measured")


@pytest.mark.slow
def test_a_process_that_fails_is_noted_and_the_others_are_measured(benchmark, capsys):
    asked = benchmark.parse(["--quick", "--threads", "1"])
    run = benchmark.Run(asked, end=float("inf"))
    plain = benchmark.template(asked)
    wrong = benchmark.replace(plain, name="no_such_network", peer="attendo")
    benchmark.race(run, "networks", [plain, wrong], benchmark.against_first([plain, wrong]))
    good, bad = run.rows
    assert good.ratio == 1
    assert bad.note.startswith("failed: ")
    assert "no_such_network" in bad.note


def test_an_unknown_section_is_refused_with_those_there_are(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["moduls"])
    assert "no section 'moduls'; there are out-of-the-box, networks" in capsys.readouterr().err
