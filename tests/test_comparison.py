"""The main job: an honest grid, resumed to the bit, with every failure named."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import attendo
from attendo.comparison import Cell, Grid, Watcher, compare, pool
from attendo.comparison.cells import build
from attendo.data import load
from attendo.layers.se import SqueezeExcitation
from attendo.training import Recipe
from attendo.training import fit as train

GRID = Grid(attention=("none", "se"), seeds=(0, 1), recipe=Recipe(epochs=2), limit=64)


def states(directory: Path) -> dict[str, bytes]:
    """What a comparison must repeat: its numbers and its weights."""
    found = {"results.csv": (directory / "results.csv").read_bytes()}
    for path in sorted(directory.glob("cells/*/weights.safetensors")):
        found[path.parent.name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("whole") / "out"
    return compare(GRID, directory), states(directory)


def test_a_comparison_leaves_numbers_weights_and_a_verdict(undisturbed):
    outcome, files = undisturbed
    assert [(r.attention, r.seed, r.status) for r in outcome.results] == [
        ("none", 0, "done"),
        ("none", 1, "done"),
        ("se", 0, "done"),
        ("se", 1, "done"),
    ]
    assert len(files) == 5
    assert [s.attention for s in outcome.summaries] == ["none", "se"]
    assert outcome.verdict
    assert not list(outcome.directory.glob("cells/*/last.ckpt"))
    assert all(r.latency_ms > 0 for r in outcome.results)
    first = outcome.results[0]
    assert [epoch.epoch for epoch in first.history] == [0, 1]
    assert first.accuracy == first.history[-1].validation_accuracy
    assert first.parameters == sum(
        p.numel() for p in attendo.create_model("resnet8_stride2", num_classes=10).parameters()
    )


def test_finished_cells_are_not_trained_again(undisturbed, monkeypatch):
    monkeypatch.setattr("attendo.profiling.latencies.STEADY", math.inf)  # a busy machine would measure again
    outcome, files = undisturbed
    before = {path: path.stat().st_mtime_ns for path in outcome.directory.glob("cells/*/*")}

    class Strict(Watcher):
        def started(self, cell):
            raise AssertionError(f"{cell} was trained again")

    again = compare(GRID, outcome.directory, watcher=Strict())
    assert {path: path.stat().st_mtime_ns for path in outcome.directory.glob("cells/*/*")} == before
    assert again == outcome
    assert states(outcome.directory) == files


def test_a_comparison_killed_at_any_step_ends_the_same(undisturbed, tmp_path):
    _, files = undisturbed
    out = tmp_path / "out"

    class Killed(BaseException):  # no handler may swallow it
        pass

    for at in ((0, 1), (0, 3), (2, 2), (3, 4)):  # cell, step: within an epoch, in the second epoch, ...

        class Killer(Watcher):
            cells = -1

            def started(self, cell, at=at):
                self.cells = list(GRID.cells()).index(cell)

            def stepped(self, cell, step, steps, at=at):
                if (self.cells, step) == at:
                    raise Killed

        with pytest.raises(Killed):
            compare(GRID, out, watcher=Killer())
    compare(GRID, out)
    assert states(out) == files


@pytest.mark.slow
def test_the_command_survives_sigkill(undisturbed, tmp_path):
    _, files = undisturbed
    words = ["compare", "--attention", "none", "se", "--seeds", "2", "--epochs", "2", "--limit", "64"]
    command = [sys.executable, "-m", "attendo", *words, "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = 0
    for wanted in (1, 3):  # after so many finished cells
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(tmp_path.glob("out/cells/*/result.json"))) >= wanted:
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.01)
        process.wait()
    assert killed >= 1
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert states(tmp_path / "out") == files
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000


@pytest.mark.slow
def test_a_process_that_dies_is_a_failed_cell_and_the_others_go_on(undisturbed, tmp_path):
    _, files = undisturbed
    out = tmp_path / "out"

    class Reaper(Watcher):
        reaped = 0

        def stepped(self, cell, step, steps):
            if not self.reaped:
                self.reaped += 1
                for process in multiprocessing.active_children():  # the one that steps, and one that may not have begun
                    os.kill(process.pid, signal.SIGKILL)

    outcome = compare(GRID, out, jobs=2, watcher=Reaper())
    assert 1 <= len(outcome.failures) <= 2
    assert all("died with exit code -9" in failed.error for failed in outcome.failures)
    assert not compare(GRID, out, jobs=2).failures
    assert states(out) == files


@pytest.mark.slow
@pytest.mark.parametrize("doomed", [1, 2])
def test_of_processes_that_die_before_they_begin_one_must_be_left(undisturbed, tmp_path, monkeypatch, doomed):
    _, files = undisturbed
    begin, begun = pool._begin, []

    def begin_and_kill(settings):
        line, worker = begin(settings)
        begun.append(worker)
        if len(begun) <= doomed:
            worker.process.kill()
        return line, worker

    monkeypatch.setattr(pool, "_begin", begin_and_kill)
    if doomed == 1:
        assert not compare(GRID, tmp_path / "out", jobs=2).failures
        assert states(tmp_path / "out") == files
    else:
        with pytest.raises(attendo.AttendoError, match=r"all ended before they began, the last with code -9"):
            compare(GRID, tmp_path / "out", jobs=2)


def test_more_seeds_and_mechanisms_join_what_is_there(undisturbed):
    outcome, _ = undisturbed
    trained = []

    class Listener(Watcher):
        def started(self, cell):
            trained.append(cell)

    compare(replace(GRID, attention=("none", "eca"), seeds=(0,)), outcome.directory, watcher=Listener())
    assert trained == [Cell("resnet8_stride2", "eca", 0)]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"recipe": Recipe(epochs=3)}, "epochs 2 there, 3 asked"),
        ({"recipe": Recipe(epochs=2, lr=0.1)}, "lr"),
        ({"limit": 128}, "limit 64 there, 128 asked"),
        ({"stem": "cifar"}, "stem"),
    ],
    ids=str,
)
def test_other_settings_never_mix_with_what_is_there(undisturbed, change, word):
    outcome, _ = undisturbed
    before = (outcome.directory / "comparison.json").read_bytes()
    with pytest.raises(attendo.AttendoError, match=rf"other settings .*{word}.* Pass another --out"):
        compare(replace(GRID, **change), outcome.directory)
    assert (outcome.directory / "comparison.json").read_bytes() == before


def test_each_set_of_settings_has_its_own_default_directory():
    common = GRID.common("abc")
    assert GRID.default_directory(common) == GRID.default_directory(dict(common))
    assert GRID.default_directory(common) != GRID.default_directory(replace(GRID, limit=65).common("abc"))
    assert GRID.default_directory(common) != GRID.default_directory(GRID.common("abd"))


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(attendo.AttendoError, match="files that are not a comparison"):
        compare(GRID, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_two_runs_in_one_directory_are_refused(undisturbed):
    outcome, _ = undisturbed

    class Second(Watcher):
        def planned(self, *everything):
            with pytest.raises(attendo.AttendoError, match="in use by another run"):
                compare(GRID, outcome.directory)

    compare(GRID, outcome.directory, watcher=Second())


def test_a_failed_cell_is_recorded_and_does_not_stop_the_others(tmp_path, monkeypatch):
    def fit(model, *arguments, **settings):
        if any(isinstance(module, SqueezeExcitation) for module in model.modules()):
            raise ValueError("no luck")
        return train(model, *arguments, **settings)

    monkeypatch.setattr("attendo.comparison.cells.fit", fit)
    outcome = compare(replace(GRID, attention=("se", "none"), seeds=(0,)), tmp_path / "out")
    failed, done = outcome.results
    assert failed.status == "failed"
    assert failed.error == "ValueError: no luck"
    assert done.status == "done"
    assert outcome.failures == (failed,)
    assert "failed" in (outcome.directory / "results.csv").read_text()


@pytest.mark.parametrize("insert", [False, True])
def test_networks_that_cannot_be_built_are_all_named_before_one_is_trained(tmp_path, insert):
    class Strict(Watcher):
        def planned(self, *everything):
            raise AssertionError("it was not stopped")

    attention = ("none", "se:reduction=100", "eca", "eca:kernel_size=4")
    grid = replace(GRID, attention=attention, insert=insert)
    with pytest.raises(attendo.AttendoError, match=r"^networks: 2 of 4 cannot be built") as error:
        compare(grid, tmp_path / "out", watcher=Strict())
    _, first, second = str(error.value).splitlines()
    assert re.match(r"  resnet8_stride2 se:reduction=100: .*16 channels with reduction 100", first)
    assert re.match(r"  resnet8_stride2 eca:kernel_size=4: .*kernel_size=4", second)
    compare(replace(grid, attention=("none",), seeds=(0,)), tmp_path / "out")  # the directory is as good as new


def test_finished_networks_are_not_built_again_to_be_checked(undisturbed, monkeypatch):
    outcome, _ = undisturbed
    monkeypatch.setattr("attendo.comparison.cells.build", None)
    assert compare(GRID, outcome.directory).weights == outcome.weights


def test_a_network_that_diverges_is_a_failed_cell(tmp_path):
    explosive = Recipe(epochs=1, optimizer="sgd", lr=90.0, weight_decay=10.0, warmup=0.0)  # weights times -899 a step
    grid = replace(GRID, attention=("none",), seeds=(0,), recipe=explosive, limit=640)
    (result,) = compare(grid, tmp_path / "out").results
    assert result.status == "failed"
    assert "the loss became" in result.error


@pytest.mark.parametrize(("spread", "measured"), [(0.25, 0), (0.26, 2)])
def test_the_latencies_of_a_busy_machine_are_measured_again(undisturbed, tmp_path, monkeypatch, spread, measured):
    outcome, _ = undisturbed
    shutil.copytree(outcome.directory, tmp_path / "out")
    costs = {f"resnet8_stride2 {kind}": {"median_ms": 2.0, "spread_ms": 2.0 * spread} for kind in GRID.attention}
    (tmp_path / "out" / "costs.json").write_text(json.dumps(costs))
    asked = []

    def steady(networks, *sizes, **settings):
        asked.extend(networks)
        return SimpleNamespace(latencies={name: SimpleNamespace(median_ms=3.0, iqr_ms=0.1) for name in networks})

    monkeypatch.setattr("attendo.comparison.run.compare_latency", steady)
    again = compare(GRID, tmp_path / "out")
    assert len(asked) == measured
    assert {result.latency_ms for result in again.results} == {3.0 if measured else 2.0}


def test_a_full_disk_is_a_failed_cell(tmp_path, monkeypatch):
    def full(*anything, **else_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attendo.comparison.cells.save", full)
    (result,) = compare(replace(GRID, attention=("none",), seeds=(0,)), tmp_path / "out").results
    assert result.status == "failed"
    assert "No space left on device" in result.error


def test_a_network_that_cannot_take_the_images_is_a_failed_cell(tmp_path):
    grid = replace(GRID, models=("vgg11", "resnet8_stride2"), attention=("none",), seeds=(0,), image_size=16)
    failed, done = compare(grid, tmp_path / "out").results
    assert (failed.status, done.status) == ("failed", "done")
    assert "16 x 16" in failed.error


def test_the_backbone_starts_the_same_under_every_attention():
    images = load("digits", limit=64)
    plain, attended = (build(Cell("resnet8_stride2", attention, 7), GRID, images) for attention in ("none", "cbam"))
    state = attended.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("resnet19",)}, "Did you mean 'resnet18'"),
        ({"attention": ("none", "ses")}, "Did you mean"),
        ({"attention": ("se:reductoin=8",)}, r"layer 'se': reductoin=8 was given.*Did you mean 'reduction'\?"),
        ({"attention": ("psa:out_channels=8",)}, "layer 'psa': out_channels=8 was given"),
        ({"attention": ("eca:x=8",)}, "layer 'eca': x=8 was given.*Known: b, gamma, kernel_size"),
        ({"attention": ()}, "attention: none given"),
        ({"attention": ("se", "se")}, "'se' was given twice"),
        ({"seeds": ()}, "seeds: none given"),
    ],
    ids=str,
)
def test_a_grid_that_cannot_work_is_refused_before_anything_runs(change, message):
    with pytest.raises(attendo.AttendoError, match=message):
        replace(GRID, **change)


def test_common_settings_are_plain_values():
    assert json.loads(json.dumps(GRID.common("abc"))) == GRID.common("abc")
