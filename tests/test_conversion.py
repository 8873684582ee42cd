"""Published weights: whole networks equal to those they were published for, and every key accounted for."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import threading
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

import attendo
import official
from attendo.checkpoints import convert, convert_file, download, read_metadata, reading
from attendo.insertion import insert
from attendo.layers import Attention
from conftest import SHARED
from fill import filled, image_like
from parity import MODULES, Parity, load_by_position
from test_parity import compare

GOLDEN = SHARED / "golden"
OWN = json.loads((Path(__file__).parent / "golden" / "networks.json").read_text())
BY_POSITION = {"xmu_sk_c64"}  # it has a layer per branch where we have one for all: not a matter of names
RELATIVE = 1e-4  # of the largest output, for whole networks

in_shared = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recorded outputs are not beside this checkout")

# name of ours, call of official.py, the input's side: every dialect at several depths
NETWORKS = [
    ("cbam_resnet18", "jongchan_cbam(18)", 64),
    ("cbam_resnet34", "jongchan_cbam(34)", 64),
    ("cbam_resnet50", "jongchan_cbam(50, classes=7)", 64),
    ("cbam_resnet18_cifar", "jongchan_cbam(18, classes=10, stem='cifar')", 32),
    ("bam_resnet18", "jongchan_bam(18)", 64),
    ("bam_resnet50", "jongchan_bam(50)", 64),
    ("se_resnet18", "moskomule_se(18)", 64),
    ("se_resnet50", "moskomule_se(50)", 64),
    ("se_resnet20", "moskomule_se(20, classes=10)", 32),
    ("se_resnet56", "moskomule_se(56, classes=100)", 32),
    ("eca_resnet18", "eca(18, (3, 5, 7, 7))", 64),
    ("eca_resnet34", "eca(34, (3, 3, 5, 7))", 64),
    ("eca_resnet50", "eca(50, (3, 3, 3, 3))", 64),
    ("epsanet50_small", "epsanet(50)", 64),
    ("epsanet50_large", "epsanet(50, (3, 5, 5, 7), (32, 32, 32, 32), 2)", 64),
    ("epsanet50_large", "epsanet(50, (3, 3, 3, 9), (32, 32, 32, 32), 2)", 64),
    ("cbam_resnet18_cifar", "blog_cbam(18)", 32),
    ("cbam_resnet50_cifar", "blog_cbam(50)", 32),
    ("cbam_resnet18", "luuuyi_cbam(18)", 64),
    ("se_resnet34_cifar", "blog_se(34)", 32),
    ("simam_resnet18", "simam_repository(18, 'simam')", 64),
    ("simam_resnet50", "simam_repository(50, 'simam')", 64),
    ("se_resnet18", "simam_repository(18, 'se')", 64),
    ("cbam_resnet50", "simam_repository(50, 'cbam')", 64),
    ("triplet_resnet18", "triplet(18)", 64),
    ("triplet_resnet50", "triplet(50, models=False)", 64),
    ("triplet_resnet18", "triplet(18, 'pcam')", 64),
]


def randomised(model: nn.Module) -> nn.Module:
    """A network with deterministic weights under which every tensor matters."""
    spec = [[key, list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in model.state_dict().items()]
    model.load_state_dict(filled(spec, 1.0, "hash"))
    return model.eval()


def published(call: str) -> nn.Module:
    """The official network of a call of official.py."""
    return randomised(eval(f"official.{call}", {"official": official}))


def difference(ours: nn.Module, theirs: nn.Module, side: int = 64) -> float:
    """Largest difference of two networks' outputs, relative to the largest output."""
    x = image_like([2, 3, side, side])
    with torch.no_grad():
        want, got = theirs(x), ours(x)
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def assert_equal(ours: nn.Module, theirs: nn.Module, side: int = 64) -> None:
    assert difference(ours, theirs, side) <= RELATIVE


def call_difference(call: str, side: int) -> float:
    """How far the network that a transcription's weights turn out to be is from the transcription."""
    theirs = published(call)
    return difference(attendo.load_weights(None, theirs.state_dict()), theirs, side)


@pytest.mark.parametrize(
    ("name", "call", "side"),
    [pytest.param(*row, marks=[pytest.mark.slow] if "50" in row[0] else []) for row in NETWORKS],
    ids=[call for _, call, _ in NETWORKS],
)
def test_official_weights_give_the_official_outputs_and_every_key_has_a_place(name, call, side):
    theirs = published(call)
    state = theirs.state_dict()
    conversion = convert(state)
    assert list(conversion.renamed) == list(state)
    assert sorted(conversion.renamed.values()) == sorted(conversion.state)
    assert conversion.dropped == ()
    ours = attendo.load_weights(name, state)
    assert not ours.training
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert_equal(ours, theirs, side)


@pytest.mark.parametrize("call", OWN)
def test_networks_give_the_figures_kept_here(call):
    kept = OWN[call]
    ours = attendo.load_weights(None, published(call).state_dict())
    with torch.no_grad():
        out = ours(image_like(kept["input"])).double()
    assert sum(p.numel() for p in ours.parameters()) == kept["parameters"]
    for name, got in {
        "first": out.flatten()[:8],
        "mean": out.mean(),
        "std": out.std(),
        "largest": out.abs().max(),
    }.items():
        want = torch.tensor(kept[name], dtype=torch.float64)
        assert (got - want).abs().max() <= RELATIVE * kept["largest"], name


def fixtures(kind: str) -> list[str]:
    if not GOLDEN.is_dir():
        return ["absent"]
    return sorted(
        p.stem for p in GOLDEN.glob("*.json") if p.stem != "fill" and json.loads(p.read_text())["kind"] == kind
    )


def network_difference(name: str, formula: str) -> float:
    """How far the network that a fixture's state dict turns out to be is from the fixture's output."""
    fixture = json.loads((GOLDEN / f"{name}.json").read_text())
    record = fixture if formula == "sin" else fixture["hash"]
    model = attendo.load_weights(None, filled(fixture["state_dict"], record["scale"]["weight"], formula))
    with torch.no_grad():
        output = model(image_like(fixture["input_shape"]))
    assert sum(p.numel() for p in model.parameters()) == fixture["params_total"]
    return compare(output, record)


@in_shared
@pytest.mark.slow
@pytest.mark.parametrize("formula", ["sin", "hash"])
@pytest.mark.parametrize("name", fixtures("model"))
def test_a_whole_network_equals_the_recorded_official_output(name, formula):
    assert network_difference(name, formula) <= RELATIVE


def module_difference(parity: Parity, formula: str) -> float:
    """How far a mechanism with a source's state dict is from the source's output."""
    fixture = json.loads((GOLDEN / f"{parity.fixture}.json").read_text())
    record = fixture if formula == "sin" else fixture["hash"]
    state = filled(fixture["state_dict"], record["scale"]["weight"], formula) if fixture["state_dict"] else {}
    state = {key: value * (key not in fixture["kept_tensors"]) for key, value in state.items()}
    module = parity.build().eval()
    if parity.fixture in BY_POSITION:
        load_by_position(module, state)
    else:
        attendo.load_weights(module, state)
    x = image_like(fixture["input_shape"])
    with torch.no_grad():
        output = module.gates(x)[0] if parity.gate else module(x)
    return compare(output, record)


@in_shared
@pytest.mark.parametrize("formula", ["sin", "hash"])
@pytest.mark.parametrize("parity", MODULES, ids=lambda p: p.fixture)
def test_a_single_mechanism_takes_the_names_of_its_source(parity, formula):
    if formula == "hash" and not json.loads((GOLDEN / f"{parity.fixture}.json").read_text()).get("hash"):
        pytest.skip("this source has no parameters to fill twice")
    assert module_difference(parity, formula) <= 1e-5


TIMM = ["seresnet18", "seresnext50_32x4d", "ecaresnet50d", "ecaresnet50t"]


def timm_difference(name: str) -> float:
    """How far the network that timm's weights turn out to be is from timm's."""
    theirs = randomised(timm.create_model(name, num_classes=11))
    return difference(attendo.load_weights(None, theirs.state_dict()), theirs)


@pytest.mark.parametrize("name", TIMM)
def test_timms_networks_are_recognised_where_the_architecture_is_ours(name):
    assert timm_difference(name) <= RELATIVE


@pytest.mark.parametrize("name", ["ecaresnetlight", "skresnet18", "mobilenetv3_small_050"])
def test_timms_names_build_timms_networks_where_ours_differ(name):
    theirs = randomised(timm.create_model(name, num_classes=5))
    assert_equal(attendo.load_weights(name, theirs.state_dict()), theirs)


@pytest.mark.parametrize("attention", ["se", "eca", "cbam"])
def test_timms_mechanisms_in_a_resnet_are_recognised(attention):
    theirs = randomised(timm.create_model("resnet18", block_args={"attn_layer": attention}))
    ours = attendo.load_weights(None, theirs.state_dict())
    assert_equal(ours, theirs)


def test_torchvisions_resnets_load():
    theirs = randomised(torchvision.models.resnet18(num_classes=3))
    for target in (
        "resnet18",
        None,
        attendo.create_model("resnet18", num_classes=3),
        timm.create_model("resnet18", num_classes=3),
    ):
        assert_equal(attendo.load_weights(target, theirs.state_dict()), theirs)


@pytest.mark.parametrize(
    "name", ["cbam_resnet18", "eca_resnet18", "bam_resnet18", "simam_resnet18", "triplet_resnet18"]
)
def test_plain_weights_give_a_network_with_attention_that_starts_as_the_plain_one(name):
    theirs = randomised(torchvision.models.resnet18(num_classes=3))
    ours = attendo.load_weights(name, theirs.state_dict())
    assert sum(isinstance(module, Attention) for module in ours.modules()) >= 3
    x = image_like([2, 3, 64, 64])
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    if name == "eca_resnet18":
        assert [ours.get_submodule(f"layer{i}.0.bn2.attendo.mechanism.conv").kernel_size[0] for i in (1, 2, 3, 4)] == [
            3,
            5,
            7,
            7,
        ]


@pytest.mark.parametrize(
    "attention", ["none", "se", "eca", "cbam", "cbam:variant=paper", "bam", "psa", "simam", "triplet"]
)
def test_our_own_state_dicts_are_recognised(attention):
    theirs = randomised(attendo.create_model("resnet50", attention=attention, num_classes=4))
    assert_equal(attendo.load_weights(None, theirs.state_dict()), theirs)


def mobilenet(kernel=lambda width: 1 if width < 96 else 3) -> nn.Module:
    """MobileNetV2 with ECA last in every block, as the authors write it."""
    model = torchvision.models.mobilenet_v2(num_classes=6)
    for block in model.features:
        if hasattr(block, "conv"):
            width = block.conv[-1].num_features
            block.conv.append(official.ECALayer(width, kernel(width)))
    return randomised(model)


def test_eca_mobilenet_is_recognised(tmp_path):
    theirs = mobilenet()
    assert str(convert(theirs.state_dict()).recipe) == "eca_mobilenetv2(num_classes=6)"
    for target in ("eca_mobilenetv2", None, attendo.create_model("eca_mobilenetv2", num_classes=6)):
        ours = attendo.load_weights(target, theirs.state_dict())
        assert_equal(ours, theirs)
        assert sum(p.numel() for p in ours.parameters()) == 3_504_903 - 994 * 1281
    path = attendo.save(ours, tmp_path / "x.safetensors")
    assert read_metadata(path).insertions == []  # the name says it all
    assert_equal(attendo.load(path), theirs)


def test_eca_mobilenet_with_other_kernels_keeps_them():
    theirs = mobilenet(lambda width: 3)
    ours = attendo.load_weights(None, theirs.state_dict())
    assert_equal(ours, theirs)


def test_a_plain_mobilenet_loads_and_starts_as_it_is_with_eca():
    theirs = randomised(torchvision.models.mobilenet_v2(num_classes=6))
    assert_equal(attendo.load_weights(None, theirs.state_dict()), theirs)
    started = attendo.load_weights("eca_mobilenetv2", theirs.state_dict())
    assert sum(isinstance(module, Attention) for module in started.modules()) == 17
    assert_equal(started, theirs)


def test_a_network_with_inserted_attention_takes_plain_weights():
    theirs = randomised(torchvision.models.resnet18(num_classes=3))
    model = torchvision.models.resnet18(num_classes=3)
    insert(model, "cbam", input_size=(3, 64, 64))
    assert_equal(attendo.load_weights(model, theirs.state_dict()), theirs)


def test_fcanet_is_recognised_by_its_filters():
    theirs = attendo.create_model(
        "resnet18", attention="fca", attention_args=[{"dct_size": s} for s in (56, 28, 14, 7)]
    )
    state = {}
    for key, value in randomised(theirs).state_dict().items():
        key = key.replace(".se.fc1.", ".att.fc.0.").replace(".se.fc2.", ".att.fc.2.")
        if key.endswith(".dct"):
            fresh = attendo.layer("fca", 512, dct_size=value.shape[-1], frequencies="low16").dct
            value.copy_(fresh)
            width = 64 * 2 ** (int(key[5]) - 1)
            key, value = key.replace(".se.dct", ".att.dct_layer.weight"), fresh.repeat_interleave(width // 16, 0)
        state[key] = value
    ours = attendo.load_weights(None, state)
    assert_equal(ours, theirs)


def test_a_model_takes_weights_of_a_source_with_the_other_order_of_pools():
    theirs = published("blog_cbam(18)")
    model = attendo.create_model(
        "resnet18", stem="cifar", attention="cbam", attention_args={"variant": "paper", "max_first": True}
    )
    assert_equal(attendo.load_weights(model, theirs.state_dict()), theirs, side=32)


def test_a_model_keeps_its_attention_when_the_weights_have_none(caplog):
    theirs = randomised(torchvision.models.resnet18())
    model = attendo.create_model("resnet18", attention="simam")
    before = attendo.create_model("resnet18", attention="cbam")
    gates = {key: value.clone() for key, value in before.state_dict().items() if ".se." in key}
    with caplog.at_level(logging.INFO, "attendo"):
        attendo.load_weights(model, theirs.state_dict())
        attendo.load_weights(before, theirs.state_dict())
    assert all(torch.equal(before.state_dict()[key], value) for key, value in gates.items())
    assert torch.equal(model.layer1[0].conv2[0].weight, theirs.layer1[0].conv2.weight)
    assert "stay as they are" in caplog.text


def test_prefixes_litter_and_wrapping_dictionaries_are_taken_off(tmp_path):
    theirs = published("eca(18, (3, 5, 7, 7))")
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    state |= {"module.total_ops": torch.zeros(1), "module.layer1.0.eca.total_params": torch.zeros(1)}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, tmp_path / "x.pth.tar")
    conversion = convert(state)
    assert set(conversion.dropped) == {"total_ops", "layer1.0.eca.total_params"}
    assert "module." in str(conversion)
    assert_equal(attendo.load_weights(None, tmp_path / "x.pth.tar"), theirs)


def test_checkpoints_without_batch_counters_load():
    theirs = published("moskomule_se(18)")
    state = {key: value for key, value in theirs.state_dict().items() if "num_batches" not in key}
    assert_equal(attendo.load_weights("se_resnet18", state), theirs)


def test_paddle_names_are_translated():
    theirs = published("epsanet(50)")
    state = {}
    for key, value in theirs.state_dict().items():
        key = key.replace("running_mean", "_mean").replace("running_var", "_variance")
        if "num_batches" not in key:
            state[key] = (value.T if key == "fc.weight" else value).numpy()
    assert_equal(attendo.load_weights("epsanet50_small", state), theirs)


def test_a_loaded_checkpoint_can_be_saved_with_its_description(tmp_path):
    theirs = published("eca(18, (3, 3, 3, 3), classes=9)")
    path = attendo.save(attendo.load_weights(None, theirs.state_dict()), tmp_path / "x.safetensors")
    assert_equal(attendo.load(path), theirs)
    assert_equal(attendo.load_weights("eca_resnet18", path), theirs)
    with pytest.raises(attendo.AttendoError, match="describes itself as resnet18"):
        attendo.load_weights("se_resnet18", path)


def test_a_file_with_official_names_is_written_as_one_that_describes_itself(tmp_path):
    theirs = published("eca(18, (3, 5, 7, 7), classes=3)")
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()} | {
        "module.total_ops": torch.zeros(1)
    }
    torch.save({"state_dict": state}, tmp_path / "official.pth.tar")
    done = convert_file(tmp_path / "official.pth.tar", tmp_path / "ours.safetensors", classes=("a", "b", "c"))
    assert (done.recipe, done.source, done.dropped) == (
        "eca_resnet18(num_classes=3)",
        "BangguWu/ECANet",
        ("total_ops",),
    )
    assert len(done.renamed) == len(theirs.state_dict())
    assert "130 kept, 1 dropped total_ops" in str(done)
    assert_equal(attendo.load(done.path), theirs)
    assert read_metadata(done.path).extra == {"converted_from": "official.pth.tar", "names_of": "BangguWu/ECANet"}
    again = convert_file(done.path, tmp_path / "again.safetensors", "eca_resnet18")
    assert_equal(attendo.load(again.path), theirs)


def without(state: dict, key: str) -> dict:
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("name", "call", "change", "message"),
    [
        (
            None,
            "eca(18, (3, 5, 7, 7))",
            lambda s: {**s, "head.weight": s["fc.weight"]},
            "BangguWu/ECANet: has no 'head.weight'",
        ),
        (None, "eca(18, (3, 5, 7, 7))", lambda s: without(s, "layer2.0.eca.conv.weight"), "'layer2.0.se.conv.weight'"),
        (
            None,
            "eca(18, (3, 5, 7, 7))",
            lambda s: without(s, "layer2.0.bn1.bias"),
            "lacks what we call 'layer2.0.bn1.bias'",
        ),
        (None, "moskomule_se(20)", lambda s: without(s, "layer2.0.downsample.0.weight"), "downsample.0.weight"),
        (
            None,
            "moskomule_se(18)",
            lambda s: {**s, "layer1.1.se.fc.0.weight": torch.ones(24, 64)},
            "no reduction gives it",
        ),
        (None, "moskomule_se(18)", lambda s: {**s, "layer1.0.se.fc.0.weight": torch.ones(8, 64)}, "instead of"),
        (None, "moskomule_se(18)", lambda s: {**s, "fc.weight": torch.ones(1000, 256)}, "'fc.weight'"),
        (None, "moskomule_se(18)", lambda s: {**s, "conv1.weight": torch.ones(64, 3, 5, 5)}, "CIFAR stems"),
        (None, "moskomule_se(18)", lambda s: {"weight": torch.ones(2)}, "no known source"),
        (None, "moskomule_se(18)", lambda s: {}, "0 tensors"),
        ("se_resnet34", "moskomule_se(18)", dict, "the checkpoint is resnet18 with se"),
        ("cbam_resnet18", "moskomule_se(18)", dict, "the checkpoint is resnet18 with se"),
        ("resnet18", "moskomule_se(18)", dict, "the checkpoint is resnet18 with se"),
        ("se_resnet19", "moskomule_se(18)", dict, "Did you mean 'se_resnet1"),
    ],
)
def test_a_checkpoint_that_does_not_add_up_is_refused_with_the_key(name, call, change, message):
    state = change(dict(published(call).state_dict()))
    with pytest.raises(attendo.AttendoError, match=message):
        attendo.load_weights(name, state)


def test_plain_weights_cannot_start_a_network_that_replaces_convolutions():
    with pytest.raises(attendo.AttendoError, match="'psa' replaces its convolutions"):
        attendo.load_weights("epsanet50_small", torchvision.models.resnet50().state_dict())


def test_a_model_that_the_weights_do_not_fit_is_left_alone():
    model = attendo.create_model("resnet18", attention="se")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(attendo.AttendoError, match=r"senet\.pytorch: it lacks what we call 'layer1"):
        attendo.load_weights(model, published("moskomule_se(18)").state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Runs:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (print, ("pwned",))


def test_a_pickle_that_carries_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": Runs()}, tmp_path / "x.pth")
    with pytest.raises(attendo.AttendoError, match="would run code"):
        attendo.load_weights(None, tmp_path / "x.pth")
    assert "pwned" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"garbage, really", "cannot be read|would run code"),
        (b"PK\x03\x04" + bytes(100), "cannot be read"),
        (b"\x04\x00\x00\x00\x00\x00\x00\x00{{{{", "not readable JSON"),
    ],
)
def test_files_that_are_no_checkpoints_are_refused(content, message, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(attendo.AttendoError, match=message):
        attendo.load_weights(None, tmp_path / "x.pth")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"lr": 1}}, torch.ones(3)])
def test_files_without_a_state_dict_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(attendo.AttendoError, match="state dict"):
        attendo.load_weights(None, tmp_path / "x.pth")


def test_a_path_that_does_not_exist_says_what_may_be_given():
    with pytest.raises(FileNotFoundError, match="hf-hub:"):
        attendo.load_weights(None, "nowhere.pth")


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file, with ranges; cuts the first answer off after 1000 bytes if told to."""

    content = b""
    cut = False
    asked: list[str | None] = []

    def do_GET(self):
        wanted = self.headers.get("Range")
        type(self).asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = self.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.cut and not wanted:
            body = body[:1000]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    torch.save(published("moskomule_se(20, classes=10)").state_dict(), tmp_path / "w.pth")
    handler = type("Handler", (Server,), {"content": (tmp_path / "w.pth").read_bytes(), "asked": []})
    monkeypatch.setenv("ATTENDO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield handler, f"http://127.0.0.1:{running.server_port}/w.pth"
        running.shutdown()
        thread.join()


def test_a_download_is_made_once_and_reports_progress(server):
    handler, url = server
    seen = []
    for _ in range(2):
        model = attendo.load_weights("se_resnet20", url, progress=lambda done, total: seen.append((done, total)))
    assert model.fc.out_features == 10
    assert handler.asked == [None]
    assert seen[-1] == (len(handler.content), len(handler.content))


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(server):
    handler, url = server
    handler.cut = True
    with pytest.raises(attendo.AttendoError, match="after 1,000 bytes, which are kept"):
        attendo.load_weights("se_resnet20", url)
    attendo.load_weights("se_resnet20", url)
    assert handler.asked == [None, "bytes=1000-"]


def test_a_checksum_in_the_address_is_compared(server):
    handler, url = server
    right = hashlib.sha256(handler.content).hexdigest()
    with pytest.raises(attendo.AttendoError, match="SHA-256 begins with"):
        download.download(f"{url}#sha256={'0' * 64}")
    assert download.download(f"{url}#sha256={right}").read_bytes() == handler.content


def test_a_server_that_is_not_there_is_an_error_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENDO_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(attendo.AttendoError, match="the download failed"):
        attendo.load_weights(None, "http://127.0.0.1:9/x.pth")


def test_the_hub_offline_is_an_error_with_a_way_out():
    with pytest.raises(attendo.AttendoError, match="no weights came from the Hub"):
        attendo.load_weights(None, "hf-hub:nobody/nothing")


def test_weights_come_from_the_hub_through_its_client(tmp_path, monkeypatch):
    import huggingface_hub

    path = attendo.save(attendo.create_model("resnet8", num_classes=2), tmp_path / "model.safetensors")
    asked = []

    def fetch(repository, filename, revision=None):
        asked.append((repository, filename, revision))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert attendo.load_weights(None, "hf-hub:me/net@v1").fc.out_features == 2
    assert asked == [("me/net", "model.safetensors", "v1")]


def test_the_places_of_state_dicts_are_looked_for_in_order():
    inner = {"weight": torch.ones(1)}
    assert reading.flat({"model": {"weight": torch.zeros(1)}, "state_dict": inner}, "x") == inner


@pytest.mark.parametrize("content", [b"junk", b"", b"\x80", b"PK\x03\x04 a zip no more", bytes(range(256))], ids=len)
def test_bytes_that_are_no_checkpoint_are_refused(content, tmp_path):
    path = tmp_path / "junk.pth"
    path.write_bytes(content)
    with pytest.raises(attendo.AttendoError, match=r"junk\.pth: (cannot be read|refused)"):
        attendo.load_weights(None, path)
