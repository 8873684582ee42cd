"""Rows x promises: whatever has a name keeps every promise."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import attendo
from rows import ROWS, Row

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)


def build(row: Row) -> attendo.layers.Attention:
    return attendo.layer(row.name, row.channels, **row.settings).eval()


def randomise(layer: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter and statistic a random value: fresh norms and zero starts would hide mistakes."""
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(0, 0.3)
    return layer


def test_every_registered_name_has_a_row_and_every_row_a_name():
    assert {row.name for row in ROWS} == set(attendo.list_layers())


@every_row
def test_parameters_are_the_papers(row):
    assert sum(p.numel() for p in build(row).parameters()) == row.parameters


@every_row
@pytest.mark.parametrize("size", [(2, 7, 7), (1, 1, 1), (3, 5, 8), (1, 1, 6), (1, 13, 2)], ids=str)
def test_shape_and_finiteness_are_kept_at_any_size(row, size):
    samples, height, width = size
    x = torch.randn(samples, row.channels, height, width)
    out = randomise(build(row))(x)
    assert out.shape == x.shape
    assert out.isfinite().all()


@every_row
def test_a_batch_of_one_pixel_maps_trains(row):
    layer = build(row).train()
    out = layer(torch.randn(2, row.channels, 1, 1))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@every_row
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_follow_float32(row, dtype):
    layer = randomise(build(row))
    x = torch.randn(2, row.channels, 6, 7)
    want = layer(x)
    got = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    limit = 40 * TOLERANCE[torch.float32 if dtype == torch.float64 else dtype] * want.abs().max()
    assert (got.float() - want).abs().max() <= limit


@every_row
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_format_is_kept(row, memory_format):
    layer = randomise(build(row)).to(memory_format=memory_format)
    x = torch.randn(2, row.channels, 6, 8)
    out = layer(x.to(memory_format=memory_format))
    assert out.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-5)


@every_row
def test_gates_are_in_range_and_broadcast(row):
    layer = randomise(build(row))
    x = torch.randn(2, row.channels, 6, 8)
    low, high = row.gate_range
    product = x
    for gate in layer.gates(x):
        assert gate.min() > low
        assert gate.max() < high
        if row.product:
            product = product * gate
    assert product.shape == x.shape
    if row.product:
        torch.testing.assert_close(layer(x), product, rtol=1e-6, atol=1e-6)


@every_row
def test_gates_answer_to_the_input(row):
    layer = randomise(build(row))
    first, second = (layer.gates(torch.randn(1, row.channels, 6, 8) * scale) for scale in (1, 3))
    differs = any((a - b).abs().max() > 1e-6 for a, b in zip(first, second, strict=True))
    assert differs is not row.constant


@every_row
def test_images_do_not_see_each_other(row):
    layer = randomise(build(row))
    x = torch.randn(3, row.channels, 5, 6)
    alone = torch.cat([layer(image[None]) for image in x])
    torch.testing.assert_close(layer(x), alone, rtol=1e-5, atol=1e-5)


@every_row
def test_gradients_match_finite_differences(row):
    layer = randomise(build(row)).double()
    x = torch.randn(2, row.channels, 3, 4, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    weights = torch.randn(2, row.channels, 3, 4, dtype=torch.float64)
    tensors = [x, *layer.parameters()]
    directions = [direction, *(torch.randn_like(p) for p in layer.parameters())]
    grads = torch.autograd.grad((layer(x) * weights).sum(), tensors)
    analytic = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))

    def value(step: float) -> torch.Tensor:
        with torch.no_grad():
            for tensor, d in zip(tensors, directions, strict=True):
                tensor += step * d
            out = (layer(x) * weights).sum()
            for tensor, d in zip(tensors, directions, strict=True):
                tensor -= step * d
        return out

    # the error of a central difference falls with the square of the step unless a kink (ReLU, max) lies in between
    errors = [abs((value(h) - value(-h)) / (2 * h) - analytic) for h in (1e-5, 1e-6, 1e-7)]
    assert min(errors) <= 1e-5 * max(1.0, abs(analytic))


@every_row
def test_deepcopy_and_pickle_give_the_same_layer(row):
    layer = randomise(build(row))
    x = torch.randn(1, row.channels, 4, 4)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


@every_row
def test_export_gives_the_same_numbers(row):
    layer = randomise(build(row))
    x = torch.randn(2, row.channels, 6, 8)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x), rtol=1e-5, atol=1e-5)


@every_row
def test_dynamo_traces_without_a_graph_break(row):
    layer = randomise(build(row))
    x = torch.randn(2, row.channels, 6, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


@every_row
def test_a_mistyped_setting_is_refused(row):
    with pytest.raises(TypeError, match="redcution"):
        attendo.layer(row.name, row.channels, redcution=16)


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(KeyError, match="Did you mean 'cbam'"):
        attendo.layer("cbma", 64)


@pytest.mark.parametrize("name", ["se", "static", "cbam", "cbam_channel"])
def test_a_hidden_width_of_zero_is_refused(name):
    with pytest.raises(ValueError, match=r"8 channels with reduction 16 .* Pass reduction=2"):
        attendo.layer(name, 8)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("se", {"pool": "mean"}, "pool='mean'"),
        ("se", {"reduction": 0}, "reduction=0"),
        ("eca", {"kernel_size": 4}, "kernel_size=4"),
        ("eca", {"gamma": 0}, "gamma=0"),
        ("cbam", {"spatial_kernel": 6}, "spatial_kernel=6"),
        ("cbam", {"order": "both"}, "order='both'"),
        ("cbam", {"variant": "offical"}, "variant='offical'"),
        ("cbam", {"channel": "fc"}, "channel='fc'"),
        ("cbam", {"gate": "relu"}, "gate='relu'"),
        ("psa", {"groups": (1, 4, 8, 32)}, "32 groups"),
        ("psa", {"groups": (1, 4)}, "2 groups"),
        ("psa", {"kernel_sizes": (3, 5, 7, 8)}, "kernel_sizes=8"),
        ("psa", {"reduction": 32}, "16 channels with reduction 32"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(name, settings, message):
    with pytest.raises(attendo.AttendoError, match=message):
        attendo.layer(name, 64, **settings)


def test_psa_takes_stride_and_width():
    out = attendo.layer("psa", 64, 128, 2)(torch.randn(1, 64, 9, 14))
    assert out.shape == (1, 128, 5, 7)


def test_psa_weights_add_to_one_over_branches():
    (weights,) = randomise(attendo.layer("psa", 64)).gates(torch.randn(2, 64, 6, 6))
    assert weights.shape == (2, 4, 16, 1, 1)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 16, 1, 1))


def test_cbam_first_sees_the_map_that_its_first_gate_made():
    layer = randomise(attendo.layer("cbam", 64)).eval()
    x = torch.randn(2, 64, 6, 6)
    channel, spatial = layer.gates(x)
    torch.testing.assert_close(spatial, layer.spatial.gates(x * channel)[0])
    assert not torch.allclose(spatial, layer.spatial.gates(x)[0], atol=1e-3)
