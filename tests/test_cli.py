"""The command line: what a user types, sees, and gets as exit code."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import attendo
from attendo.cli import main
from attendo.profiling import profile

SMALL = ["--limit", "64", "--epochs", "1"]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command in an empty directory; return its exit code, output and errors with line breaks taken out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights as `attendo train` leaves them."""
    directory = tmp_path_factory.mktemp("trained")
    with pytest.raises(SystemExit) as end:
        main(["train", "--attention", "se", *SMALL, "--out", str(directory / "out")])
    assert not end.value.code
    (file,) = (directory / "out").glob("cells/*/weights.safetensors")
    return file


def test_compare_ends_with_a_table_a_verdict_and_a_report(run, tmp_path):
    code, out, _ = run("compare", "--attention", "none", "se", "--seeds", "2", "--jobs", "1", *SMALL)
    assert code == 0
    assert "4 networks to train (1 model x 2 attentions x 2 seeds), 1 epoch each" in out
    assert re.search(r"this will take about \d+ (seconds|minutes|hours)", out)
    assert re.search(r"se\s+[\d.]+ ± [\d.]+\s+[+-][\d.]+ ± [\d.]+", out)
    assert "difference" in out
    (report,) = tmp_path.glob("attendo-results/digits-*/report.html")
    assert "attendo compare --attention none se" in report.read_text() or "attendo" in report.read_text()
    assert (report.parent / "results.csv").read_text().count("\n") == 5


@pytest.mark.parametrize(("iqr", "shown"), [(0.1, "1.02"), (58.0, "busy")])
def test_compare_shows_no_latency_of_a_busy_machine(run, monkeypatch, iqr, shown):
    def made_up(networks, *sizes, **settings):
        return SimpleNamespace(latencies={name: SimpleNamespace(median_ms=1.02, iqr_ms=iqr) for name in networks})

    monkeypatch.setattr("attendo.comparison.run.compare_latency", made_up)
    code, out, _ = run("compare", "--attention", "none", "se", "--seeds", "1", "--jobs", "1", *SMALL)
    assert code == 0
    assert len(re.findall(rf" M +{re.escape(shown)} ", out)) == 2
    assert ("The machine was busy when the latency of none, se was measured" in out) is (shown == "busy")
    assert ("The same command does, and trains nothing twice." in out) is (shown == "busy")


def test_profile_says_that_the_machine_was_busy(run, monkeypatch):
    def busy(*arguments, **settings):
        found = profile(*arguments, **settings)
        latency = replace(found.rows[0].latency, median_ms=1.0, quartiles_ms=(0.9, 30.0))
        return replace(found, rows=(replace(found.rows[0], latency=latency),))

    monkeypatch.setattr("attendo.cli.inspecting.measure", busy)
    code, out, _ = run("profile", "resnet8", "--image-size", "32", "--seconds", "0.01")
    assert code == 0
    assert "The machine was busy when the latency of resnet8 was measured" in out


def test_compare_with_a_failed_cell_exits_with_1_and_names_it(run):
    explosive = ("--optimizer", "sgd", "--lr", "90", "--weight-decay", "10", "--limit", "640", "--epochs", "3")
    code, out, _ = run("compare", "--attention", "se", "--seeds", "1", "--jobs", "1", *explosive)
    assert code == 1
    assert "1 network to train (1 model x 1 attention x 1 seed)" in out
    assert "failed resnet8_stride2 se, seed 0: training: the loss became" in out


def test_data_that_an_option_swallowed_is_named_with_its_place(run, tmp_path):
    (tmp_path / "pets").mkdir()
    for swallowed in ("pets", "digits", "torch/cifar10", "../gone"):
        for words in (("--attention", "none", "se", swallowed), ("--models", "resnet18", swallowed)):
            code, _, err = run("compare", *words)
            assert code == 1
            assert f"Give DATA first: attendo compare {swallowed} {' '.join(words[:-1])}\n" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["compare", "--attention", "sse"], 1, "Did you mean"),
        (["compare", "nowhere"], 1, "not known, and no folder"),
        (["compare", "./nowhere"], 1, "no such folder"),
        (["compare", "--models", "resnet19"], 1, "Did you mean 'resnet18'"),
        (["compare", "--attention", "none", "se:reductoin=8"], 1, "Did you mean 'reduction'?"),
        (["compare", "--attention", "none", "se:reduction=99"], 1, "networks: 1 of 2 cannot be built"),
        (["train", "--attention", "se:reductoin=8"], 1, "Did you mean 'reduction'?"),
        (["compare", "--optimizer", "adamww"], 1, "Did you mean 'adamw'"),
        (["train", "--precision", "12"], 1, "error recipe: precision='12' is not one of its choices. Take '32-true'"),
        (["train", "--image-size", "2"], 1, "image_size=2; it must be an integer of at least 8"),
        (["train", "--stem", "cifarr"], 1, "error networks: 1 of 1 cannot be built"),
        (["compare", "--base", "resnet18", "--weights", "gone.pth"], 1, "gone.pth"),
        (["compare", "--weights", "gone.pth"], 1, "Pass --base"),
        (["compare", "--atention", "se"], 2, "Did you mean --attention"),
        (["compair"], 2, "Did you mean"),
        (["summary", "resnet50", "--attention", "se:reduction=4096"], 1, "256 channels with reduction 4096"),
        (["predict", "gone.safetensors", "x.png"], 1, "gone.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_named_with_the_way_out(run, words, code, message):
    found, out, err = run(*words)
    assert found == code
    assert message in re.sub(r"[\s│]+", " ", out + err)


def test_evaluate_gives_the_accuracy_of_training(run, weights):
    code, out, _ = run("evaluate", weights, "digits", "--limit", "64")
    assert code == 0
    result = json.loads((weights.parent / "result.json").read_text())
    assert f"accuracy {100 * result['accuracy']:.2f} %" in out


def test_evaluate_refuses_data_with_other_classes(run, weights, tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / "pets" / split / name / "1.png")
    code, _, err = run("evaluate", weights, "pets")
    assert code == 1
    assert "cat, dog" in err


def test_predict_names_classes_of_any_image(run, weights, tmp_path):
    Image.new("L", (300, 200), 128).save(tmp_path / "grey.png")
    code, out, _ = run("predict", weights, "grey.png")
    assert code == 0
    assert re.match(r"grey\.png: \d [\d.]+ %, \d [\d.]+ %, \d [\d.]+ %", out)


def test_predict_goes_on_after_images_that_cannot_be_read_and_names_them(run, weights, tmp_path):
    Image.new("L", (30, 20), 128).save(tmp_path / "grey.png")
    (tmp_path / "a[b]page.png").write_bytes(b"<html>")
    code, out, err = run("predict", weights, "a[b]page.png", "grey.png", "gone.png")
    assert code == 1
    assert re.fullmatch(r"grey\.png: [^\n]*\n", out)
    first, *others = err.splitlines()
    assert first == "error 2 of 3 images cannot be read:"
    assert others[0].startswith("  image a[b]page.png: cannot be read as a picture")
    assert others[1].startswith("  image gone.png: not there")


def test_predict_refuses_weights_that_do_not_say_their_classes(run, tmp_path):
    attendo.save(attendo.create_model("resnet8", num_classes=10), tmp_path / "bare.safetensors")
    code, _, err = run("predict", "bare.safetensors", "x.png")
    assert code == 1
    assert "does not say its classes" in err


def test_summary_prints_parameters_and_macs(run):
    code, out, _ = run("summary", "resnet50", "--attention", "eca", "--image-size", "64")
    assert code == 0
    assert "layer1" in out
    assert "ECA" in out
    assert "MACs" in out


def test_profile_puts_networks_side_by_side(run, tmp_path):
    words = ("resnet8", "--attention", "none", "se", "--image-size", "32", "--seconds", "0.05", "--csv", "costs.csv")
    code, out, _ = run("profile", *words)
    assert code == 0
    assert "resnet8 se" in out
    assert len((tmp_path / "costs.csv").read_text().splitlines()) == 3


def test_list_names_everything(run):
    code, out, _ = run("list")
    assert code == 0
    for name in (*attendo.list_layers(), *attendo.list_models()):
        assert name in out


def test_insert_saves_a_network_that_computes_what_it_did(run, tmp_path):
    torch.manual_seed(0)
    attendo.save(attendo.create_model("resnet20", num_classes=10), tmp_path / "plain.safetensors")
    words = ("insert", "resnet20", "cbam", "--weights", "plain.safetensors", "--image-size", "32")
    code, out, _ = run(*words, "--out", "with.safetensors")
    assert code == 0
    assert "9 sites" in out
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(attendo.load("with.safetensors")(x), attendo.load("plain.safetensors")(x))


def test_convert_turns_a_checkpoint_into_a_file_that_describes_itself(run, tmp_path):
    source = attendo.create_model("se_resnet18", num_classes=10)
    torch.save(source.state_dict(), tmp_path / "published.pth")
    code, out, _ = run("convert", "published.pth", "own.safetensors")
    assert code == 0, out
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(attendo.load("own.safetensors")(x), source.eval()(x), atol=1e-5)


def test_compare_inserts_into_a_finished_network(run, tmp_path):
    torch.manual_seed(0)
    attendo.save(attendo.create_model("resnet8_stride2", num_classes=4), tmp_path / "plain.safetensors")
    words = ("--base", "resnet8_stride2", "--weights", "plain.safetensors", "--attention", "none", "eca")
    code, out, _ = run("compare", *words, "--seeds", "1", "--jobs", "1", *SMALL)
    assert code == 0, out
    (file,) = tmp_path.glob("attendo-results/digits-*/cells/*eca*/weights.safetensors")
    assert attendo.load(file)(torch.randn(1, 3, 40, 40)).shape == (1, 10)
