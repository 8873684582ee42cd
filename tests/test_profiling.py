"""What a network costs: known values, cases counted by hand, and measuring without a trace. No test asserts a time."""

from __future__ import annotations

import copy
import csv
import gc
import io
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchinfo
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import attendo
from attendo import profiling
from attendo.profiling import _run, _turns
from attendo.profiling.latencies import _ratio
from attendo.profiling.memory import _followed
from conftest import SHARED
from parity import MODULES

QUICK = {"repeats": 2, "min_seconds": 0.0, "warm_up": 1}


def small() -> nn.Sequential:
    """A little of everything that a measurement could disturb."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 36, 4)
    )


SIZE = (3, 8, 8)
SMALL_MACS = 8 * 3 * 9 * 36 + 8 * 36 * 4


class Choosy(nn.Module):
    """Decides by a value, which a dry run does not have."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.sum().item() < 1e9 else x


class Attends(nn.Module):
    """Scaled dot-product attention and a matrix product, called as functions."""

    def forward(self, x):
        tokens = x.flatten(2).mT.contiguous()
        return F.scaled_dot_product_attention(tokens, tokens, tokens) @ torch.ones(x.shape[1], 5)


MEASUREMENTS = {
    "count": lambda model: profiling.count(model, SIZE),
    "summary": lambda model: profiling.summary(model, SIZE),
    "latency": lambda model: profiling.latency(model, SIZE, threads=2, **QUICK),
    "training latency": lambda model: profiling.latency(model, SIZE, 2, training=True, **QUICK),
    "memory": lambda model: profiling.peak_memory(model, SIZE),
    "training memory": lambda model: profiling.peak_memory(model, SIZE, 2, training=True),
    "profile": lambda model: profiling.profile({"a": model}, SIZE, repeats=2, min_seconds=0.0),
}
every_measurement = pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)


# ---- counts


def test_resnet50_has_the_known_parameters_and_macs():
    counts = profiling.count(timm.create_model("resnet50"))
    assert (counts.parameters, counts.trainable, counts.macs) == (25_557_032, 25_557_032, 4_089_184_256)
    assert counts.parameter_bytes == 4 * 25_557_032
    assert counts.real_run == ""
    assert "25,557,032 (25.56 M" in str(counts)
    assert "(4.089 G) for one image of 3 x 224 x 224" in str(counts)


@pytest.mark.parametrize(
    ("name", "macs"),
    [("se", 64 * 4 + 4 * 64), ("eca", 64 * 3), ("cbam", 2 * (64 * 4 + 4 * 64) + 2 * 49 * 14 * 14)],
)
def test_macs_of_a_mechanism_are_those_counted_by_hand(name, macs):
    assert profiling.count(attendo.layer(name, 64), (64, 14, 14)).macs == macs


@pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="the recorded outputs are not beside this checkout")
@pytest.mark.parametrize("parity", MODULES, ids=lambda parity: parity.fixture)
def test_macs_of_a_mechanism_are_those_recorded_from_official_code(parity):
    recorded = json.loads((SHARED / "golden" / f"{parity.fixture}.json").read_text()).get("macs")
    if recorded is None:
        pytest.skip("no MACs were recorded for this source")
    assert profiling.count(parity.build(), recorded["input_shape"][1:]).macs == recorded["value"]


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (small, SIZE),
        (Attends, (16, 4, 4)),
        (lambda: nn.MultiheadAttention(16, 4, batch_first=True), None),
        (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (5, 16)),
        (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), SIZE),
    ],
    ids=["small", "attends", "multi-head", "transformer", "transposed"],
)
def test_macs_are_half_the_operations_that_torch_counts(build, size):
    if size is None:

        class Self(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = build()

            def forward(self, x):
                return self.attention(x, x, x)

        model, size = Self().eval(), (5, 16)
    else:
        model = build().eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, *size).requires_grad_())  # gradients on: torch's fused transformer hides its products
    assert profiling.count(model, size).macs == counter.get_total_flops() // 2 > 0


def test_what_has_no_formula_is_named_with_the_elements_it_wrote():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten(), nn.Sigmoid()
    )
    counts = profiling.count(model, (3, 10, 10))
    assert counts.uncounted == {"batch_norm": 512, "relu": 512, "avg_pool2d": 128, "sigmoid": 128}
    assert "not counted   batch_norm 512, relu 512, avg_pool2d 128, sigmoid 128 (elements written)" in str(counts)


def test_an_operator_of_ones_own_is_named_until_it_has_a_formula():
    @torch.library.custom_op("attendo_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Twice(nn.Module):
        def forward(self, x):
            return torch.ops.attendo_test.twice(x)

    assert profiling.count(Twice(), SIZE).uncounted == {"attendo_test.twice": 3 * 8 * 8}


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    assert profiling.count(model, (8,)).parameters == 64 + 8 + 8
    rows = profiling.summary(model, (8,)).rows
    assert [row.parameters for row in rows] == [80, 72, 72]


def test_frozen_parameters_are_not_trainable():
    model = small()
    model[0].requires_grad_(False)
    counts = profiling.count(model, SIZE)
    assert counts.parameters - counts.trainable == 8 * 27 + 8
    assert f"{counts.trainable:,} trainable" in str(counts)


def test_a_large_image_costs_nothing():
    counts = profiling.count(nn.Conv2d(3, 8, 3, padding=1), (3, 10**6, 10**6))  # a feature map of 32 TB
    assert counts.macs == 8 * 27 * 10**12
    memory = profiling.peak_memory(nn.Conv2d(3, 8, 3, padding=1), (3, 10**6, 10**6))
    assert memory.peak_bytes == 4 * (3 + 8) * 10**12


def test_a_model_without_values_can_be_counted():
    assert profiling.count(small().to("meta"), SIZE).macs == SMALL_MACS


def test_a_model_that_needs_values_runs_in_earnest_and_says_so():
    dry, real = profiling.count(small(), SIZE), profiling.count(Choosy(small()), SIZE)
    assert real.macs == dry.macs == SMALL_MACS
    assert real.uncounted == {**dry.uncounted, "sum": 1}
    assert real.real_run.startswith("DataDependentOutputException")
    assert "real run      DataDependentOutputException" in str(real)


def test_a_compiled_model_counts_like_the_plain_one():
    model = small()
    plain = profiling.count(model, SIZE)
    assert profiling.count(torch.compile(model, backend="eager"), SIZE) == plain
    model[0].compile(backend="eager")
    assert profiling.count(model, SIZE) == plain


def test_what_runs_in_inference_mode_is_counted():
    class Infers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small()

        @torch.inference_mode()  # operators arrive whole there, not taken apart by autograd
        def forward(self, x):
            return self.inner(x)

    assert profiling.count(Infers(), SIZE).macs == SMALL_MACS


def test_layers_that_rewrite_their_weights_are_counted_dry():
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1, bias=False)),
    )
    counts = profiling.count(model, SIZE)
    assert counts.real_run == ""
    assert counts.macs == 36 * 8 * (27 + 8)


# ---- the layer table


def test_totals_are_torchinfos_but_for_biases_and_norms():
    model = torchvision.models.resnet18()
    theirs = torchinfo.summary(model, (1, 3, 224, 224), verbose=0)
    counts = profiling.summary(model).counts
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    assert counts.parameters == theirs.total_params
    assert counts.parameter_bytes == theirs.total_param_bytes
    assert counts.macs == theirs.total_mult_adds - vectors


def test_activations_are_half_of_torchinfos_where_every_layer_has_parameters():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    theirs = torchinfo.summary(model, (1, *SIZE), verbose=0)
    ours = profiling.summary(model, SIZE)
    assert ours.activation_bytes == theirs.total_output_bytes / 2 == 4 * (2 * 8 * 36 + 4 * 16)
    assert ours.input_bytes == 4 * 3 * 64


def test_what_is_written_in_place_occupies_no_second_activation():
    outputs = {
        flag: profiling.summary(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=flag)), SIZE).activation_bytes
        for flag in (False, True)
    }
    assert outputs == {False: 4 * 2 * 8 * 36, True: 4 * 8 * 36}


def test_rows_have_shapes_parameters_and_macs_of_each_layer():
    table = profiling.summary(nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Conv2d(8, 2, 1)), SIZE)
    assert [(row.path, row.class_name, row.depth) for row in table.rows] == [
        ("", "Sequential", 0),
        ("0", "Sequential", 1),
        ("0.0", "Conv2d", 2),
        ("0.1", "ReLU", 2),
        ("1", "Conv2d", 1),
    ]
    assert [row.outputs for row in table.rows] == [
        ((1, 2, 6, 6),),
        ((1, 8, 6, 6),),
        ((1, 8, 6, 6),),
        ((1, 8, 6, 6),),
        ((1, 2, 6, 6),),
    ]
    assert [row.parameters for row in table.rows] == [242, 224, 224, 0, 18]
    assert [row.own_parameters for row in table.rows] == [0, 0, 224, 0, 18]
    assert [row.macs for row in table.rows] == [7776 + 576, 7776, 7776, 0, 576]
    assert str(table).splitlines()[4].split() == ["0", "(Conv2d)", "1", "x", "8", "x", "6", "x", "6", "224", "7,776"]


def test_depth_cuts_rows_and_no_totals():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3)), nn.ReLU())
    whole, cut = profiling.summary(model, SIZE, depth=None), profiling.summary(model, SIZE, depth=1)
    assert [row.path for row in cut.rows] == ["", "0", "1"]
    assert [row for row in whole.rows if row.depth < 2] == list(cut.rows)
    assert cut.counts == whole.counts
    assert [row.path for row in profiling.summary(model, SIZE, depth=0).rows] == [""]


class Tangled(nn.Module):
    """Calls one layer twice, later ones first, a list one by one, and one never; uses a weight past its module."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.weights = nn.Linear(8, 8, bias=False)
        self.last = nn.Conv2d(8, 8, 1, bias=False)
        self.several = nn.ModuleList([nn.Conv2d(3, 8, 1, bias=False), nn.ReLU()])
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x):
        for layer in self.several:
            x = layer(x)
        x = self.twice(self.twice(x)[:, :, ::2])
        return self.last(x), {"pooled": F.linear(x.mean((2, 3)), self.weights.weight)}


def test_rows_tell_what_was_called_how_often_and_in_which_order():
    table = profiling.summary(Tangled(), SIZE)
    rows = {row.path: row for row in table.rows}
    assert list(rows) == [
        "",
        "several",
        "several.0",
        "several.1",
        "twice",
        "last",
        "unused",
        "unused.0",
        "unused.1",
        "weights",
    ]
    assert table.never_called == ("unused", "weights")
    assert rows["unused"].note == rows["weights"].note == "never called"
    assert (rows["several"].calls, rows["several"].reached, rows["several"].macs) == (0, True, 64 * 3 * 8)
    assert (rows["twice"].calls, rows["twice"].note) == (2, "called 2 times")
    assert rows["twice"].macs == (64 + 32) * 8 * 8 * 9
    assert rows["twice"].outputs == ((1, 8, 8, 8), (1, 8, 4, 8))
    assert "1 x 8 x 8 x 8 (+1)" in str(table)
    assert rows[""].outputs == ((1, 8, 4, 8), (1, 8))
    assert rows[""].macs - sum(rows[path].macs for path in ("several", "twice", "last")) == 8 * 8
    assert "never called  unused, weights" in str(table)


def test_a_module_inside_itself_is_not_counted_twice():
    class Twofold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x, again=True):
            return self(self.conv(x), again=False) if again else self.conv(x)

    root = profiling.summary(Twofold(), SIZE).rows[0]
    assert (root.calls, root.macs) == (2, 2 * 9 * 64)


def test_a_module_used_under_two_names_has_one_row():
    shared = nn.Conv2d(3, 3, 1)
    table = profiling.summary(nn.Sequential(shared, nn.ModuleDict({"same": shared})["same"]), SIZE)
    assert [(row.path, row.calls) for row in table.rows] == [("", 1), ("0", 2)]


def test_a_layer_that_fails_and_is_replaced_by_its_caller_does_not_confuse_the_table():
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong, self.right = nn.Conv2d(5, 3, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            try:
                return self.wrong(x)
            except RuntimeError:
                return self.right(x)

    rows = {row.path: row for row in profiling.summary(Tries(), SIZE).rows}
    assert rows[""].macs == rows["right"].macs == 12 * 64
    assert rows["wrong"].outputs == ()


# ---- nothing is left behind


def state(model: nn.Module) -> dict:
    return {
        "values": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "tensors": {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())},
        "grads": {name: (id(p.grad), p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None},
        "modes": [module.training for module in model.modules()],
        "hooks": [
            [id(hook) for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())]
            for module in model.modules()
        ],
        "random": torch.get_rng_state(),
        "torch": (
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            gc.isenabled(),
            torch.backends.mha.get_fastpath_enabled(),
        ),
    }


@every_measurement
@pytest.mark.parametrize("wrap", [nn.Sequential, Choosy], ids=["dry", "real"])
def test_the_model_and_torch_are_left_as_they_were(measure, wrap):
    inner = small().train()
    inner[1].eval()  # a frozen norm in a model in train mode
    inner[0].register_forward_hook(lambda module, args, output: output * 1)
    model = wrap(inner)
    model(torch.randn(2, *SIZE)).sum().backward()
    assert torch.backends.mha.get_fastpath_enabled()
    before = state(model)
    measure(model)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0, equal_nan=True)


@every_measurement
def test_the_model_is_left_as_it_was_when_it_fails(measure):
    model = nn.Sequential(small().train(), nn.Linear(7, 7))
    model[0][1].eval()
    before = state(model)
    with pytest.raises(attendo.AttendoError, match=r"in layer '1' \(Linear\)"):
        measure(model)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)


def test_buffers_that_a_forward_pass_replaces_come_back():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen = self.seen + 1
            return x

    model = Choosy(Counts())
    buffer = model.inner.seen
    profiling.count(model, SIZE)
    profiling.latency(model, SIZE, **QUICK)
    assert model.inner.seen is buffer
    assert buffer == 0


def test_the_batch_is_the_same_in_every_call():
    where = _run.place(small())
    assert torch.equal(where.batch(SIZE, 2), where.batch(SIZE, 2))


# ---- memory


@pytest.mark.parametrize("wrap", [nn.Sequential, Choosy], ids=["dry", "real"])
def test_peak_of_a_chain_is_its_input_and_two_maps(wrap):
    one = 2 * 3 * 8 * 8 * 4
    chain = [nn.ReLU() for _ in range(4)]
    memory = profiling.peak_memory(wrap(nn.Sequential(*chain)), SIZE, batch_size=2)
    # the first map goes while the third is made, but the input is the caller's and stays
    assert memory.peak_bytes == 3 * one
    assert memory.how.startswith("live tensors, dry run" if wrap is nn.Sequential else "live tensors, real run: Data")


def test_peak_in_place_is_the_input():
    assert profiling.peak_memory(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()), SIZE).peak_bytes == 3 * 8 * 8 * 4


def test_a_tensor_that_grows_in_place_counts_as_it_is():
    class Grows(nn.Module):
        def forward(self, x):
            return torch.empty(1, device=x.device).resize_(1000)

    assert profiling.peak_memory(Grows(), (2,)).peak_bytes == 4 * (2 + 1000)


def test_peak_of_training_holds_what_backward_needs_and_the_gradients():
    model = nn.Sequential(nn.Linear(64, 128, bias=False), nn.Sigmoid(), nn.Linear(128, 256, bias=False))
    floats = 4 * 64 + 4 * 128 + 4 * 128 + 4 * 256  # batch, hidden, its sigmoid (kept for backward), output
    # backward: the last weight's gradient and the sigmoid's, then the first weight's; the loss is a few scalars
    at_the_end = 4 * 64 + 128 * 256 + 64 * 128
    peak = profiling.peak_memory(model, (64,), 4, training=True).peak_bytes
    assert 4 * max(floats, at_the_end) <= peak <= 4 * (floats + 128 * 256 + 64 * 128 + 4 * 128 + 8)
    assert peak > 4 * profiling.peak_memory(model, (64,), 4).peak_bytes


def test_peak_of_one_linear_layer_in_training_is_exact():
    model = nn.Linear(16, 4, bias=False)
    batch, output, gradient = 2 * 16 * 4, 2 * 4 * 4, 16 * 4 * 4
    scalars = profiling.peak_memory(model, (16,), 2, training=True).peak_bytes - (batch + output + gradient)
    assert 0 < scalars <= 4 * 4  # the sum, its copy in the stack, the loss, and the loss's gradient


def test_dry_and_real_runs_of_a_network_have_the_same_peak():
    model = timm.create_model("seresnet18", num_classes=10)
    for training in (False, True):
        dry = profiling.peak_memory(model, (3, 32, 32), 2, training).peak_bytes
        with _run.borrowed(model, training), torch.set_grad_enabled(training):
            assert _followed(model, torch.randn(2, 3, 32, 32), training) == dry


def test_memory_grows_with_the_batch_in_proportion():
    model = small()
    first, second = (profiling.peak_memory(model, SIZE, batch).peak_bytes for batch in (1, 10))
    assert second == 10 * first


@pytest.mark.gpu
def test_on_cuda_the_allocator_tells():
    model = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.Conv2d(4, 4, 1)).cuda()[:3]
    model.register_buffer("on", torch.zeros(1, device="cuda"))
    memory = profiling.peak_memory(model, (4, 256, 256))
    assert memory.how == "CUDA allocator"
    assert memory.peak_bytes == 3 * 4 * 256 * 256 * 4


# ---- latency


def test_a_latency_says_how_it_was_measured():
    latency = profiling.latency(small().double(), SIZE, 3, threads=1, repeats=4, min_seconds=0.0)
    low, high = latency.quartiles_ms
    assert 0 < low <= latency.median_ms <= high
    assert latency.iqr_ms == high - low
    assert len(latency.samples_ms) == 4
    assert (latency.batch_size, latency.input_size, latency.training) == (3, SIZE, False)
    assert (latency.device, latency.dtype, latency.memory_format) == ("cpu", "float64", "contiguous")
    assert (latency.threads, latency.torch_version) == (1, torch.__version__)
    assert latency.warm_up >= 3
    assert "forward of 3 x (3 x 8 x 8), float64, contiguous, on cpu, threads 1, torch" in str(latency)


def test_seconds_of_samples_are_a_minimum():
    latency = profiling.latency(nn.Identity(), (1,), repeats=1, min_seconds=0.02)
    assert sum(latency.samples_ms) * latency.calls_per_sample >= 20


def test_short_steps_are_sampled_together():
    assert profiling.latency(nn.Identity(), (1,), **QUICK).calls_per_sample > 1


class Diary(nn.Module):
    def __init__(self, name: str, diary: list) -> None:
        super().__init__()
        self.name, self.diary, self.weight = name, diary, nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x):
        self.diary.append((self.name, self.training, torch.is_grad_enabled(), torch.get_num_threads(), tuple(x.shape)))
        return x * self.weight


def test_models_are_measured_in_turns_and_another_goes_first_each_round(monkeypatch):
    monkeypatch.setattr(_turns, "SAMPLE_SECONDS", 0.0)
    diary: list = []
    models = {name: Diary(name, diary) for name in "abc"}
    compared = profiling.compare_latency(models, SIZE, repeats=4, min_seconds=0.0, warm_up=2)
    warm_up, samples = diary[:-12], diary[-12:]
    assert [entry[0] for entry in warm_up] == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert "".join(entry[0] for entry in samples) == "abc" + "bca" + "cab" + "abc"
    assert [latency.warm_up for latency in compared.latencies.values()] == [3, 3, 3]
    assert list(compared.latencies) == list(compared.ratios) == ["a", "b", "c"]


@pytest.mark.parametrize("training", [False, True])
def test_a_step_runs_in_the_mode_and_with_the_threads_asked_for(training):
    diary: list = []
    profiling.latency(Diary("a", diary).train(not training), SIZE, 5, training, threads=2, **QUICK)
    assert set(diary) == {("a", training, training, 2, (5, *SIZE))}


def test_a_model_in_channels_last_gets_its_batch_in_channels_last():
    seen = []
    model = small().to(memory_format=torch.channels_last)
    model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    assert profiling.latency(model, SIZE, **QUICK).memory_format == "channels_last"
    assert set(seen) == {True}


def test_the_ratio_to_itself_is_one_and_to_the_half_is_two():
    base = torch.rand(30, dtype=torch.float64) + 1
    same, double = _ratio(base, base), _ratio(2 * base, base)
    assert (same.value, same.low, same.high) == (1, 1, 1)
    assert (double.value, double.low, double.high) == (2, 2, 2)


def test_the_interval_of_a_ratio_grows_with_the_noise():
    noise = torch.rand(30, dtype=torch.float64)
    widths = []
    for size in (0.01, 0.3):
        ratio = _ratio(1 + size * noise, 1 + size * noise.flip(0))
        assert ratio.low <= ratio.value <= ratio.high
        widths.append(ratio.high - ratio.low)
    assert widths[1] > 5 * widths[0] > 0


# ---- side by side


@pytest.fixture(scope="module")
def profiled() -> profiling.Profile:
    torch.manual_seed(0)
    model = small()
    models = {"plain": model, "needs, values": Choosy(copy.deepcopy(model))}
    return profiling.profile(models, SIZE, 2, threads=1, repeats=3, min_seconds=0.0)


def test_a_profile_has_a_row_per_model_with_everything(profiled):
    plain, choosy = profiled.rows
    assert (plain.name, choosy.name) == ("plain", "needs, values")
    assert plain.counts.macs == choosy.counts.macs == SMALL_MACS
    assert plain.ratio == profiling.Ratio(1, 1, 1)
    assert choosy.latency.batch_size == choosy.memory.batch_size == profiled.batch_size == 2
    assert (plain.counts.real_run, choosy.counts.real_run[:4]) == ("", "Data")


def test_a_profile_says_where_and_when(profiled):
    here = profiled.environment
    assert (here.device, here.threads, here.versions["torch"]) == ("cpu", 1, torch.__version__)
    assert here.cpu
    assert here.date.endswith("+00:00")
    assert set(here.versions) >= {"python", "torch"}


def test_a_profile_survives_json_and_csv(profiled):
    assert json.loads(json.dumps(profiled.as_dict(), allow_nan=False)) == profiled.as_dict()
    assert profiled.as_dict()["rows"][1]["counts"]["macs"] == SMALL_MACS
    lines = list(csv.DictReader(io.StringIO(profiled.to_csv())))
    assert [line["model"] for line in lines] == ["plain", "needs, values"]
    for line, row in zip(lines, profiled.rows, strict=True):
        assert int(line["macs"]) == row.counts.macs
        assert float(line["latency_median_ms"]) == row.latency.median_ms
        assert int(line["peak_memory_bytes"]) == row.memory.peak_bytes
        assert (
            dict(pair.split("=") for pair in line["not_counted_elements"].split(";")).keys()
            == row.counts.uncounted.keys()
        )


def test_a_profile_prints_what_was_not_counted(profiled):
    text = str(profiled)
    assert "ratio to plain [95 %]" in text
    assert "  plain: batch_norm, relu" in text
    assert "MACs of a real run with noise as image, because a dry one failed:\n  needs, values: Data" in text


@every_measurement
def test_every_result_prints_and_is_json(measure):
    result = measure(small())
    assert json.dumps(result.as_dict(), allow_nan=False)
    assert str(result).strip() == str(result)
    assert all(line == line.rstrip() for line in str(result).splitlines())


def test_a_comparison_prints_and_is_json():
    result = profiling.compare_latency({"a": small(), "b": small()}, SIZE, **QUICK)
    assert set(json.loads(json.dumps(result.as_dict(), allow_nan=False))["ratios"]["b"]) == {"value", "low", "high"}
    assert "ratio to a [95 %]" in str(result)


@pytest.mark.parametrize(("quartiles", "said"), [((1.9, 2.4), False), ((1.9, 2.41), True)])
def test_a_median_whose_quartiles_lie_far_apart_is_said_to_be_of_a_busy_machine(quartiles, said):
    result = profiling.compare_latency({"a": small(), "b": small()}, SIZE, **QUICK)
    latencies = {name: replace(one, median_ms=2.0, quartiles_ms=(2.0, 2.0)) for name, one in result.latencies.items()}
    latencies["b"] = replace(latencies["b"], quartiles_ms=quartiles)
    assert ("The machine was busy when the latency of b was" in str(replace(result, latencies=latencies))) is said


# ---- refusals


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (small(), (1, 8, 8), r"input_size=\(1, 8, 8\).* in layer '0' \(Conv2d\).* pass input_size=\(3, 8, 8\)"),
        (small(), (1, 3, 8, 8), r"Leave out the batch: pass input_size=\(3, 8, 8\)"),
        (small(), (3, 9, 9), r"in layer '5' \(Linear\).*instead of 3 x 9 x 9"),
        (small(), (3, 2, 2), r"in layer '0' \(Conv2d\)"),
        (nn.Bilinear(2, 2, 2), (2,), r"one batch of images and nothing else"),
        ("resnet50", SIZE, r"the model is str"),
        (nn.Conv2d, SIZE, r"must be an nn.Module"),
        (nn.Sequential(nn.LazyConv2d(3, 3)), SIZE, r"'0.weight' of Sequential has no shape"),
        (small(), (3, 0, 8), r"input_size=\(3, 0, 8\); it must be the positive integers"),
        (small(), (3, -8, 8), r"positive integers"),
        (small(), (3.0, 8, 8), r"positive integers"),
        (small(), (), r"positive integers"),
        (small(), 224, r"positive integers"),
        (small(), "224", r"positive integers"),
    ],
)
@every_measurement
def test_what_cannot_be_measured_is_refused(measure, model, size, message, monkeypatch):
    monkeypatch.setitem(globals(), "SIZE", size)
    with pytest.raises(ValueError, match=message) as caught:
        measure(model)
    assert isinstance(caught.value, attendo.AttendoError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: profiling.latency(m, SIZE, batch_size=0), "latency: batch_size=0"),
        (lambda m: profiling.latency(m, SIZE, repeats=0), "repeats=0"),
        (lambda m: profiling.latency(m, SIZE, warm_up=0), "warm_up=0"),
        (lambda m: profiling.latency(m, SIZE, threads=0), "threads=0"),
        (lambda m: profiling.latency(m, SIZE, threads=1.5), r"threads=1\.5"),
        (lambda m: profiling.latency(m, SIZE, min_seconds=-1), "min_seconds=-1"),
        (lambda m: profiling.latency(m, SIZE, min_seconds=float("inf")), "min_seconds=inf"),
        (lambda m: profiling.latency(m.to("meta"), SIZE), "on device 'meta'"),
        (lambda m: profiling.peak_memory(m, SIZE, batch_size=True), "peak_memory: batch_size=True"),
        (lambda m: profiling.summary(m, SIZE, depth=-1), "depth=-1"),
        (lambda m: profiling.compare_latency({}, SIZE), "compare_latency: models={}"),
        (lambda m: profiling.profile([m], SIZE), "at least one network, by name"),
        (lambda m: profiling.profile({"a": m, "b": "resnet50"}, SIZE), "profile: b: the model is str"),
        (lambda m: profiling.latency(nn.ReLU(), SIZE, training=True), "there is not a parameter"),
        (lambda m: profiling.peak_memory(nn.ReLU(), SIZE, training=True), "Pass training=False"),
        (lambda m: profiling.latency(nn.Sequential(nn.BatchNorm2d(3)), (3, 1, 1), training=True), "pass batch_size=2"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(call, message):
    with pytest.raises(attendo.AttendoError, match=message):
        call(small())


def test_a_model_whose_output_depends_on_no_parameter_cannot_train():
    class Detached(Diary):
        def forward(self, x):
            return (x * self.weight).detach()

    with pytest.raises(attendo.AttendoError, match="no output depends on a parameter"):
        profiling.latency(Detached("a", []), SIZE, training=True, **QUICK)


# ---- the house


def test_importing_attendo_does_not_import_profiling():
    code = "import sys, attendo; sys.exit('attendo.profiling' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_docstring_examples_are_true():
    import doctest

    from attendo.profiling import _format, counts

    for module in (_format, counts):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0
