"""`attendo doctor` tells what is there, and what to type where something could be better."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from attendo._errors import pip_line
from attendo.cli import diagnosing, main
from attendo.kernels import Status
from attendo.kernels.allocator import Tuning
from attendo.profiling import machine as reading
from attendo.profiling.advice import advise
from attendo.profiling.machine import Cores, Extra, Gpus, Machine, core_limit, instruction_sets, openmp_runtimes

NO_GPU = Gpus((), (), "3.5", "no NVIDIA driver on this machine", False, "13.0")
WELL = Machine(
    cpu="Some Processor",
    instruction_sets=("avx2", "avx512f"),
    capability="AVX512",
    cores=Cores(8, None, 8, None),
    kernels=(Status("channel_stats", "cpu", "avx512", ""), Status("channel_stats", "cuda", "reference", "not yet")),
    openmp=("/site/torch/lib/libgomp.so.1",),
    allocator=Tuning(True),
    gpus=NO_GPU,
    versions={"python": "3.12.1", "torch": "2.9.0"},
    extras=(Extra("onnx", ()), Extra("yolo", ("ultralytics",))),
    broken={},
)
AGAIN = "python -m attendo.kernels.cpu"


def without_kernels(why: str) -> Machine:
    return replace(WELL, kernels=(Status("channel_stats", "cpu", "reference", why),))


@pytest.mark.parametrize(
    "machine",
    [
        WELL,
        replace(WELL, cores=Cores(8, None, 4, "4")),  # one per physical core
        replace(WELL, cores=Cores(8, 1.5, 2, None)),
        replace(WELL, cores=Cores(8, None, 8, "many")),
        replace(WELL, openmp=()),
        replace(WELL, allocator=Tuning(False, "malloc is that of libjemalloc.so.2, not glibc's")),
        replace(WELL, gpus=Gpus(("H200",), ("9.0",), "3.5", "", True, "13.0")),
        without_kernels("no native library: the native library is for Linux, this is darwin"),
    ],
)
def test_where_nothing_is_wrong_nothing_is_to_be_changed(machine):
    assert advise(machine) == []


@pytest.mark.parametrize(
    ("machine", "command"),
    [
        (replace(WELL, cores=Cores(2, None, 8, None)), "export OMP_NUM_THREADS=2"),
        (replace(WELL, cores=Cores(64, 3.5, 64, None)), "export OMP_NUM_THREADS=4"),
        (replace(WELL, cores=Cores(64, 0.5, 64, None)), "export OMP_NUM_THREADS=1"),
        (replace(WELL, cores=Cores(8, None, 8, "16,2")), "export OMP_NUM_THREADS=8"),
        (replace(WELL, cores=Cores(8, None, 1, "1")), "unset OMP_NUM_THREADS"),
        (without_kernels(f"no native library: it was not compiled. With a C++ compiler at hand, run: {AGAIN}"), AGAIN),
        (without_kernels(f"no native library: no C++ compiler on the path. Run: {AGAIN}"), "apt install g++"),
        (without_kernels("the native library does not load: libgomp.so.1"), AGAIN),
        (
            replace(WELL, openmp=("/usr/lib/libgomp.so.1", "/site/torch/lib/libgomp.so.1")),
            "export LD_PRELOAD=/site/torch/lib/libgomp.so.1",
        ),
        (
            replace(WELL, allocator=Tuning(False, "ATTENDO_ALLOCATOR=default in the environment")),
            "unset ATTENDO_ALLOCATOR",
        ),
        (replace(WELL, gpus=replace(NO_GPU, driver=True, built_for=None)), "pip install --force-reinstall torch"),
        (
            replace(WELL, gpus=replace(NO_GPU, driver=True, why="CUDA_VISIBLE_DEVICES='' leaves none")),
            "unset CUDA_VISIBLE_DEVICES",
        ),
        (replace(WELL, broken={"timm does not import (x)": "pip install timm"}), "pip install timm"),
    ],
)
def test_what_is_wrong_comes_with_what_to_type(machine, command):
    (change,) = advise(machine)
    assert command in change.command
    assert str(change) == f"{change.what}: {change.command}"


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_a_gpu_without_triton_gets_the_pip_line():
    (change,) = advise(replace(WELL, gpus=Gpus(("H200",), ("9.0",), None, "", True, "13.0")))
    assert change.command == "pip install triton"


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/pod/box\n", {"cpu.max": "400000 100000", "pod/cpu.max": "200000 100000", "pod/box/cpu.max": "max 1"}, 2),
        ("0::/elsewhere\n", {"cpu.max": "300000 100000"}, 3),
        (
            "4:memory:/\n3:cpu,cpuacct:/box\n0::/\n",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("", {}, None),
    ],
)
def test_the_tightest_limit_of_the_control_groups_counts(tmp_path, own, files, limit):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert core_limit(tmp_path / "groups", tmp_path / "own") == limit


def test_a_system_without_these_files_tells_nothing(tmp_path):
    assert core_limit(tmp_path, tmp_path / "none") is None
    assert instruction_sets(tmp_path / "none") == ()
    assert openmp_runtimes(tmp_path / "none") == ()


@pytest.mark.parametrize("key", ["flags\t\t", "Features\t"])
def test_instruction_sets_are_those_of_the_processor(tmp_path, key):
    (tmp_path / "cpuinfo").write_text(f"model name: x\n{key}: sve fpu avx512f avx2 bf16 avx2x\nbugs: amx_tile\n")
    assert instruction_sets(tmp_path / "cpuinfo") == ("avx2", "avx512f", "sve", "bf16")


def test_every_openmp_runtime_is_found_once_and_nothing_else(tmp_path):
    files = ("/a b/torch/lib/libgomp.so.1", "/x/libgomp-a34b3233.so.1.0.0", "/x/libomp.so", "/x/libiomp5.so")
    others = ("/x/libompress.so", "/x/libgomp.so.1/notes", "/x/python", "[heap]")
    (tmp_path / "maps").write_text("".join(f"7f0 r-xp 0 08:01 77    {file}\n" for file in (*files, *files, *others)))
    assert openmp_runtimes(tmp_path / "maps") == files


def test_a_package_that_does_not_import_is_broken_and_exits_with_1(monkeypatch, capsys):
    def fail(name: str) -> None:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(reading.importlib, "import_module", fail)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert diagnosing.doctor() == 1
    said = capsys.readouterr().out
    assert "torchvision does not import (operator torchvision::nms does not exist): pip install --force-rein" in said


def test_a_package_that_is_missing_is_broken_and_an_extra_is_not(monkeypatch):
    version = reading._version
    gone = ("scipy", "onnxruntime")
    monkeypatch.setattr(reading, "_version", lambda name: None if name in gone else version(name))
    machine = reading.read_machine()
    assert machine.broken == {"scipy is not installed": "pip install scipy"}
    missing = {extra.name: extra.missing for extra in machine.extras}
    assert "onnxruntime" in missing["onnx"]
    assert "onnxruntime" in missing["openvino"]  # which contains onnx
    assert "test" not in missing


def test_the_words_and_the_json_say_the_same(monkeypatch, capsys):
    odd = replace(
        WELL, cpu="[red]x[/]", cores=Cores(64, 3.5, 64, "64"), gpus=Gpus(("G",), ("9.0",), None, "", True, "1")
    )
    monkeypatch.setattr(diagnosing, "read_machine", lambda: odd)
    assert diagnosing.doctor() == 0
    words = capsys.readouterr().out
    assert diagnosing.doctor(as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cpu"] == "[red]x[/]"
    assert found["kernels"][0] == {"primitive": "channel_stats", "device": "cpu", "kernel": "avx512", "why": ""}
    assert found["change"][0]["command"] == "export OMP_NUM_THREADS=4"
    for text in (
        *("[red]x[/]", "avx2 avx512f (torch: AVX512)", "64 for this process, limited to the time of 3.5"),
        *("OMP_NUM_THREADS=64", "shared by torch and the native kernels: /site/torch", "attendo.tune_allocator()"),
        *("G, capability 9.0, no Triton", "python 3.12.1", f"ultralytics missing, {pip_line('yolo')}"),
        *(f"{change['what']}: {change['command']}" for change in found["change"]),
    ):
        assert text in words


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, "pip install 'attendo[onnx]'"),
        ('{"url": "file:///a%20clone", "dir_info": {}}', "pip install '/a clone[onnx]'"),
        ('{"url": "file:///clone", "dir_info": {"editable": true}}', "pip install -e '/clone[onnx]'"),
        ('{"url": "https://x/a", "vcs_info": {"vcs": "git"}}', "pip install 'attendo[onnx] @ git+https://x/a'"),
        ('{"url": "file:///a.whl", "archive_info": {}}', "pip install 'attendo[onnx] @ file:///a.whl'"),
    ],
)
def test_an_extra_comes_from_where_attendo_itself_came(monkeypatch, origin, line):
    class Installed:
        def read_text(self, name):
            return origin if name == "direct_url.json" else ""

    monkeypatch.setattr("attendo._errors.metadata.distribution", lambda name: Installed())
    assert pip_line("onnx") == line


def test_nothing_is_said_where_nothing_is_to_be_changed(monkeypatch, capsys):
    monkeypatch.setattr(diagnosing, "read_machine", lambda: WELL)
    assert diagnosing.doctor() == 0
    assert capsys.readouterr().out.endswith("\nwhat to change\n  nothing\n")


def test_kernels_that_are_missing_are_not_broken(monkeypatch, capsys):
    monkeypatch.setattr(diagnosing, "read_machine", lambda: without_kernels(f"it was not compiled. Run: {AGAIN}"))
    assert diagnosing.doctor() == 0
    said = capsys.readouterr().out
    assert "of torch alone" in said
    assert f"without its native kernels: {AGAIN}" in said


def test_the_command_tells_of_this_machine():
    done = subprocess.run(
        [sys.executable, "-m", "attendo", "doctor", "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["cores"]["threads"] == 1
    assert found["cores"]["allowed"] >= 1
    assert found["versions"]["python"] == sys.version.split()[0]
    assert re.fullmatch(r"[\d.]+\S*", found["versions"]["torch"])
    assert {row["device"] for row in found["kernels"]} == {"cpu", "cuda"}
    assert found["broken"] == {}
    if sys.platform == "linux":
        assert len(found["openmp"]) == 1, "the native kernels brought a second OpenMP runtime"


def test_a_setting_that_means_nothing_is_named(monkeypatch, capsys):
    monkeypatch.setattr("attendo.kernels.allocator._tuned", False)
    monkeypatch.setenv("ATTENDO_ALLOCATOR", "of")
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 1
    assert "Take default or tuned" in capsys.readouterr().err
