"""The networks: published parameter counts, timm's promises, and attention where its paper puts it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch

import attendo
from attendo.models import attach, parse_attention
from attendo.models.families import FAMILIES
from attendo.models.hub import hub_or_cache
from attendo.models.zoo import BASES, NAMED

PUBLISHED = {
    "cbam_resnet50_cifar": 28_065_864,
    "se_resnet50_cifar": 28_080_344,
    "se_resnet50": 28_088_024,
    "cbam_resnet18": 11_779_392,
    "cbam_resnet34": 21_960_468,
    "cbam_resnet50": 28_089_624,
    "cbam_resnet101": 49_330_172,
    "eca_resnet18": 11_689_556,
    "eca_resnet34": 21_797_744,
    "eca_resnet50": 25_557_032 + 3 * 3 + 4 * 5 + 6 * 5 + 3 * 7,
    "eca_resnet101": 44_549_317,
    "eca_resnet152": 60_193_042,
    "bam_resnet18": 11_712_503,
    "epsanet50_small": 22_561_715,
    "epsanet101_small": 38_900_279,
    "epsanet50_large": 27_899_518,
    "epsanet101_large": 49_592_198,
}


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def small(name: str) -> str:
    """An attention word that fits networks of 16 channels."""
    return {"fca": "fca:reduction=8"}.get(name, name)


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameters_are_the_published(name, count):
    with torch.device("meta"):
        assert parameters(timm.create_model(name)) == count


def test_both_kernel_sets_of_the_large_epsanet_give_the_published_count():
    with torch.device("meta"):
        other = {"kernel_sizes": (3, 3, 3, 9), "groups": (32, 32, 32, 32)}
        assert parameters(timm.create_model("epsanet50_large", attention_args=other)) == 27_899_518


@pytest.mark.parametrize("name", NAMED)
def test_every_named_network_keeps_timms_promises(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, in_chans=1)
        assert model(torch.empty(2, 1, 64, 64)).shape == (2, 7)
        model.reset_classifier(3)
        assert model(torch.empty(2, 1, 64, 64)).shape == (2, 3)
        features = timm.create_model(name, features_only=True).eval()
        maps = features(torch.empty(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    assert [64 // m.shape[2] for m in maps] == features.feature_info.reduction()


def test_named_networks_are_in_timms_list_and_take_no_name_of_its_own():
    assert set(NAMED) <= set(timm.list_models())
    assert timm.models._registry._model_to_module["seresnet50"] == "resnet"
    assert {timm.models._registry._model_to_module[name] for name in NAMED} == {"zoo"}


@pytest.mark.parametrize("first", ["attendo", "timm"])
def test_networks_are_registered_whichever_is_imported_first(first):
    second = {"attendo": "timm", "timm": "attendo"}[first]
    code = f"import {first}, {second}; print(timm.is_model('cbam_resnet50'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("name", attendo.list_layers())
@pytest.mark.parametrize("base", ["resnet8", "resnet18", "resnet50"])
def test_any_mechanism_fits_any_resnet(base, name):
    attention = small(name) if base == "resnet8" else name
    model = attendo.create_model(base, attention=attention, stem="cifar", num_classes=5).train()
    out = model(torch.randn(2, 3, 16, 16))
    out.sum().backward()
    assert out.shape == (2, 5)
    assert any(isinstance(module, attendo.layers.Attention) for module in model.modules())


@pytest.mark.parametrize("name", [*attendo.list_layers(), "none"])
def test_the_plain_network_starts_the_same_under_every_attention(name):
    def state(attention: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return attendo.create_model("resnet8", attention=attention, num_classes=5).state_dict()

    plain, attended = state("none"), state(small(name))
    attended = {key.replace(".conv2.0.", ".conv2."): value for key, value in attended.items()}
    shared = [key for key in plain if key in attended]
    assert len(shared) >= len(plain) - 3  # PSA and SK replace one convolution per block
    assert all(torch.equal(plain[key], attended[key]) for key in shared)


@pytest.mark.parametrize("attention", ["se", "simam", "psa", "bam"])
def test_plain_pretrained_weights_fill_the_network_around_the_attention(attention, tmp_path):
    file = tmp_path / "plain.pth"
    source = timm.create_model("resnet18")
    torch.save(source.state_dict(), file)
    model = attendo.create_model(
        "resnet18", attention=attention, pretrained=True, pretrained_cfg_overlay={"file": str(file)}
    )
    plain = source.state_dict()
    ours = {key.replace(".conv2.0.", ".conv2."): value for key, value in model.state_dict().items()}
    same = [key for key in plain if key in ours and torch.equal(plain[key], ours[key])]
    assert len(same) >= len(plain) - 8  # PSA replaces the first convolution of each of the 8 blocks


def test_pretrained_weights_of_another_network_are_refused(tmp_path):
    file = tmp_path / "other.pth"
    torch.save(timm.create_model("resnet34").state_dict(), file)
    with pytest.raises(attendo.AttendoError, match="have no place"):
        attendo.create_model("resnet18", attention="se", pretrained=True, pretrained_cfg_overlay={"file": str(file)})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Put a Hub in the place of the real one that notes requests and answers if ``reachable``; its cache is empty."""
    import huggingface_hub
    from huggingface_hub import constants

    class Hub:
        reachable, requests = True, 0

        def head(self, url, timeout):
            self.requests += 1
            if not self.reachable:
                raise ConnectionError("[Errno -2] Name or service not known")

    hub = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: hub)
    return hub


def test_weights_out_of_reach_are_an_error_after_one_request(hub):
    hub.reachable = False
    with pytest.raises(attendo.AttendoError, match=r"'resnet18': pretrained=True.* cannot be reached \(\[Errno -2\]"):
        attendo.create_model("resnet18", attention="se", pretrained=True)
    assert hub.requests == 1


@pytest.mark.parametrize("reachable", [True, False])
def test_the_hubs_client_is_kept_from_the_network_only_while_the_hub_does_not_answer(hub, reachable):
    from huggingface_hub import constants

    hub.reachable = reachable
    with hub_or_cache() as why:
        assert constants.HF_HUB_OFFLINE is not reachable
        assert bool(why) is not reachable
    assert constants.HF_HUB_OFFLINE is False


def test_the_users_wish_to_stay_offline_is_heard_without_a_request(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub_or_cache() as why:
        assert (why, hub.requests) == ("HF_HUB_OFFLINE is set", 0)
    assert constants.HF_HUB_OFFLINE is True


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet8", "cbam_resnet18", "cbam_vgg16", "se_googlenet", "efficientnet_b0", "regnetx_002"]
)
def test_a_misspelt_argument_of_any_network_is_answered_with_the_one_meant(name):
    with pytest.raises(TypeError, match=rf"model '{name}': num_clases=8 was.*; a net.*Did you mean 'num_classes'\?$"):
        attendo.create_model(name, num_clases=8)


def test_an_argument_of_another_network_is_refused_without_a_guess():
    with pytest.raises(attendo.AttendoError, match=r"stem='cifar' was given.* Leave it out\.$"):
        attendo.create_model("efficientnet_b0", stem="cifar")


def test_gradient_checkpointing_gives_the_same_output():
    for name in ("resnet20", "resnet18"):
        model = attendo.create_model(name, attention="se", num_classes=5).eval()
        x = torch.randn(1, 3, 32, 32)
        want = model(x)
        model.set_grad_checkpointing()
        assert torch.equal(model(x), want)


def test_each_stage_takes_its_own_settings():
    sizes = (3, 5, 7, 9)
    model = attendo.create_model("resnet18", attention="eca", attention_args=[{"kernel_size": k} for k in sizes])
    assert [model.get_submodule(f"layer{i}.0.se.conv").kernel_size[0] for i in (1, 2, 3, 4)] == list(sizes)


def test_official_cbam_resnets_start_with_half_open_spatial_gates():
    model = timm.create_model("cbam_resnet18").eval()
    (spatial,) = model.layer1[0].se.spatial.gates(torch.randn(1, 64, 8, 8))
    assert torch.equal(spatial, torch.full_like(spatial, 0.5))


def test_attention_words_round_trip():
    assert parse_attention("psa:groups=(1,2,4,4),reduction=4") == ("psa", {"groups": (1, 2, 4, 4), "reduction": 4})
    assert parse_attention("cbam:variant=paper") == ("cbam", {"variant": "paper"})
    for word in ("se", "se:reduction=8", "psa:groups=(1,2,4,4),reduction=4", "cbam:variant='paper'"):
        assert attendo.models.format_attention(*parse_attention(word)) == word


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet51", {}, "Did you mean 'resnet5"),
        ("resnet50", {"attention": "ce"}, "Did you mean"),
        ("resnet50", {"attention": "se:reduction"}, "cannot be read"),
        ("resnet50", {"attention": "se:reduction=__import__('os')"}, "cannot be read"),
        ("resnet50", {"attention": "none:reduction=4"}, "no settings"),
        ("resnet50", {"stem": "cifar10"}, "Take 'imagenet' or 'stride2' or 'cifar'"),
        ("resnet50", {"attention": "eca", "attention_args": [{}, {}]}, "2 sets of attention_args for 4 stages"),
        ("resnet50", {"attention": "psa", "output_stride": 8}, "no dilated form"),
        ("resnet8", {"attention": "se:reduction=32"}, "16 channels with reduction 32"),
        ("resnet8", {"stem": "imagenet"}, "for small images"),
        ("resnet18", {"stem": "cifar", "pretrained": True}, "pretrained=True"),
        ("cbam_resnet50", {"attention": "se"}, "has its own"),
    ],
)
def test_bad_arguments_are_refused(name, kwargs, message):
    with pytest.raises(attendo.AttendoError, match=message):
        attendo.create_model(name, **kwargs)


def test_attach_leaves_the_network_alone_when_a_setting_cannot_work():
    model = timm.create_model("resnet18")
    before = list(model.state_dict())
    with pytest.raises(attendo.AttendoError, match="512 channels with reduction 600"):
        attach(model, "se", [{}, {}, {}, {"reduction": 600}])
    assert list(model.state_dict()) == before


def test_all_bases_build():
    for name in BASES:
        with torch.device("meta"):
            assert attendo.create_model(name)(torch.empty(1, 3, 64, 64)).shape == (1, 1000)


FAMILY_PARAMETERS = {
    "eca_mobilenetv2": 3_504_872 + 10 * 1 + 7 * 3,  # kernel 1 in the ten blocks below 96 channels
    "se_googlenet": 6_624_904
    + sum(2 * c * (c // 16) + c // 16 + c for c in (256, 480, 512, 512, 512, 528, 832, 832, 1024)),
    "cbam_densenet121": 7_978_856 + sum(2 * c * (c // 16) + c // 16 + c + 100 for c in (256, 512, 1024, 1024)),
    "cbam_vgg16": 138_357_544 + sum(2 * c * (c // 16) + c // 16 + c + 100 for c in (64, 128, 256, 512, 512)),
    "se_inception_v3": 23_834_568
    + sum(2 * c * (c // 16) + c // 16 + c for c in (256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, 2048)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_other_families_are_what_they_are_called(name):
    model = timm.create_model(name).eval()
    assert parameters(model) == FAMILY_PARAMETERS[name]
    assert any(isinstance(module, attendo.layers.Attention) for module in model.modules())
    model.reset_classifier(3)
    size = 96 if name == "se_inception_v3" else 64
    assert model(torch.randn(2, 3, size, size)).shape == (2, 3)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"se_googlenet", "cbam_vgg16"}))
def test_networks_of_other_families_give_features(name):
    model = timm.create_model(name, features_only=True, in_chans=1, out_indices=(1, 2)).eval()
    maps = model(torch.randn(1, 1, 96, 96))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()


def test_googlenet_says_what_it_cannot_do():
    with pytest.raises(attendo.AttendoError, match="features_only"):
        timm.create_model("se_googlenet", features_only=True)
