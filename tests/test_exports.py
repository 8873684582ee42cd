"""Exports: every mechanism and network agrees with PyTorch in the engine its file is for, or no file is written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import attendo
from attendo.exports import compare_engines, export, exporting, graph, quantise
from attendo.insertion import insert
from fill import filled
from rows import ROWS, Row

onnx = pytest.importorskip("onnx", reason="exports need the extra onnx")
pytest.importorskip("onnxscript", reason="exports need the extra onnx")
pytest.importorskip("onnxruntime", reason="exports need the extra onnx")

SETTINGS = {row.name: row for row in reversed(ROWS)}  # the first row of each mechanism


def randomised(model: nn.Module) -> nn.Module:
    """Weights under which every tensor matters."""
    spec = [[key, list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in model.state_dict().items()]
    kept = {key for key, _ in model.named_buffers() if key.endswith("dct")}
    state = filled(spec, 1.0, "hash")
    model.load_state_dict({key: model.state_dict()[key] if key in kept else value for key, value in state.items()})
    return model


class Around(nn.Module):
    """A mechanism as it stands in a network."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, row.channels, 3, 2, 1)
        self.attention = attendo.layer(row.name, row.channels, **row.settings)
        self.fc = nn.Linear(row.channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.attention(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("to", ["onnx", "torch"])
@pytest.mark.parametrize("name", attendo.list_layers())
def test_every_mechanism_exports_with_any_batch_and_size(name, to, tmp_path):
    model = randomised(Around(SETTINGS[name]))
    done = export(model, tmp_path / "model", to, input_size=(3, 22, 18))
    assert done.dynamic_size, done.note
    assert len(done.agreements) == 5
    assert max(agreement.difference for agreement in done.agreements) < 1e-5
    assert done.path.stat().st_size == done.bytes


@pytest.mark.parametrize("row", [row for row in ROWS if row.settings], ids=lambda row: row.id)
def test_every_setting_exports_as_a_program_of_torch(row, tmp_path):
    assert export(randomised(Around(row)), tmp_path / "model.pt2", "torch", input_size=(3, 28, 28)).agreements


@pytest.mark.parametrize("name", ["se", "bam", "simam", "psa"])
def test_networks_export_wherever_a_mechanism_stands(name, tmp_path):
    model = randomised(attendo.create_model("resnet8", attention=name, num_classes=5))
    done = export(model, tmp_path / "model.onnx", input_size=(3, 32, 32), dynamic_size=False, batch_sizes=(1, 3))
    assert [agreement.batch for agreement in done.agreements] == [3, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["se_resnet18", "eca_resnet50", "cbam_resnet18_cifar", "bam_resnet18", "epsanet50_small"]
)
def test_registered_networks_export(name, tmp_path):
    model = randomised(attendo.create_model(name, num_classes=7))
    assert export(model, tmp_path / "model.onnx", input_size=(3, 64, 64), batch_sizes=(1, 2)).dynamic_size


def test_networks_with_inserted_attention_export(tmp_path):
    model = attendo.create_model("resnet8", num_classes=5)
    insert(model, "cbam", input_size=(3, 32, 32))
    assert export(randomised(model), tmp_path / "model.onnx", input_size=(3, 32, 32)).agreements


def test_feature_maps_export_under_their_names(tmp_path):
    model = attendo.create_model("resnet8", attention="eca", features_only=True)
    done = export(model, tmp_path / "model.onnx", input_size=(3, 32, 32), dynamic_size=False)
    assert done.outputs == tuple(f"features_{i}" for i in range(len(done.outputs)))
    assert [output.name for output in onnx.load(str(done.path)).graph.output] == list(done.outputs)


def test_openvino_files_agree(tmp_path):
    pytest.importorskip("openvino", reason="this target needs the extra openvino")
    model = randomised(attendo.create_model("resnet8", attention="cbam", num_classes=5))
    done = export(model, tmp_path / "model.xml", "openvino", input_size=(3, 32, 32))
    assert done.dynamic_size
    assert done.bytes == sum((tmp_path / name).stat().st_size for name in ("model.xml", "model.bin"))
    run = exporting.openvino_session(done.path)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(run(x)[0], model.eval()(x), rtol=1e-4, atol=1e-4)


def test_the_network_itself_is_left_alone(tmp_path):
    model = attendo.create_model("resnet8", attention="se").train().half()
    export(model, tmp_path / "model.pt2", "torch", input_size=(3, 32, 32))
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert all(p.requires_grad for p in model.parameters())


def test_pools_over_positions_are_written_as_global_pools(tmp_path):
    model = randomised(attendo.create_model("resnet8", attention="cbam"))
    export(model, tmp_path / "model.onnx", input_size=(3, 32, 32))
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "model.onnx")).graph.node]
    assert kinds.count("GlobalAveragePool") == 4
    assert kinds.count("GlobalMaxPool") == 3
    assert kinds.count("ReduceMean") == 3  # those over channels stay


class Liar(nn.Module):
    """Computes something else when it is exported."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.01 if torch.compiler.is_exporting() else x


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_the_first_layer_that_differs_is_named_and_nothing_is_written(to, tmp_path):
    model = randomised(attendo.create_model("resnet8", attention="se", num_classes=5))
    model.layer2[0].act2 = nn.Sequential(nn.ReLU(), Liar())
    with pytest.raises(attendo.AttendoError, match=r"first layer that differs is 'layer2.0.act2.1' \(Liar\)"):
        export(model, tmp_path / "model", to, input_size=(3, 32, 32))
    assert not list(tmp_path.iterdir())


class OneSize(nn.Module):
    """Takes 16 x 16 images only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_a_network_of_one_size_is_exported_for_it_and_says_so(to, tmp_path):
    done = export(OneSize(), tmp_path / "model", to, input_size=(3, 16, 16))
    assert not done.dynamic_size
    assert "takes 16 x 16 images only" in str(done)
    with pytest.raises(attendo.AttendoError, match="OneSize"):
        export(OneSize(), tmp_path / "other", to, input_size=(3, 16, 16), dynamic_size=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"to": "tflite"}, "not a target"),
        ({"input_size": (1, 32, 32)}, "does not run on images"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message, tmp_path):
    with pytest.raises(attendo.AttendoError, match=message):
        export(attendo.create_model("resnet8"), tmp_path / "model", **{"input_size": (3, 32, 32), **kwargs})
    assert not list(tmp_path.iterdir())


def test_a_missing_engine_says_how_to_install_it():
    with pytest.raises(ImportError, match=r"Run: pip install .*\[openvino\]'$"):
        graph.need("no_such_engine", extra="openvino")


def patterns(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(99))
    classes = torch.randint(0, 5, (count,), generator=generator)
    return means[classes] + torch.randn(count, 3, 32, 32, generator=generator), classes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network with SE that tells five patterns apart, as ONNX."""
    torch.manual_seed(0)
    model = attendo.create_model("resnet8", attention="se", num_classes=5).train()
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(25):
        x, classes = patterns(32, step)
        loss = nn.functional.cross_entropy(model(x), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export(model, path, input_size=(3, 32, 32), dynamic_size=False)
    return path


def test_int8_keeps_the_accuracy_and_the_gates_in_float(trained, tmp_path):
    calibration = [patterns(16, 100 + i)[0] for i in range(3)]
    done = quantise(trained, tmp_path / "int8.onnx", calibration, [patterns(128, 200)], largest_drop=0.03)
    assert done.accuracy > 0.8
    assert done.int8_accuracy >= done.accuracy - 0.03
    assert done.images == 128
    assert done.bytes < 0.6 * done.float_bytes
    assert done.kept == 6  # two fully connected layers in each of three gates
    kinds = [node.op_type for node in onnx.load(str(done.path)).graph.node]
    assert "DequantizeLinear" in kinds


def test_int8_that_loses_accuracy_is_not_written(trained, tmp_path):
    noise = [1e3 * torch.randn(4, 3, 32, 32)]  # ranges of nothing that the network will see
    with pytest.raises(attendo.AttendoError, match="accuracy falls from"):
        quantise(trained, tmp_path / "int8.onnx", noise, [patterns(128, 200)])
    assert not list(tmp_path.iterdir())


def test_int8_without_images_is_refused(trained, tmp_path):
    with pytest.raises(attendo.AttendoError, match="no evaluation images"):
        quantise(trained, tmp_path / "int8.onnx", [patterns(4, 1)[0]], [])


def test_engines_are_compared_side_by_side():
    models = {"plain": attendo.create_model("resnet8"), "se": attendo.create_model("resnet8", attention="se")}
    table = compare_engines(
        models, ("eager", "onnxruntime"), input_size=(3, 32, 32), batch_sizes=(1, 2), repeats=2, min_seconds=0
    )
    rows = [(row.engine, row.batch, row.model) for row in table.rows]
    assert rows == [(e, b, m) for e in ("eager", "onnxruntime") for b in (1, 2) for m in ("plain", "se")]
    assert all(row.ratio.value == 1 for row in table.rows if row.model == "plain")
    assert "onnxruntime" in str(table)
    assert set(table.versions) == {"torch", "onnxruntime"}


def test_an_unknown_engine_gets_a_suggestion():
    with pytest.raises(KeyError, match="Did you mean 'onnxruntime'"):
        compare_engines(nn.Identity(), ("onnxruntimes",))
