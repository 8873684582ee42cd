"""Weight files that describe themselves: they rebuild any network from the file alone, and damage is noticed."""

from __future__ import annotations

import copy
import json
import pickle
import struct

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import attendo
from attendo.checkpoints import files, read_metadata
from attendo.checkpoints.header import LONGEST_HEADER, read_header
from attendo.insertion import insert, replace


def run(model: nn.Module, channels: int = 3, side: int = 32) -> list[torch.Tensor]:
    x = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model.eval()(x.to(next(model.parameters()).dtype))
    return list(out) if isinstance(out, list | tuple) else [out]


def shaken(model: nn.Module) -> nn.Module:
    """Give every weight and statistic another value, so that a network that was only rebuilt would be noticed."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * (0.1 if name.endswith("running_var") else 0.02))
    return model


def inserted(model: nn.Module, how: str = "insert", **settings) -> nn.Module:
    (insert if how == "insert" else replace)(model, input_size=(3, 32, 32), **settings)
    return model


MODELS = {
    "attendo base": lambda: attendo.create_model("resnet8", attention="se", num_classes=5),
    "settings per stage": lambda: attendo.create_model(
        "resnet8", attention="eca", attention_args=[{"kernel_size": k} for k in (3, 5, 7)], in_chans=1
    ),
    "tuples in settings": lambda: attendo.create_model("resnet8", attention="psa:groups=(1,2,4,4),reduction=4"),
    "settings without shapes": lambda: attendo.create_model("resnet8", attention="cbam:max_first=False,order=parallel"),
    "a buffer of its own": lambda: attendo.create_model("resnet8", attention="fca:reduction=8"),
    "no parameters": lambda: attendo.create_model("resnet8", attention="simam:e_lambda=0.1", num_classes=3),
    "registered": lambda: timm.create_model("cbam_resnet18_cifar", num_classes=4),
    "features only": lambda: attendo.create_model("resnet18", attention="eca", features_only=True),
    "timm": lambda: timm.create_model("resnet18", num_classes=4, in_chans=1),
    "timm through attendo": lambda: attendo.create_model("mobilenetv3_small_050", num_classes=2),
    "torchvision": lambda: torchvision.models.resnet18(num_classes=3),
    "torchvision without linear": lambda: torchvision.models.squeezenet1_0(num_classes=7),
    "torchvision with insertions": lambda: inserted(torchvision.models.resnet18(num_classes=3), attention="cbam"),
    "timm with replacements": lambda: inserted(timm.create_model("mobilenetv3_small_050"), "replace", attention="eca"),
    "attendo with insertions": lambda: inserted(attendo.create_model("resnet8"), attention="bam", start="paper"),
    "half precision": lambda: attendo.create_model("resnet8", attention="se").bfloat16(),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_alone_gives_the_network_back(name, tmp_path):
    model = shaken(MODELS[name]())
    path = attendo.save(model, tmp_path / "model.safetensors")
    again = attendo.load(path)
    channels = 1 if name in ("timm", "settings per stage") else 3
    assert not again.training
    assert next(again.parameters()).dtype == next(model.parameters()).dtype
    for want, got in zip(run(model, channels), run(again, channels), strict=True):
        assert torch.equal(want, got)


def test_what_was_loaded_can_be_saved_again(tmp_path):
    model = inserted(attendo.create_model("resnet8", num_classes=3), attention="se")
    first = attendo.save(model, tmp_path / "first.safetensors")
    second = attendo.save(attendo.load(first), tmp_path / "second.safetensors")
    assert first.read_bytes() == second.read_bytes()


def test_a_file_says_what_it_is(tmp_path):
    model = attendo.create_model("resnet8", attention="se:reduction=8", num_classes=2)
    transform = {"image_size": 32, "mean": (0.5, 0.5, 0.5)}
    path = attendo.save(
        model, tmp_path / "x.safetensors", classes=("cat", "dog"), transform=transform, extra={"seed": 3}
    )
    metadata = read_metadata(path)
    assert (metadata.name, metadata.classes, metadata.version) == ("resnet8", ("cat", "dog"), attendo.__version__)
    assert metadata.arguments == {"attention": "se:reduction=8", "num_classes": 2}
    assert metadata.transform == {"image_size": 32, "mean": [0.5, 0.5, 0.5]}
    assert metadata.extra == {"seed": 3}
    assert str(metadata.recipe) == "resnet8(attention='se:reduction=8', num_classes=2)"


def test_a_head_that_was_changed_since_is_followed(tmp_path):
    model = timm.create_model("se_resnet18_cifar", num_classes=10)
    model.reset_classifier(6)
    assert attendo.load(attendo.save(model, tmp_path / "x.safetensors")).fc.out_features == 6


def test_wrappers_are_taken_off(tmp_path):
    model = attendo.create_model("resnet8", num_classes=3)
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        again = attendo.load(attendo.save(wrapped, tmp_path / "x.safetensors"))
        assert torch.equal(run(model)[0], run(again)[0])


def test_channels_last_and_tied_weights_are_written(tmp_path):
    model = attendo.create_model("resnet8", attention="se").to(memory_format=torch.channels_last)
    model.layer1[0].conv2.weight = model.layer1[0].conv1.weight
    path = attendo.save(model, tmp_path / "x.safetensors")
    want, got = model.state_dict(), attendo.load(path).state_dict()
    assert all(torch.equal(value, got[key]) for key, value in want.items())


def test_loading_leaves_the_random_state_alone(tmp_path):
    path = attendo.save(attendo.create_model("resnet8"), tmp_path / "x.safetensors")
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    attendo.load(path)
    assert torch.equal(torch.rand(1), want)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = attendo.save(attendo.create_model("resnet8", num_classes=3), tmp_path / "x.safetensors")
    before = path.read_bytes()

    def half(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(files, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        attendo.save(attendo.create_model("resnet8", num_classes=4), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Own(nn.Module):
    """A network that nobody knows."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "kwargs", "message"),
    [
        (Own, {}, "it has no name"),
        (Own, {"name": "resnet8"}, "stands AttentionResNet|stands CifarResNet"),
        (lambda: attendo.create_model("resnet8"), {"name": "resnet18"}, "instead of"),
        (
            lambda: attendo.create_model("resnet8", attention="cbam"),
            {"name": "resnet8", "attention": "se"},
            "layer1.0.se",
        ),
        (
            lambda: attendo.create_model("resnet8", attention="cbam:max_first=False"),
            {"name": "resnet8", "attention": "cbam"},
            "max_first=True",
        ),
        (
            lambda: attendo.create_model("resnet8", num_classes=3),
            {"classes": ("a", "b")},
            "2 classes for a network of 3",
        ),
        (lambda: attendo.create_model("resnet8"), {"extra": {"x": float("nan")}}, "cannot be written"),
        (lambda: timm.create_model("cbam_resnet18", act_layer=nn.SiLU), {}, "cannot be written"),
        (lambda: attendo.create_model("mobilenetv3_small_050", scriptable=True), {}, "a weight file may give"),
    ],
)
def test_a_file_that_would_give_another_network_is_never_written(model, kwargs, message, tmp_path):
    with pytest.raises(attendo.AttendoError, match=message):
        attendo.save(model(), tmp_path / "x.safetensors", **kwargs)
    assert not list(tmp_path.iterdir())


def rewritten(path, change) -> None:
    """Change the description in a file and write it with the same tensors, without caring for the digest."""
    header = read_header(path)
    from safetensors.torch import load_file

    description = json.loads(header.metadata["attendo"])
    tensors = load_file(path)
    change(description, tensors)
    tensors = {key: value.clone() for key, value in tensors.items()}
    save_file(tensors, path, {"attendo": json.dumps(description)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(format=99), "Update attendo"),
        (lambda d, t: d.pop("arguments"), "cannot be read"),
        (lambda d, t: d.update(name=["resnet8"]), "name in its description"),
        (lambda d, t: d.update(classes=[1]), "classes in its description"),
        (lambda d, t: d.update(name="resnet9"), "cannot be built"),
        (lambda d, t: d.update(name="timm/hf-hub:someone/model"), "timm has none"),
        (lambda d, t: d["arguments"].update(pretrained=True), "argument pretrained=True"),
        (lambda d, t: d["arguments"].update(checkpoint_path="x.pth"), "argument checkpoint_path"),
        (lambda d, t: d["arguments"].update(num_classes=10**12), "beyond the"),
        (lambda d, t: d["arguments"].update(num_classes=10**7), r"tensor 'fc.weight' is F32 \[3, 64\]"),
        (lambda d, t: d["arguments"].update(num_classes=4), r"\[4, 64\] in the network"),
        (lambda d, t: d["arguments"].update(attention="eca"), "layer1.0.se"),
        (lambda d, t: d["arguments"].update(attention="se:reduction=__import__('os')"), "cannot be read"),
        (lambda d, t: d.update(insertions=[{"path": "fc"}]), "cannot be built"),
        (lambda d, t: d.update(extra={"seed": 4}), "changed since"),
        (lambda d, t: t["fc.weight"].add_(1e-3), "changed since"),
        (lambda d, t: t.update(more=torch.ones(1)), "no such entry"),
        (lambda d, t: t.pop("fc.bias"), "'fc.bias' is missing"),
        (lambda d, t: t.update({"fc.bias": t["fc.bias"].to(torch.float8_e5m2)}), "F8_E5M2"),
    ],
)
def test_a_file_that_does_not_fit_its_description_is_refused(change, message, tmp_path):
    path = attendo.save(attendo.create_model("resnet8", attention="se", num_classes=3), tmp_path / "x.safetensors")
    rewritten(path, change)
    with pytest.raises(attendo.AttendoError, match=message):
        attendo.load(path)


def forged(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (b"short", "has 5 bytes"),
        (pickle.dumps({"a": 1}), "a pickle"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (struct.pack("<Q", 2**62) + b"{}", "announces a header"),
        (struct.pack("<Q", LONGEST_HEADER + 1) + bytes(LONGEST_HEADER + 10), "longer than"),
        (forged(b"{" + b"[" * 100_000), "not readable JSON"),
        (forged(b"\xff\xfe{}"), "not readable JSON"),
        (forged(b'{"a": 1, "a": 2}'), "comes twice"),
        (forged([1]), "not a JSON object"),
        (forged({"__metadata__": {"attendo": 1}}), "not text"),
        (forged({"a": ONE}), "need 4 bytes and 0 are there"),
        (forged({"a": ONE}, bytes(5)), "need 4 bytes and 5 are there"),
        (forged({"a": {**ONE, "shape": [2**62]}}, bytes(4)), "contradicts itself"),
        (forged({"a": {**ONE, "shape": [-1]}}, bytes(4)), "contradicts itself"),
        (forged({"a": {**ONE, "shape": [True]}}, bytes(4)), "contradicts itself"),
        (forged({"a": {**ONE, "dtype": "F33"}}, bytes(4)), "contradicts itself"),
        (forged({"a": {**ONE, "data_offsets": [0]}}, bytes(4)), "contradicts itself"),
        (forged({"a": ONE, "b": ONE}, bytes(4)), "overlap"),
        (forged({"a": {**ONE, "data_offsets": [4, 8]}}, bytes(8)), "hole"),
        (forged({"a": 3}, b""), "contradicts itself"),
        (forged({"a": ONE}, bytes(4)), "no description"),
    ],
)
def test_a_file_that_is_damaged_or_hostile_is_refused(content, message, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(attendo.AttendoError, match=message):
        attendo.load(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    path = attendo.save(attendo.create_model("resnet8"), tmp_path / "x.safetensors")
    whole = path.read_bytes()
    for length in (4, 9, 500, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(attendo.AttendoError):
            attendo.load(path)


def test_one_flipped_bit_anywhere_is_noticed(tmp_path):
    path = attendo.save(attendo.create_model("resnet8", num_classes=3), tmp_path / "x.safetensors", extra={"k": "v"})
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    places = torch.randint(0, len(whole), (20,)).tolist() + torch.randint(8, header, (20,)).tolist() + [0, 8, header]
    noticed = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 7)
        path.write_bytes(damaged)
        try:
            model = attendo.load(path)
        except attendo.AttendoError:
            noticed += 1
        else:  # only JSON may be written in two ways; then nothing has changed
            path.write_bytes(whole)
            want = attendo.load(path).state_dict()
            assert all(torch.equal(value, want[key]) for key, value in model.state_dict().items())
    assert noticed >= len(places) - 2


def test_a_copy_and_a_pickle_of_a_model_still_know_what_they_are(tmp_path):
    model = attendo.create_model("resnet8", attention="se", num_classes=3)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert read_metadata(attendo.save(twin, tmp_path / "x.safetensors")).arguments["attention"] == "se"


def test_a_network_goes_to_the_hub_as_one_file_and_a_card(tmp_path, monkeypatch):
    import shutil

    import huggingface_hub

    class Api:
        def create_repo(self, repository, private, exist_ok):
            assert (repository, private, exist_ok) == ("me/net", True, True)

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "repository")
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model = attendo.create_model("resnet8", attention="eca", num_classes=2)
    assert attendo.checkpoints.push_to_hub(model, "me/net", classes=("a", "b"), private=True) == "https://hub/commit"
    card = (tmp_path / "repository" / "README.md").read_text()
    assert "resnet8(attention='eca', num_classes=2)" in card
    assert 'from_pretrained("me/net")' in card
    again = attendo.checkpoints.from_pretrained(str(tmp_path / "repository"))
    assert torch.equal(run(model)[0], run(again)[0])


def test_weights_that_are_not_in_the_cache_say_why_the_hub_was_not_asked():
    with pytest.raises(attendo.AttendoError, match=r"no weights came from the Hub \(HF_HUB_OFFLINE is set\)"):
        attendo.checkpoints.from_pretrained("nobody/nothing")


def test_the_hub_offline_is_an_error(monkeypatch):
    with pytest.raises(attendo.AttendoError, match="not uploaded"):
        attendo.checkpoints.push_to_hub(attendo.create_model("resnet8"), "me/net")
