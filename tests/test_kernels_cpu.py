"""The native kernels of every instruction set: equal to the definition, and the same on any number of threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings

from attendo.kernels.cpu import build, library
from attendo.kernels.cpu.calls import Calls
from kernels import (
    DTYPES,
    Attention,
    Case,
    attentions,
    cases,
    check_attention,
    check_channel_stats,
    check_gradients,
    check_recalibrate,
    check_spatial_stats,
    outputs,
    same,
)

moderate = settings(max_examples=300, deadline=None, derandomize=True)
LAST = torch.channels_last
SHARES = (None, 0.0, 0.3, 1.0)  # of a blend


@pytest.fixture(scope="module", params=library.SETS)
def name(request) -> str:
    if library.table(request.param) is None:
        pytest.skip(library.missing() or f"this machine does not run {request.param}")
    return request.param


@pytest.fixture(scope="module")
def calls(name) -> Calls:
    return Calls(library.table(name))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_library_is_there_where_a_compiler_is():
    try:
        build.compiler()
    except build.NotBuiltError as error:
        pytest.skip(str(error))
    assert library.missing() == ""


@moderate
@given(case=cases())
@example(case=Case((9, 33, 7, 7), values="few", spoilt=("up", float("inf"))))
def test_channel_stats_and_their_gradient_are_the_definitions(calls, case):
    check_channel_stats(calls, case)


@moderate
@given(case=cases())
@example(case=Case((2, 17, 7, 7), torch.bfloat16, LAST, values="few", spoilt=("channel", float("nan"))))
def test_spatial_stats_and_their_gradients_are_the_definitions(calls, case):
    check_spatial_stats(calls, case)


@moderate
@given(case=cases())
@example(case=Case((9, 17, 7, 7), layout=LAST, channel="shared", spatial="shared", residual=True, relu=True))
def test_recalibrate_and_its_gradients_are_the_definitions(calls, case):
    check_recalibrate(calls, case)


@moderate
@given(attention=attentions(shares=SHARES))
@example(attention=Attention(Case((1, 4, 2, 2), spoilt=("x", float("inf"))), "eca", (("kernel_size", 1),)))
def test_a_whole_attention_in_one_call_is_its_gates_and_products(calls, attention):
    check_attention(calls, attention)


@moderate
@given(attention=attentions(befores=("fixed",)))
@example(attention=Attention(Case((3, 16, 7, 7), spoilt=("x", float("inf"))), "cbam_channel", before="fixed"))
def test_a_norm_with_fixed_statistics_joins_the_attention_behind_it(calls, attention):
    check_attention(calls, attention)


@moderate
@given(attention=attentions(befores=(None, "batch"), shares=SHARES, largest=1 << 14))
@example(attention=Attention(Case((2, 16, 7, 7), values="few", relu=True), "cbam", before="batch"))
@example(attention=Attention(Case((2, 8, 7, 7), torch.float64, LAST, residual=True), "cbam_spatial", before="batch"))
@example(attention=Attention(Case((1, 16, 5, 5), torch.float64, values="rectified"), "cbam_channel", before="batch"))
def test_gradients_of_a_whole_attention_are_the_definitions(name, calls, attention):
    samples, _, height, width = attention.case.shape
    assume(samples * height * width > 1)  # of one number a norm takes no statistics
    check_gradients(name, calls, attention)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize(("mechanism", "share"), [("se", None), ("eca", 0.3), ("cbam", None), ("cbam", 0.3)])
def test_gradients_of_a_batch_larger_than_the_cache_come_in_chunks_too(name, calls, layout, mechanism, share):
    # six samples in a chunk, and one is left for the last
    case = Case((7, 32, 75, 72), layout=layout, residual=True, relu=True)
    assert 6 * case.map("x")[0].nbytes <= build.CHUNK < 7 * case.map("x")[0].nbytes
    check_gradients(name, calls, Attention(case, mechanism, share=share))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize("samples", [5, 4], ids=["an odd chunk last", "even chunks"])
def test_a_batch_larger_than_the_cache_is_cut_into_chunks(calls, dtype, layout, samples):
    # two samples in a chunk, their second half would be
    side = 128 if dtype == torch.bfloat16 else 90
    case = Case((samples, 64, side, side), dtype, layout, residual=True, relu=True)
    assert 2 * case.map("x")[0].nbytes <= build.CHUNK < 3 * case.map("x")[0].nbytes
    check_attention(calls, Attention(case, "cbam"))


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize("samples", [1, 2])
def test_a_sample_larger_than_the_cache_is_a_chunk_of_its_own(calls, layout, samples):
    case = Case((samples, 32, 192, 192), layout=layout)
    assert case.map("x")[0].nbytes > build.CHUNK
    check_attention(calls, Attention(case, "cbam"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize("shape", [(1, 40, 37, 35), (3, 18, 31, 33), (9, 20, 13, 11)], ids=str)
@pytest.mark.parametrize(
    ("mechanism", "before", "share"),
    [("cbam", None, None), ("cbam", None, 0.3), ("eca", None, 0.3), ("eca", "batch", None)],
)
def test_results_do_not_depend_on_the_number_of_threads_or_on_the_run(
    calls, dtype, layout, shape, mechanism, before, share, threads
):
    attention = Attention(Case(shape, dtype, layout), mechanism, before=before, share=share)
    assert attention.case.map("x").nbytes > 65536 // (2 if dtype == torch.bfloat16 else 1)  # less stays on one thread
    torch.set_num_threads(1)
    want = outputs(calls, attention)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for name, got in outputs(calls, attention).items():
            assert torch.equal(got, want[name]), (name, count)


@pytest.mark.parametrize("count", [1, 2])
def test_two_python_threads_may_call_at_once(calls, count, threads):
    torch.set_num_threads(count)
    norms = (None, "batch", "fixed", "batch")
    drawn = [
        Attention(Case((3, 16 + i, 31, 33), values="few" if i % 2 else "normal"), "cbam", before=before)
        for i, before in enumerate(norms)
    ]
    want = [outputs(calls, attention) for attention in drawn]
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda attention: outputs(calls, attention), drawn * 4))
    for i, found in enumerate(got):
        for name, tensor in found.items():
            same(tensor, want[i % 4][name])


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("count", [1, 3])
def test_the_number_of_threads_is_the_one_that_torch_was_told(calls, count, threads):
    attention = Attention(Case((9, 32, 28, 28)), "cbam", before="batch")
    grown = []

    def call() -> None:
        torch.set_num_threads(1)
        attention.case.map("x")
        torch.set_num_threads(count)
        before = set(Path("/proc/self/task").iterdir())  # a set: threads of an earlier test may end meanwhile
        outputs(calls, attention)
        grown.append(len(set(Path("/proc/self/task").iterdir()) - before))

    fresh = threading.Thread(target=call)  # OpenMP keeps a team for each thread that calls it; this one has none yet
    fresh.start()
    fresh.join()
    assert grown == [count - 1]
