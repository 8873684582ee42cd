"""The benchmark of the GPU kernels gives what it can, whatever goes wrong on a GPU that it has never seen."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import BENCHMARKS, load_script

PATH = BENCHMARKS / "gpu.py"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """The script benchmarks/gpu.py."""
    return load_script("gpu")


@pytest.fixture(scope="module")
def measuring() -> Any:
    """The script that its processes run."""
    return load_script("gpu_worker")


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def notes(path: Path) -> dict[tuple[str, str], str]:
    """The note of each variant of each case."""
    return {(row["case"], row["variant"]): row["note"] for row in read(path)}


# What measures: in this process, with made-up variants.


def variants(measuring: Any, **calls: Any) -> Any:
    """Variants that call these."""
    return lambda case, ask: {name: measuring.Variant(lambda call=call: call) for name, call in calls.items()}


def raising(error: Exception) -> Any:
    def call() -> None:
        raise error

    return call


def heard(measuring: Any, monkeypatch: pytest.MonkeyPatch, made: Any, **more: Any) -> list[dict[str, Any]]:
    """What a worker says of inference with these variants, until it ends or raises."""
    monkeypatch.setitem(measuring.VARIANTS, "inference", made)
    ask = measuring.Ask("inference", device="cpu", batch=2, seconds=0, quick=True, **more)
    said: list[dict[str, Any]] = []
    try:
        measuring.Worker(ask, lambda **what: said.append(json.loads(json.dumps(what)))).run()
    except RuntimeError as error:
        said.append({"raised": str(error)})
    return said


def test_a_variant_that_raises_leaves_the_others(measuring, benchmark, monkeypatch):
    wrong = raising(RuntimeError("no such instruction\nat line 1"))
    said = heard(measuring, monkeypatch, variants(measuring, timm=lambda: None, attendo=wrong))
    assert [answer["done"] for answer in said if "done" in answer] == list(range(6))
    assert "end" in said[-1]
    (section, label), *_ = said[0]["cases"]
    rows = [row for answer in said if answer.get("case") == [section, label] for row in benchmark.rows_of(answer)]
    note, good = rows
    assert (note.variant, note.note) == ("attendo", "failed: RuntimeError: no such instruction")
    assert good.variant == "timm"
    assert good.milliseconds is not None


def test_a_case_that_cannot_be_built_leaves_the_others(measuring, monkeypatch):
    def made(case: Any, ask: Any) -> Any:
        if case.name == "eca":
            raise ValueError("no ECA today")
        return variants(measuring, timm=lambda: None)(case, ask)

    said = heard(measuring, monkeypatch, made)
    lost = [answer["case"][1] for answer in said if "note" in answer and "ECA" in answer["note"]]
    assert lost == [label for _, label in said[0]["cases"] if label.startswith("eca")]
    assert {answer["case"][1].split()[0] for answer in said if "times" in answer} == {"se", "cbam"}


def test_what_does_not_fit_into_memory_is_tried_with_half_as_many_samples(measuring, monkeypatch):
    def made(case: Any, ask: Any) -> Any:
        large = raising(torch.OutOfMemoryError("tried to allocate"))
        return variants(measuring, timm=lambda: None, attendo=large if case.batch > 1 else lambda: None)(case, ask)

    said = heard(measuring, monkeypatch, made)
    about = [answer for answer in said if "case" in answer][:2]
    assert [answer["case"][1].split()[1][:2] for answer in about] == ["2x", "1x"]
    assert about[0]["note"] == "failed: out of memory; half as many samples follow"
    assert set(about[1]["times"]) == {"timm", "attendo"}


def test_timm_alone_out_of_memory_costs_no_samples(measuring, monkeypatch):
    large = raising(torch.OutOfMemoryError("tried to allocate"))
    said = heard(measuring, monkeypatch, variants(measuring, timm=large, attendo=lambda: None))
    assert {answer["case"][1].split()[1][:2] for answer in said if "case" in answer} == {"2x"}
    assert any("times" in answer for answer in said)


def test_one_that_cannot_be_captured_is_measured_from_python(measuring, monkeypatch):
    refused = raising(RuntimeError("not while capturing"))
    monkeypatch.setattr(measuring, "captured", lambda call, device: refused())
    said = heard(measuring, monkeypatch, variants(measuring, timm=lambda: None))
    eager, note, graphs = [answer for answer in said if "case" in answer][:3]
    assert set(eager["times"]) == {"timm"}
    assert note["note"] == "no graph: failed: RuntimeError: not while capturing"
    assert graphs["times"] == {}
    assert note["case"] == graphs["case"] == [eager["case"][0], f"{eager['case'][1]} graph"]


def test_a_device_that_is_broken_ends_the_process_that_broke_it(measuring, monkeypatch):
    def broken(clock: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    made = variants(measuring, timm=lambda: monkeypatch.setattr(measuring.Clock, "synchronize", broken))
    _, *said = heard(measuring, monkeypatch, made)
    assert said == [{"trying": "timm"}, {"raised": "an illegal memory access was encountered"}]


def test_memory_is_the_peak_of_a_warm_call_above_what_was_there(measuring, monkeypatch):
    ran: list[str] = []
    for name, result in (("memory_allocated", 100), ("max_memory_allocated", 350), ("synchronize", None)):
        monkeypatch.setattr(torch.cuda, name, lambda result=result: result and result * 1_000_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: ran.append("reset"))
    _, megabytes = measuring.Clock("cuda", float("inf")).warm(lambda: lambda: ran.append("call"))
    assert megabytes == 250
    assert ran == ["call"] * 3 + ["reset", "call"]


def test_nothing_is_begun_after_the_end_nor_what_is_left_out(measuring, monkeypatch):
    made = variants(measuring, timm=lambda: None, attendo=lambda: None)
    assert [set(answer) for answer in heard(measuring, monkeypatch, made, end=0.0)] == [{"cases"}, {"end"}]
    said = heard(measuring, monkeypatch, made, first=4, without=["timm"], never=["attendo"])
    assert [set(answer["times"]) for answer in said if "times" in answer] == [set(), set(), {"timm"}, {"timm"}]


def test_every_section_has_its_share_of_the_time_and_all_are_there(measuring, benchmark):
    assert list(benchmark.SHARES) == list(measuring.planned(measuring.Ask("networks")))
    assert list(benchmark.SHARES) == ["networks", "inference", "primitives", "modules", "compiled"]


def test_networks_are_ours_inserted_and_timms_over_the_plain_one(measuring):
    ask = measuring.Ask("networks", device="cpu", batch=2, quick=True)
    (case,) = measuring.planned(ask)["networks"]
    peers = [f"{peer} {name}" for peer in ("attendo", "attendo inserted", "timm") for name in measuring.NAMES]
    assert list(measuring.network_variants(case, ask)) == ["plain", *peers]
    torch.manual_seed(0)
    plain = measuring.timm.create_model("resnet18")
    torch.manual_seed(0)
    x, other = torch.randn(2, 3, 32, 32), measuring.inserted("resnet18", "se", 32)
    other.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(other.eval()(x), plain.eval()(x), rtol=0, atol=0)


# What becomes of it.


def test_persistent_alone_is_compared_with_what_there_is(benchmark):
    times = {"timm": [3.0] * 4, "attendo persistent": [1.0] * 4}
    _, row = benchmark.compared(benchmark.summary("inference", "se graph", times))
    assert (row.over_timm, row.over_compiled, row.over_primitives) == (3.0, None, None)
    assert benchmark.table([row]).endswith("1.000 to 1.000  3.00 times as fast as timm")


def test_time_and_memory_of_a_network_are_over_the_plain_ones(benchmark):
    answer = {"case": ["networks", "resnet50"], "times": {"plain": [100.0] * 3, "attendo se": [102.0] * 3}}
    _, ours = benchmark.rows_of(answer | {"megabytes": {"plain": 200.0, "attendo se": 230.0}})
    assert (ours.cost, ours.memory_cost) == (1.02, 1.15)
    (alone,) = benchmark.rows_of({"case": ["networks", "resnet50"], "times": {"attendo se": [102.0] * 3}})
    assert (alone.cost, alone.memory_cost) == (None, None)


def test_a_primitives_bytes_are_over_those_of_a_copy(benchmark):
    answer = {"case": ["primitives", "map"], "times": {"copy": [2.0] * 3, "scale": [6.0] * 3}}
    copy, row = benchmark.rows_of(answer | {"maps": {"copy": 2, "scale": 3}})
    assert (copy.section, copy.share, row.section, row.share) == ("copy", 1.0, "primitives", 0.5)


# What starts the processes and outlives them: with others in their place.

WORKER = """
import json, os, sys, time
ask = json.loads(sys.argv[1])
def say(**what):
    print(json.dumps(what), flush=True)
cases = [(ask["section"], name) for name in ("first", "second", "third")]
say(cases=cases)
for i in range(ask["first"], 3):
    times = {}
    for name in ("timm", "attendo", "attendo persistent"):
        if name in [*ask["never"], *(ask["without"] if i == ask["first"] else ())]:
            continue
        say(trying=name)
        FAULT
        times[name] = [1.0, 2.0]
    say(trying=None)
    say(case=cases[i], times=times)
    say(done=i)
say(end=True)
"""


@pytest.fixture
def run_with(benchmark, monkeypatch, tmp_path) -> Any:
    """Run a section in processes that have a fault when they try a variant of the second case; where the CSV is."""

    def run(fault: str = "pass", section: str = "modules", *options: str, on: str = "cpu") -> Path:
        fault = f"if i == 1 and name == 'attendo': {fault}"
        script = WORKER.replace("FAULT", fault)
        command = [sys.executable, "-S", "-c", script]
        monkeypatch.setattr(
            benchmark,
            "worker",
            lambda asked, section, **more: [*command, json.dumps({"section": section, **more})],
        )
        path = tmp_path / "gpu.csv"
        assert benchmark.main([section, "--device", on, "--csv", str(path), *options]) == 0
        return path

    return run


@pytest.fixture
def gpu(benchmark, monkeypatch) -> None:
    """A GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark, "environment", lambda device: {"device": "NVIDIA Nothing", "check": "none"})


def test_the_csv_is_written_after_every_case(benchmark, run_with, monkeypatch):
    seen = []

    def write(path: Path, *rest: Any) -> None:
        benchmark_write(path, *rest)
        seen.append(len(read(path)))

    benchmark_write = benchmark.write_csv
    monkeypatch.setattr(benchmark, "write_csv", write)
    path = run_with()
    assert [count for i, count in enumerate(seen) if count not in seen[:i]] == [0, 3, 6, 9]
    assert {row["torch"] for row in read(path)} == {torch.__version__}
    assert [file.name for file in path.parent.iterdir()] == ["gpu.csv"]


def test_what_ends_a_process_is_left_out_by_the_next(run_with, capsys):
    found = notes(run_with("sys.exit('an illegal memory access was encountered')"))
    assert found["second", "attendo"] == "failed: an illegal memory access was encountered"
    assert [key for key, note in found.items() if not note] == [
        *(("first", name) for name in ("timm", "attendo", "attendo persistent")),
        *(("second", name) for name in ("timm", "attendo persistent")),
        *(("third", name) for name in ("timm", "attendo", "attendo persistent")),
    ]
    assert "an illegal memory access" in capsys.readouterr().out


def test_what_hangs_is_left_out_by_the_next(benchmark, run_with, monkeypatch):
    monkeypatch.setattr(benchmark, "PATIENCE_S", 1.0)
    found = notes(run_with("time.sleep(600)"))
    assert found["second", "attendo"] == "failed: no answer for 1 s"
    assert found["second", "timm"] == found["third", "attendo"] == ""


def test_a_process_that_never_speaks_is_no_reason_to_wait_for_ever(benchmark, monkeypatch, tmp_path):
    path = tmp_path / "gpu.csv"
    monkeypatch.setattr(benchmark, "worker", lambda *_, **__: [sys.executable, "-S", "-c", "import no_such_thing"])
    assert benchmark.main(["networks", "compiled", "--device", "cpu", "--csv", str(path)]) == 0
    assert [row["section"] for row in read(path)] == ["networks", "compiled"]
    assert {row["note"] for row in read(path)} == {"failed: ModuleNotFoundError: No module named 'no_such_thing'"}


def test_what_there_is_no_time_for_says_so(benchmark, run_with, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark.Run, "over", lambda run: any(row.case == "first" for row in run.rows))
    found = notes(run_with("sys.exit('no')"))
    assert found["first", "timm"] == ""
    assert found["second", "all"] == found["third", "all"] == "skipped: out of time"
    path = tmp_path / "none.csv"
    monkeypatch.undo()
    assert benchmark.main(["--device", "cpu", "--minutes", "0", "--csv", str(path)]) == 0
    assert [(row["section"], row["note"]) for row in read(path)] == [
        (section, "skipped: out of time") for section in benchmark.SHARES
    ]


def test_a_fault_of_the_persistent_kernel_costs_nothing_but_itself(benchmark, run_with, gpu, monkeypatch):
    faults = {benchmark.GATE: "", benchmark.APART: "not at its end after 240 s"}
    monkeypatch.setattr(benchmark, "check", lambda asked, names: {name: faults[name] for name in names})
    path = run_with("pass", "inference", on="cuda")
    assert notes(path)["all", "attendo persistent"] == "not at its end after 240 s"
    measured = {(row["case"], row["variant"]) for row in read(path) if row["milliseconds"]}
    assert measured == {(case, name) for case in ("first", "second", "third") for name in ("timm", "attendo")}
    assert {row["check"] for row in read(path)} == {"passed"}


def test_a_test_that_fails_ends_the_run_with_a_row(benchmark, gpu, monkeypatch, tmp_path, capsys):
    path = tmp_path / "gpu.csv"
    monkeypatch.setattr(benchmark, "check", lambda asked, names: {benchmark.GATE: "failed: 1 failed, 23 passed"})
    monkeypatch.setattr(benchmark, "Section", None)
    assert benchmark.main(["--csv", str(path)]) == 1
    (row,) = read(path)
    assert (row["section"], row["note"], row["device"]) == ("check", "failed: 1 failed, 23 passed", "NVIDIA Nothing")
    assert "not worth measuring" in capsys.readouterr().err


def test_tests_that_take_too_long_do_not_end_the_run_and_every_row_says_so(benchmark, run_with, gpu, monkeypatch):
    monkeypatch.setattr(benchmark, "check", lambda asked, names: dict.fromkeys(names, "not at its end after 240 s"))
    rows = read(run_with("pass", "networks", on="cuda"))
    assert {row["check"] for row in rows} == {"not at its end after 240 s"}
    assert sum(bool(row["milliseconds"]) for row in rows) == 9


def commands(monkeypatch: pytest.MonkeyPatch, benchmark: Any, **scripts: str) -> None:
    """Let other scripts stand for the tests of the kernels and of the persistent one."""
    made = {benchmark.GATE: scripts["gate"], benchmark.APART: scripts["apart"]}
    monkeypatch.setattr(benchmark, "pytest_command", lambda name, _: [sys.executable, "-S", "-c", made[name]])


def alive(pid: int) -> bool:
    """Whether a process runs, soon after it was killed."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True


def test_a_check_that_hangs_is_ended_with_all_that_it_started(benchmark, monkeypatch, tmp_path, capsys):
    pid = tmp_path / "pid"
    hangs = f"""
    import pathlib, subprocess, sys, time
    started = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    pathlib.Path({str(pid)!r}).write_text(str(started.pid))
    print("waiting", flush=True)
    time.sleep(600)
    """
    commands(monkeypatch, benchmark, gate="print('24 passed in 1s')", apart=textwrap.dedent(hangs))
    asked = benchmark.parse(["--check-minutes", "0.05"])
    faults = benchmark.check(asked, [benchmark.GATE, benchmark.APART])
    assert faults == {
        benchmark.GATE: "",
        benchmark.APART: "not at its end after 3 s: it waits for ever, or it compiles slowly",
    }
    assert not alive(int(pid.read_text()))
    assert capsys.readouterr().out.strip() == "waiting"


def test_a_failing_check_says_its_last_line_and_one_that_could_not_run_says_that(benchmark, monkeypatch, capsys):
    fails = "print('E   wrong\\n=== 1 failed, 23 passed in 9s ==='); raise SystemExit(1)"
    commands(monkeypatch, benchmark, gate=fails, apart="import time; time.sleep(600)")
    asked = benchmark.parse([])
    faults = benchmark.check(asked, [benchmark.GATE, benchmark.APART])
    assert faults == {benchmark.GATE: "failed: 1 failed, 23 passed in 9s"}  # without waiting for the other
    assert benchmark.closes(faults)
    assert "E   wrong" in capsys.readouterr().out
    commands(monkeypatch, benchmark, gate="print('no such option'); raise SystemExit(4)", apart="")
    faults = benchmark.check(asked, [benchmark.GATE])
    assert faults == {benchmark.GATE: "not run: no such option"}
    assert not benchmark.closes(faults)


def test_a_signal_to_end_leaves_a_table_a_csv_and_no_process(tmp_path):
    path, script = tmp_path / "gpu.csv", WORKER.replace("FAULT", "if i == 1: time.sleep(600)")
    driver = f"""
    import importlib.util, json, sys
    spec = importlib.util.spec_from_file_location("benchmark_gpu", {str(PATH)!r})
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    command = [sys.executable, "-S", "-c", {script!r}]
    module.worker = lambda asked, section, **more: [*command, json.dumps(dict(section=section, **more))]
    module.stop_on_signals()
    sys.exit(module.main(["modules", "--device", "cpu", "--csv", {str(path)!r}]))
    """
    command = [sys.executable, "-c", textwrap.dedent(driver)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (path.exists() and len(read(path)) == 3):
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert said.count("first") == 3
    assert len(read(path)) == 3
    assert children
    assert not any(alive(int(child)) for child in children)


def test_a_process_whose_parent_is_killed_goes_with_it(tmp_path):
    pid = tmp_path / "pid"
    code = f"""
    import os, sys, time
    sys.path.insert(0, {str(PATH.parent)!r})
    import gpu_worker
    gpu_worker.follow_parent()
    open({str(pid)!r}, "w").write(str(os.getpid()))
    time.sleep(600)
    """
    child = [sys.executable, "-c", textwrap.dedent(code)]
    parent = f"import subprocess, time; subprocess.Popen({child!r}, start_new_session=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-S", "-c", parent]) as process:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.05)
        process.kill()
    assert not alive(int(pid.read_text()))


def test_the_tests_that_take_long_begin_in_processes_of_their_own(measuring):
    class Item:
        def __init__(self, name: str) -> None:
            self.name, self.obj = name, type("Test", (), {"is_hypothesis_test": name.startswith("long")})

        def get_closest_marker(self, marker: str) -> bool:
            return not self.name.startswith("cpu")

    items = [Item(name) for name in ("cpu", "long 1", "long 2", "long 3", "a", "b", "c", "d")]
    measuring.pytest_collection_modifyitems(items)
    assert [item.name for item in items] == ["long 1", "a", "long 2", "b", "long 3", "c", "d"]


def test_an_unknown_section_is_refused_with_those_there_are(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["moduls"])
    assert "no section 'moduls'; there are networks, inference" in capsys.readouterr().err
