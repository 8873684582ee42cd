"""Rows x promises: whatever has a name keeps every promise."""

from __future__ import annotations

import copy
import json
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import attendo
from attendo._errors import InvalidArgument
from conftest import SHARED
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
    out = layer(torch.randn(2, row.channels, 1, 1, requires_grad=True))
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
def test_autocast_keeps_the_dtype_of_its_input(row):
    layer = randomise(build(row))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, row.channels, 6, 8).bfloat16()).dtype == torch.bfloat16


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


@pytest.mark.parametrize("name", ["se", "static", "cbam", "cbam_channel", "bam", "scse", "gc", "fca"])
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
        ("bam", {"variant": "Paper"}, "variant='Paper'"),
        ("bam", {"combine": "add"}, "combine='add'"),
        ("bam", {"dilation": 0}, "dilation=0"),
        ("scse", {"combine": "mean"}, "combine='mean'"),
        ("simam", {"e_lambda": 0}, "e_lambda=0"),
        ("coord", {"reduction": 0}, "reduction=0"),
        ("triplet", {"kernel_size": 4}, "kernel_size=4"),
        ("gc", {"fusion": "mul"}, "fusion='mul'"),
        ("gc", {"pool": "max"}, "pool='max'"),
        ("gc", {"reduction": 64}, "hidden width of 1, which LayerNorm turns into a constant.*reduction=16"),
        ("sk", {"kernel_sizes": (3,)}, "1 kernel_sizes"),
        ("sk", {"kernel_sizes": (3, 4)}, "kernel_sizes=4"),
        ("sk", {"kernel_sizes": (3, 5, 7), "split": True}, "64 channels and 3 kernel_sizes"),
        ("sk", {"groups": 48}, "Pass groups=32"),
        ("sk", {"reduction": 0}, "reduction=0"),
        ("fca", {"dct_size": 6}, "dct_size=6 turns every frequency into the mean.*Take 7"),
        ("fca", {"dct_size": (14, 4)}, r"dct_size=\(14, 4\)"),
        ("fca", {"frequencies": "mid16"}, "frequencies='mid16'"),
        ("ge", {"extent": 3}, "extent=3"),
        ("ge", {"gather": "max"}, "gather='max'"),
        ("ge", {"variant": "paper"}, "variant='paper'"),
        ("ge", {"mlp": True, "reduction": 128}, "64 channels with reduction 128"),
        ("ge", {"gather": "conv", "map_size": 0}, "map_size=0"),
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


@every_row
def test_nothing_runs_whose_gradient_is_not_deterministic_on_cuda(row):
    layer = build(row)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(torch.randn(2, row.channels, 5, 9, requires_grad=True)).sum().backward()
    assert not [event.key for event in profile.key_averages() if "adaptive" in event.key or "linear2d" in event.key]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("bam", {}), ("bam", {"variant": "paper"}), ("sk", {}), ("ge", {"gather": "conv"})],
    ids=str,
)
def test_a_batch_of_one_image_in_training_is_refused_where_it_would_give_a_constant(name, settings):
    layer = attendo.layer(name, 64, **settings).train()
    x = torch.randn(1, 64, 7, 7)
    with pytest.raises(ValueError, match=r"a batch of 1 image in training .*drop_last=True"):
        layer(x)
    for module in layer.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    assert layer(x).isfinite().all()


def test_bam_multiplies_its_branches_and_the_papers_form_adds_them():
    x = torch.randn(2, 64, 5, 9)
    for settings, combine in (({}, torch.mul), ({"variant": "paper"}, torch.add), ({"combine": "sum"}, torch.add)):
        layer = randomise(attendo.layer("bam", 64, **settings)).eval()
        (gate,) = layer.gates(x)
        assert gate.shape == x.shape
        torch.testing.assert_close(layer(x), x + x * gate)
        branches = layer.channel(x.mean((2, 3)))[:, :, None, None], layer.spatial(x)
        torch.testing.assert_close(gate, torch.sigmoid(combine(*branches)))


def test_bam_normalises_hidden_layers_and_the_papers_form_the_ends():
    official, paper = attendo.layer("bam", 64), attendo.layer("bam", 64, variant="paper")
    widths = [[m.num_features for m in layer.modules() if hasattr(m, "num_features")] for layer in (official, paper)]
    assert widths == [[4, 4, 4, 4], [64, 1]]


def test_bam_rectifies_every_hidden_layer_and_nothing_else():
    layer = randomise(attendo.layer("bam", 64)).eval()
    x = torch.randn(2, 64, 5, 9)
    z = layer.channel[3](F.relu(layer.channel[1](layer.channel[0](x.mean((2, 3))))))
    torch.testing.assert_close(layer.channel(x.mean((2, 3))), z)
    z = x
    for conv, norm in ((0, 1), (3, 4), (6, 7)):
        z = F.relu(layer.spatial[norm](layer.spatial[conv](z)))
    torch.testing.assert_close(layer.spatial(x), layer.spatial[9](z))


def test_bam_sees_nine_positions_four_apart_twice():
    layer = randomise(attendo.layer("bam", 64)).double().eval()
    x = torch.randn(1, 64, 25, 25, dtype=torch.float64, requires_grad=True)
    layer.spatial(x)[0, 0, 12, 12].backward()
    rows, columns = x.grad.abs().sum((0, 1)).nonzero(as_tuple=True)
    assert set(rows.tolist()) == set(columns.tolist()) == {4, 8, 12, 16, 20}


def test_scse_adds_two_recalibrated_maps_or_takes_the_larger():
    x = torch.randn(2, 64, 5, 9)
    for combine, meet in (("sum", torch.add), ("max", torch.maximum)):
        layer = randomise(attendo.layer("scse", 64, combine=combine)).eval()
        channel, spatial = layer.gates(x)
        assert (channel.shape, spatial.shape) == ((2, 64, 1, 1), (2, 1, 5, 9))
        torch.testing.assert_close(layer(x), meet(x * channel, x * spatial))


def test_simam_is_the_papers_energy():
    x = torch.randn(2, 3, 5, 9)
    variance, mean = torch.var_mean(x, (2, 3), keepdim=True)  # divided by n = H * W - 1
    want = torch.sigmoid((x - mean) ** 2 / (4 * (variance + 1e-2)) + 0.5)
    torch.testing.assert_close(attendo.layer("simam", 3, e_lambda=1e-2).gates(x)[0], want)
    assert attendo.layer("simam", 3).e_lambda == 1e-4


def test_simam_on_one_pixel_has_no_variance_and_no_nan():
    (gate,) = attendo.layer("simam", 3).gates(torch.randn(2, 3, 1, 1))
    torch.testing.assert_close(gate, torch.full((2, 3, 1, 1), 1 / (1 + math.exp(-0.5))))


def test_simam_in_half_precision_survives_a_large_map():
    x = 4 * torch.randn(1, 2, 112, 112)  # the sum of squares, 200,000, is beyond float16
    layer = attendo.layer("simam", 2)
    torch.testing.assert_close(layer.gates(x.half())[0].float(), layer.gates(x)[0], rtol=0, atol=5e-3)


def test_coordinate_attention_is_never_narrower_than_eight_channels():
    assert attendo.layer("coord", 16).conv1.out_channels == 8
    assert attendo.layer("coord", 512, reduction=16).conv1.out_channels == 32


def test_coordinate_attention_is_the_papers_formula():
    layer = randomise(attendo.layer("coord", 64)).eval()
    x = torch.randn(2, 64, 5, 9)

    def gate(means: torch.Tensor, last: torch.nn.Conv1d) -> torch.Tensor:
        y = layer.bn1(F.linear(means.mT, layer.conv1.weight[:, :, 0], layer.conv1.bias).mT)
        y = y * F.relu6(y + 3) / 6
        return torch.sigmoid(F.linear(y.mT, last.weight[:, :, 0], last.bias).mT)

    rows, columns = gate(x.mean(3), layer.conv_h), gate(x.mean(2), layer.conv_w)
    torch.testing.assert_close(layer(x), x * rows[:, :, :, None] * columns[:, :, None], rtol=1e-5, atol=1e-5)


def test_coordinate_attention_gates_rows_by_rows_and_columns_by_columns():
    layer = randomise(attendo.layer("coord", 64)).eval()
    x = torch.randn(2, 64, 5, 9)
    rows, columns = layer.gates(x)
    assert (rows.shape, columns.shape) == ((2, 64, 5, 1), (2, 64, 1, 9))
    order = torch.tensor([3, 1, 4, 0, 2])
    moved_rows, moved_columns = layer.gates(x[:, :, order])
    torch.testing.assert_close(moved_rows, rows[:, :, order])
    torch.testing.assert_close(moved_columns, columns)


def test_triplet_attention_averages_the_gates_of_three_planes():
    layer = randomise(attendo.layer("triplet", 64)).eval()
    x = torch.randn(2, 64, 5, 9)
    gates = layer.gates(x)
    assert [tuple(gate.shape) for gate in gates] == [(2, 64, 1, 9), (2, 64, 5, 1), (2, 1, 5, 9)]
    for branch, gate, axis in ((layer.cw, gates[0], 2), (layer.hc, gates[1], 3), (layer.hw, gates[2], 1)):
        turned = x.transpose(1, axis)
        pooled = torch.cat((turned.amax(1, keepdim=True), turned.mean(1, keepdim=True)), 1)
        torch.testing.assert_close(gate.transpose(1, axis), torch.sigmoid(branch.norm(branch.conv(pooled))))
    torch.testing.assert_close(layer(x), sum(x * gate for gate in gates) / 3)
    assert min(gate.min() for gate in gates) < 0.5  # no ReLU before the sigmoid


def test_triplet_attention_without_its_spatial_branch_averages_two():
    layer = randomise(attendo.layer("triplet", 64, no_spatial=True)).eval()
    x = torch.randn(2, 64, 5, 9)
    first, second = layer.gates(x)
    torch.testing.assert_close(layer(x), (x * first + x * second) / 2)


def test_triplet_attention_has_the_official_norm():
    norm = attendo.layer("triplet", 64).cw.norm
    assert (norm.eps, norm.momentum) == (1e-5, 0.01)


def test_gc_attention_over_positions_adds_to_one_and_its_context_does_not_grow_with_the_map():
    layer = randomise(attendo.layer("gc", 64)).eval()
    x = torch.randn(2, 64, 5, 9)
    (attention,) = layer.gates(x)
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 1))
    context = (x * attention).sum((2, 3))
    torch.testing.assert_close(layer(x), x + layer.add(context)[:, :, None, None])
    tiled = x.repeat(1, 1, 2, 2)
    torch.testing.assert_close(layer(tiled), layer(x).repeat(1, 1, 2, 2), rtol=1e-5, atol=1e-5)


def test_gc_normalises_its_hidden_layer_and_then_rectifies():
    layer = randomise(attendo.layer("gc", 64, fusion="scale", pool="avg", eps=0.1))
    x = torch.randn(2, 64, 5, 9)
    first, norm, _, last = layer.scale
    y = first(x.mean((2, 3)))
    centred = y - y.mean(1, keepdim=True)
    y = centred / (centred.square().mean(1, keepdim=True) + 0.1).sqrt() * norm.weight + norm.bias
    want = torch.sigmoid(last(F.relu(y)))[:, :, None, None]
    torch.testing.assert_close(layer.gates(x)[0], want)


def test_gc_that_adds_starts_as_the_identity():
    x = torch.randn(2, 64, 5, 9)
    assert torch.equal(attendo.layer("gc", 64)(x), x)


def test_gc_that_does_both_scales_first():
    layer = randomise(attendo.layer("gc", 64, fusion="both")).eval()
    x = torch.randn(2, 64, 5, 9)
    scale, attention = layer.gates(x)
    added = layer.add((x * attention).sum((2, 3)))[:, :, None, None]
    torch.testing.assert_close(layer(x), x * scale + added)


def test_sk_takes_stride_and_width():
    layer = randomise(attendo.layer("sk", 64, 128, 2)).eval()
    x = torch.randn(2, 64, 9, 14)
    assert layer(x).shape == (2, 128, 5, 7)
    (weights,) = layer.gates(x)
    assert weights.shape == (2, 2, 128, 1, 1)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 128, 1, 1))


def test_sk_adds_its_weighed_branches_and_weighs_them_by_the_mean_of_their_sum():
    layer = randomise(attendo.layer("sk", 64, kernel_sizes=(3, 5, 7))).eval()
    x = torch.randn(2, 64, 6, 9)
    maps = torch.stack([F.relu(norm(conv(x))) for conv, norm, _ in layer.branches], 1)
    down, norm, _ = layer.squeeze
    logits = layer.select(F.relu(norm(down(maps.sum(1).mean((2, 3)))))).view(2, 3, 64, 1, 1)
    torch.testing.assert_close(layer(x), (maps * logits.softmax(1)).sum(1), rtol=1e-5, atol=1e-5)


def test_sk_makes_large_kernels_of_dilated_ones():
    layer, dense = (attendo.layer("sk", 64, dilated=dilated) for dilated in (True, False))
    small, large = layer.branches[1][0], dense.branches[1][0]
    with torch.no_grad():
        large.weight.zero_()
        large.weight[:, :, ::2, ::2] = small.weight
    x = torch.randn(2, 64, 6, 9)
    torch.testing.assert_close(small(x), large(x), rtol=1e-5, atol=1e-5)


def test_sk_narrows_its_bottleneck_to_the_papers_floor():
    assert attendo.layer("sk", 64).squeeze[0].out_features == 32
    assert attendo.layer("sk", 1024).squeeze[0].out_features == 64
    assert attendo.layer("sk", 64, min_width=8).squeeze[0].out_features == 8


def dct_coefficients(x: torch.Tensor, pairs: list[tuple[int, int]]) -> torch.Tensor:
    """FcaNet's squeeze as its paper writes it, one sum over positions per channel, on a map of the DCT's size."""
    height, width = x.shape[2:]
    z = torch.zeros(x.shape[:2], dtype=x.dtype)
    for channel in range(x.shape[1]):
        u, v = pairs[channel * len(pairs) // x.shape[1]]
        for i in range(height):
            for j in range(width):
                wave = math.cos(math.pi * u * (i + 0.5) / height) * math.cos(math.pi * v * (j + 0.5) / width)
                z[:, channel] += x[:, channel, i, j] * wave
        z[:, channel] *= math.sqrt((2 if u else 1) / height) * math.sqrt((2 if v else 1) / width)
    return z


@pytest.mark.parametrize("size", [(7, 7), (14, 16), (4, 4), (1, 1), (3, 20), (23, 31)], ids=str)
@pytest.mark.parametrize(("grid", "pairs"), [((7, 7), ((0, 0), (0, 1), (6, 0), (0, 5))), ((14, 8), None)], ids=str)
def test_fcanet_averages_a_map_of_another_size_to_its_grid(size, grid, pairs):
    pairs = pairs or ((0, 0), (0, 1), (12, 0), (0, 5))  # along 14 rows the frequencies double, along 8 they do not
    layer = attendo.layer("fca", 8, reduction=2, dct_size=grid, frequencies="top4").double()
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    want = dct_coefficients(F.adaptive_avg_pool2d(x, grid), list(pairs))
    torch.testing.assert_close(layer.squeeze(x), want, rtol=1e-6, atol=1e-6)  # the filters are made in float32


@pytest.mark.parametrize("kind", ["top", "bot", "low"])
def test_fcanets_frequencies_all_differ(kind):
    dct = attendo.layer("fca", 64, frequencies=f"{kind}32").dct.flatten(1)
    torch.testing.assert_close(dct @ dct.T, torch.eye(32), rtol=0, atol=1e-6)


def test_fcanet_with_the_lowest_frequency_is_se_on_a_multiple_of_the_mean():
    layer = attendo.layer("fca", 64, frequencies="low1")
    x = torch.randn(2, 64, 5, 9)
    torch.testing.assert_close(layer.squeeze(x), 7 * F.adaptive_avg_pool2d(x, 7).mean((2, 3)))


def test_fcanet_refuses_channels_that_do_not_divide_among_its_frequencies():
    with pytest.raises(ValueError, match=r"24 channels do not divide among 16 frequencies.*frequencies='low8'"):
        attendo.layer("fca", 24, reduction=4, frequencies="low16")


def test_fcanets_filters_are_saved_and_equal_the_official_ones():
    layer = attendo.layer("fca", 64, dct_size=14)
    assert list(layer.state_dict()) == ["dct", "fc1.weight", "fc2.weight"]
    path = SHARED / "golden" / "fca_c64_14_top16.json"
    if not path.is_file():
        pytest.skip("the recorded outputs are not beside this checkout")
    kept = json.loads(path.read_text())["kept_values"]["dct_layer.weight"]
    official = layer.dct.repeat_interleave(64 // 16, 0).double()  # it stores one filter per channel
    assert list(official.shape) == kept["shape"]
    got = [*official.flatten()[:16], official.sum(), official.abs().sum(), official.square().sum()]
    want = [*kept["first16"], kept["sum"], kept["abs_sum"], kept["sq_sum"]]
    torch.testing.assert_close(torch.stack(got), torch.tensor(want, dtype=torch.float64), rtol=1e-7, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (3, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("extent", [2, 4, 8])
def test_ge_gathers_the_mean_of_each_neighbourhood(extent, size):
    x = torch.randn(2, 3, *size)
    (gate,) = attendo.layer("ge", 3, extent=extent).gates(x)
    for i in range(size[0]):
        for j in range(size[1]):
            # nearest upsampling: the cell of the coarse map that position (i, j) falls into, and its centre
            cells = [math.ceil(side / extent) for side in size]
            row, column = (extent * (at * count // side) for at, count, side in zip((i, j), cells, size, strict=True))
            around = x[:, :, max(row - extent + 1, 0) : row + extent, max(column - extent + 1, 0) : column + extent]
            want = torch.sigmoid(around.mean((2, 3)))
            torch.testing.assert_close(gate.expand_as(x)[:, :, i, j], want)


def test_ge_without_parameters_gathers_the_whole_map():
    x = torch.randn(2, 3, 5, 9)
    torch.testing.assert_close(attendo.layer("ge", 3)(x), x * torch.sigmoid(x.mean((2, 3), keepdim=True)))


def test_ge_with_an_mlp_over_the_whole_mean_is_se():
    layer, se = randomise(attendo.layer("ge", 64, mlp=True)), attendo.layer("se", 64)
    shapes = se.state_dict()
    se.load_state_dict({a: v.view_as(shapes[a]) for a, v in zip(shapes, layer.state_dict().values(), strict=True)})
    x = torch.randn(2, 64, 5, 9)
    torch.testing.assert_close(layer(x), se(x))


def test_ge_theta_convolves_the_whole_map_and_theta_plus_adds_a_relu_and_an_mlp():
    x = torch.randn(2, 64, 5, 9)
    for mlp in (False, True):
        layer = randomise(attendo.layer("ge", 64, gather="conv", map_size=(5, 9), mlp=mlp)).eval()
        conv, norm = layer.gather[0], layer.gather[1]
        z = F.conv2d(x, conv.weight, groups=64)[:, :, 0, 0]
        z = (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        if mlp:
            down, _, up = layer.mlp
            z = F.relu(F.linear(F.relu(z), down.weight[:, :, 0, 0], down.bias))
            z = F.linear(z, up.weight[:, :, 0, 0], up.bias)
        torch.testing.assert_close(layer.gates(x)[0][:, :, 0, 0], torch.sigmoid(z), rtol=1e-5, atol=1e-5)


def test_ge_theta_averages_a_map_of_another_size_to_its_kernels():
    layer = randomise(attendo.layer("ge", 64, gather="conv", map_size=(4, 6))).eval()
    x = torch.randn(2, 64, 9, 5)
    torch.testing.assert_close(layer.gates(x), layer.gates(F.adaptive_avg_pool2d(x, (4, 6))), rtol=1e-5, atol=1e-5)


def test_ge_theta_halves_the_map_once_per_doubling_of_its_extent():
    layer = randomise(attendo.layer("ge", 64, gather="conv", extent=4)).eval()
    x = torch.randn(2, 64, 5, 9)
    first, norm, _, second, last = layer.gather
    z = F.relu(norm(F.conv2d(x, first.weight, stride=2, padding=1, groups=64)))
    z = last(F.conv2d(z, second.weight, stride=2, padding=1, groups=64))
    assert z.shape == (2, 64, 2, 3)
    rows, columns = [0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 2, 2, 2]  # floor(i * 2 / 5), floor(j * 3 / 9)
    torch.testing.assert_close(layer.gates(x)[0], torch.sigmoid(z)[:, :, rows][:, :, :, columns])


def test_ge_in_timms_reading_slides_its_kernel_and_has_no_relu_before_the_mlp():
    layer = randomise(attendo.layer("ge", 64, gather="conv", map_size=(5, 9), mlp=True, variant="timm")).eval()
    x = torch.randn(2, 64, 5, 9)
    conv, norm = layer.gather
    z = layer.mlp(norm(F.conv2d(x, conv.weight, padding=(2, 4), groups=64)))
    torch.testing.assert_close(layer.gates(x)[0], torch.sigmoid(z))


@pytest.mark.parametrize("name", ["se", "cbam", "cbam_channel"])
@pytest.mark.parametrize("shape", [(2, 32, 5, 5), (64, 5, 5)], ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_a_map_of_another_shape_is_refused_by_its_shape(name, shape, grad):
    with torch.set_grad_enabled(grad), pytest.raises(InvalidArgument, match=r"\(N, 64, H, W\)"):
        attendo.layer(name, 64)(torch.randn(shape))


def test_a_misspelt_setting_is_answered_with_the_one_meant():
    with pytest.raises(TypeError, match=r"layer 'cbam': reducton=8 was given.*; a mech.*Did you mean 'reduction'\?"):
        attendo.layer("cbam", 64, reducton=8)
    with pytest.raises(attendo.AttendoError, match="Known: groups, kernel_sizes, reduction, stride"):
        attendo.layer("psa", 64, 64, out_channels=8)  # given by its place already
    assert attendo.layer("psa", 64, out_channels=128)(torch.randn(1, 64, 4, 4)).shape[1] == 128


def test_the_name_and_the_channels_in_the_wrong_order_are_put_right():
    with pytest.raises(InvalidArgument, match=r"the name of the mechanism comes first.* Write layer\('se', 64\)\.$"):
        attendo.layer(64, "se")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *[("cmab", "cbam"), ("cbma", "cbam"), ("CBAM", "cbam"), ("eac", "eca"), ("es", "se"), ("sse", "se")],
        *[("epsa", "psa"), ("simm", "simam"), ("fcanet", "fca"), ("coordnate", "coord")],
    ],
)
def test_a_misspelt_name_is_answered_first_with_the_nearest(written, meant):
    with pytest.raises(attendo.AttendoError, match=f"Did you mean '{meant}'"):
        attendo.layer(written, 64)


def test_a_name_is_answered_with_those_it_is_near_to_and_with_all_if_it_is_near_to_none():
    with pytest.raises(attendo.AttendoError, match=r"Did you mean 'ge' or 'se'"):
        attendo.layer("ce", 64)
    with pytest.raises(attendo.AttendoError, match=r"Did you mean 'psa'\?$"):
        attendo.layer("epsa", 64)
    with pytest.raises(attendo.AttendoError, match=r"Known: bam, .*, triplet\.$"):
        attendo.layer("xyz", 64)
