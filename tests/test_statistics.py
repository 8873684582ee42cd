"""From cells to statements: every number here can be checked by hand or against scipy."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from attendo.comparison.results import CellResult, Epoch, read_result, to_csv, write_result
from attendo.comparison.statistics import holm, interval, paired, summarise, verdict


def cell(attention: str, seed: int, accuracy: float | None, model: str = "resnet8") -> CellResult:
    if accuracy is None:
        return CellResult(model, attention, seed, "failed", error="out of memory")
    history = (Epoch(0, 1.0, 1.1, accuracy),)
    return CellResult(model, attention, seed, "done", "", history, accuracy, 100, 1000, 2.0, 0.1, 1, 3.0)


def cells(**accuracies: list[float | None]) -> list[CellResult]:
    return [
        cell(attention, seed, value) for attention, values in accuracies.items() for seed, value in enumerate(values)
    ]


def test_the_interval_is_students():
    # mean 0.8, standard deviation 0.1, three values, t(0.975, 2) = 4.302653
    found = interval([0.7, 0.8, 0.9])
    assert found.mean == pytest.approx(0.8)
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval():
    assert math.isnan(interval([0.5]).low)


def test_holm_steps_down():
    # sorted 0.01, 0.02, 0.04 -> 3 x 0.01, max(0.03, 2 x 0.02), max(0.04, 1 x 0.04)
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    corrected = holm([math.nan, 0.03])
    assert math.isnan(corrected[0])
    assert corrected[1] == 0.03


def test_differences_are_paired_by_seed():
    a, b = {0: 0.5, 1: 0.6, 2: 0.8}, {0: 0.4, 1: 0.55, 2: 0.7, 7: 0.1}
    contrast = paired(a, b, "none")
    assert contrast.difference.mean == pytest.approx((0.1 + 0.05 + 0.1) / 3)
    assert contrast.p_value == pytest.approx(stats.ttest_rel([0.5, 0.6, 0.8], [0.4, 0.55, 0.7]).pvalue)
    assert paired({0: 1.0}, {1: 1.0}, "none") is None


def test_differences_without_spread_claim_nothing():
    assert paired({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}, "none").p_value == 1.0
    assert paired({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5}, "none").p_value == 1.0  # not certainty


def test_seeds_that_agree_to_the_image_are_no_evidence():
    text = verdict(summarise(cells(none=[0.1, 0.1], static=[0.07, 0.07], se=[0.07, 0.07])))
    assert "lowered" not in text
    assert "±0.0" not in text
    assert "hardly been trained" in text


def test_a_clear_gain_is_called_higher_and_noise_is_not():
    results = cells(none=[0.70, 0.71, 0.72], se=[0.80, 0.811, 0.82], eca=[0.72, 0.69, 0.73], cbam=[0.60, 0.61, 0.622])
    words = {s.attention: s.baseline.verdict.split(":")[0] for s in summarise(results) if s.baseline}
    assert words == {"se": "higher", "eca": "no detectable difference", "cbam": "lower"}
    text = verdict(summarise(results))
    assert "se raised accuracy" in text
    assert "cbam lowered accuracy" in text
    assert "No detectable difference to no attention: eca" in text


def test_one_seed_is_no_evidence():
    text = verdict(summarise(cells(none=[0.7], se=[0.9])))
    assert "One seed is no evidence either way: se" in text
    assert "raised" not in text
    assert "detectably better" not in verdict(summarise(cells(none=[0.7], static=[0.8], se=[0.9])))


def test_a_control_with_settings_is_the_control():
    results = cells(none=[0.70, 0.71, 0.72], se=[0.80, 0.811, 0.82])
    results += [cell("static:reduction=4", seed, 0.7) for seed in range(3)]
    assert summarise(results)[1].control.difference.mean == pytest.approx(0.11033, abs=1e-4)


def test_seeds_are_counted_as_they_are():
    results = cells(none=[0.70, 0.71, 0.72], se=[0.80, 0.811, 0.82], eca=[0.7, 0.72, None])
    assert "With 2 to 3 seeds" in verdict(summarise(results))


def test_costs_that_were_not_measured_are_nan():
    summaries = summarise([CellResult("resnet8", "se", 0, "done", accuracy=0.5)])
    assert math.isnan(summaries[0].latency_ms)


def test_the_static_control_takes_the_credit_that_is_its_own():
    results = cells(none=[0.70, 0.71, 0.72], static=[0.80, 0.811, 0.82], se=[0.801, 0.812, 0.819])
    text = verdict(summarise(results))
    assert "static, se raised accuracy" in text
    assert "None is detectably better than a static gate" in text


def test_failed_cells_are_counted_and_left_out():
    summaries = summarise(cells(none=[0.7, 0.72], se=[0.8, None], cbam=[None, None]))
    assert [(s.attention, s.failed) for s in summaries] == [("none", 0), ("se", 1)]


def test_correction_counts_all_models_together():
    results = [*cells(none=[0.7, 0.71, 0.72], se=[0.75, 0.77, 0.76])]
    alone = summarise(results)[1].baseline.p_corrected
    results += [
        cell(attention, seed, value, "resnet18")
        for attention, values in {"none": [0.7, 0.71, 0.72], "se": [0.7, 0.72, 0.71]}.items()
        for seed, value in enumerate(values)
    ]
    assert summarise(results)[1].baseline.p_corrected == pytest.approx(2 * alone)


def test_nothing_to_compare_is_said():
    assert verdict(summarise(cells(se=[0.7, 0.8]))).startswith("Nothing to compare")


def test_a_result_is_read_back_only_under_its_fingerprint(tmp_path):
    path, result = tmp_path / "result.json", cell("se", 1, 0.5)
    assert read_result(path, "a") is None
    write_result(path, result, "a")
    assert read_result(path, "a") == result
    assert read_result(path, "b") is None
    path.write_text(path.read_text()[:50])
    assert read_result(path, "a") is None


def test_csv_has_a_line_per_epoch_and_no_times():
    text = to_csv(cells(none=[0.5], se=[None]))
    assert text.splitlines()[1:] == [
        "resnet8,none,0,0,1.0,1.1,0.5,100,1000,done,",
        "resnet8,se,0,,,,,,,failed,out of memory",
    ]
    assert "seconds" not in text
