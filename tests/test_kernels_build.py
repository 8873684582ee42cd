"""Building the native library: what is said where it cannot be, that all runs without it, and that it is clean."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import attendo
from attendo.kernels.cpu import build, library

PACKAGE = Path(attendo.__file__).parent
TESTS = Path(__file__).parent


@pytest.fixture
def compiler() -> list[str]:
    try:
        return build.compiler()
    except build.NotBuiltError as error:
        pytest.skip(str(error))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Where the library would go, and the reason beside it; not the real ones."""
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "lib.so")
    monkeypatch.setattr(build, "REASON", tmp_path / "not_built.txt")
    return tmp_path


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no compiler is even tried")
def test_a_compiler_that_does_not_start_leaves_the_reason_and_no_library(place, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/nonexistent/c++ -O1")
    (place / "lib.so").touch()  # of an earlier version
    assert build.build_or_explain() is None
    assert [path.name for path in place.iterdir()] == ["not_built.txt"]
    reason = (place / "not_built.txt").read_text()
    assert "/nonexistent/c++ does not start" in reason
    assert reason.strip() in caplog.text


def test_no_compiler_at_all_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(build.NotBuiltError, match=r"no C\+\+ compiler on the path"):
        build.compiler()


def test_another_system_is_said(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(build.NotBuiltError, match="for Linux, this is darwin"):
        build.compiler()


def test_what_the_compiler_said_is_shown(compiler, tmp_path):
    with pytest.raises(build.NotBuiltError, match=r"failed: .*no-such-option"):
        build.build(tmp_path / "lib.so", ("-fno-such-option",))
    assert not list(tmp_path.iterdir())


def test_a_reason_left_by_the_build_is_the_one_that_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "lib.so")
    monkeypatch.setattr(library, "REASON", tmp_path / "not_built.txt")
    load = library._load.__wrapped__  # past its cache
    assert "not compiled when attendo was installed" in load()[1]
    (tmp_path / "not_built.txt").write_text("no C++ compiler on the path\n")
    found, why = load()
    assert found is None
    assert why == f"no native library: no C++ compiler on the path. With a C++ compiler at hand, run: {library.AGAIN}"
    (tmp_path / "lib.so").write_text("no library")
    assert "does not load" in load()[1]


def test_a_library_of_another_interface_is_refused(compiler, tmp_path, monkeypatch):
    source, made = tmp_path / "other.cpp", tmp_path / "lib.so"
    source.write_text('extern "C" int attendo_interface() { return 99; }\n')
    subprocess.run([*compiler, "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    monkeypatch.setattr(library, "LIBRARY", made)
    found, why = library._load.__wrapped__()
    assert found is None
    assert f"of another version of attendo. Run: {library.AGAIN}" in why


WITHOUT = """
import sys
from pathlib import Path
import torch
import attendo
from attendo import kernels
from attendo._errors import UnknownName

assert Path(attendo.__file__).is_relative_to(sys.argv[1]), attendo.__file__
for status in kernels.status():
    assert status.kernel == "reference" and (status.device != "cpu" or "no compiler that day" in status.why), status
for name in ("avx512", "avx2", "plain"):
    try:
        kernels.use(name)
    except UnknownName as error:
        assert "no compiler that day" in str(error) and "Choose from auto, reference, persistent." in str(error), error
    else:
        raise AssertionError(name)
x = torch.randn(2, 32, 5, 5, requires_grad=True)
for name in ("se", "eca", "cbam"):
    layer = attendo.layer(name, 32).eval()
    layer(x).sum().backward()
    with torch.no_grad():
        want = layer(x)
        torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), want)
    with kernels.use("reference"):
        torch.testing.assert_close(layer(x), want)
"""


def test_everything_runs_without_the_library(tmp_path):
    absent = shutil.ignore_patterns("*.so*", "not_built.txt", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "attendo", ignore=absent)
    (tmp_path / "attendo" / "kernels" / "cpu" / "not_built.txt").write_text("no compiler that day\n")
    done = run(WITHOUT, str(tmp_path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


AWKWARD = """
import itertools
import sys
from pathlib import Path
import torch
from attendo.kernels.cpu import library
from attendo.kernels.cpu.calls import Calls
from kernels import *

library.LIBRARY = Path(sys.argv[1])
library._load.cache_clear()
assert library.missing() == "", library.missing()
layouts = (torch.contiguous_format, torch.channels_last)
attentions = (
    ("se", (("reduction", 1), ("pool", "max"))),
    ("eca", (("kernel_size", 7),)),
    ("cbam", (("reduction", 1), ("spatial_kernel", 7))),
    ("cbam", (("channel", "eca"), ("spatial_kernel", 3), ("variant", "paper"))),
    ("cbam_spatial", (("spatial_kernel", 1),)),
)
CONVOLUTIONS = (
    (1, 3, 2, 1, 1, (1, 1)),
    (5, 4, 2, 3, 2, (7, 3)),
    (9, 16, 1, 1, 1, (3, 20)),
    (7, 5, 3, 5, 3, (11, 33)),
)
for name in library.SETS:
    if library.table(name) is None:
        continue
    calls = Calls(library.table(name))
    for i, (shape, dtype, layout) in enumerate(itertools.product(SHAPES, DTYPES, layouts)):
        torch.set_num_threads(1 + i % 2)
        for gates, end in ((("own", "own"), True), (("shared", None), False), ((None, "shared"), True)):
            case = Case(shape, dtype, layout, "few", *gates, residual=end, relu=end)
            check_recalibrate(calls, case)
            check_spatial_stats(calls, case)
        check_channel_stats(calls, case)
        mechanism, settings = attentions[i % 5]
        check_attention(calls, Attention(case, mechanism, settings, before=(None, "fixed")[i % 2]))
        outputs(calls, Attention(case, mechanism, settings, share=0.3))
        outputs(calls, Attention(case, mechanism, settings, before=(None, "batch", "fixed")[i % 3]))
    for layout in layouts:
        check_attention(calls, Attention(Case((3, 32, 130, 130), layout=layout), "cbam"))
        for kernel, groups, inputs, results, stride, size in CONVOLUTIONS:
            for dtype in DTYPES:
                x = torch.randn(2, groups * inputs, *size).to(dtype).contiguous(memory_format=layout)
                weight = torch.randn(groups * results, inputs, kernel, kernel).to(dtype)
                calls.grouped_conv(x, weight, stride, groups)
print("clean")
"""


@pytest.mark.slow
def test_awkward_shapes_are_clean_under_the_address_and_undefined_behaviour_sanitizers(compiler, tmp_path):
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")  # the last: without it torch's exceptions find no handler
    found = [subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip() for name in names]
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip(f"{compiler[0]} comes without sanitizers")
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover", "-g", "-O1")
    made = build.build(tmp_path / "lib.so", flags)
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = run(AWKWARD, str(made), PYTHONPATH=str(TESTS), LD_PRELOAD=":".join(found), **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "clean\n"
