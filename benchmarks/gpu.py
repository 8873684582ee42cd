"""Check the GPU kernels, then measure what attention costs on this GPU, against timm and torch.compile, in one run.

    python benchmarks/gpu.py [SECTION ...] [--check-minutes 4] [--minutes 5] [--seconds 0.15] [--batch 256]
                             [--csv gpu.csv] [--skip-check] [--quick]

    networks     a training step of ResNet-50 (autocast to bfloat16, channels_last, SGD) with SE, ECA and CBAM over the
                 plain one, eager: ours, ours inserted into timm's plain one, and timm's; time and peak memory
    inference    modules forward, bfloat16, channels_last: timm's, eager and compiled, ours primitive by primitive, and
                 ours in one launch ("attendo persistent"). Once launched from Python, once replayed from a CUDA graph,
                 where nothing waits for Python
    primitives   each forward and backward, on tensors of gigabytes: the bytes of the maps that have to be read or
                 written at least, over the time, as a share of what a copy of the same map moves in its time
    modules      as inference, forward and backward; "attendo inductor" is ours with the kernels turned off, compiled
    compiled     the networks again, plain and ours, under torch.compile

All on random data, with CUDA events, variants in turns, medians with quartiles.

First the GPU tests run, for at most ``--check-minutes``. One that fails ends the run; tests that are not at their end
by then do not, and the CSV says so in every row. Those of the persistent kernel run apart and decide only whether it is
measured. Then the sections share ``--minutes``: nothing new is begun in one whose share is over, and what is left out
says so. The CSV is written after every case. Each section has a process of its own. What raises there becomes a row
with a note; if the process dies or says nothing for long, another one goes on without what it was trying; what does not
fit into memory is tried with half as many samples. ``--quick`` tries the script out on tiny sizes: its numbers mean
nothing. Where there is no GPU it says so and exits with 1, as it does when a test fails.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import importlib.util
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import torch

SHARES = {"networks": 100, "inference": 60, "primitives": 60, "modules": 40, "compiled": 60}  # of the time; in order
PERSISTENT = "attendo persistent"
HERE = Path(__file__).parent
WORKER, TESTS = HERE / "gpu_worker.py", HERE.parent / "tests"
PYTEST_DID_NOT_RUN = (2, 3, 4, 5)  # its exit codes that say nothing about what is tested
GATE, APART = "test_kernels_gpu.py", "test_kernels_gpu_attention.py"
PATIENCE_S, COMPILING_PATIENCE_S = 90.0, 180.0  # silence after which a process hangs; a network compiles for a minute


@dataclass
class Row:
    """One measured variant.

    ``share``: of a copy's bandwidth. ``over_timm`` and ``over_compiled``: how many times as fast as timm's module,
    eager and compiled; ``over_primitives``: as ours primitive by primitive. ``cost`` and ``memory_cost``: time and peak
    memory as a multiple of the plain network's. ``megabytes``: peak memory above what was there before.
    """

    section: str
    case: str
    variant: str
    milliseconds: float | None = None
    lower_quartile: float | None = None
    upper_quartile: float | None = None
    runs: int = 0
    share: float | None = None
    over_timm: float | None = None
    over_compiled: float | None = None
    over_primitives: float | None = None
    cost: float | None = None
    megabytes: float | None = None
    memory_cost: float | None = None
    note: str = ""


def summary(section: str, case: str, times: dict[str, list[float]]) -> dict[str, Row]:
    """Make rows of times: medians and quartiles."""
    rows = {}
    for variant, each in times.items():
        low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
        rows[variant] = Row(section, case, variant, middle, low, high, len(each))
    return rows


def compared(rows: dict[str, Row]) -> list[Row]:
    """Compare our modules with those of timm that are there, and networks with the plain one."""

    def over(base: str, row: Row) -> float | None:
        return rows[base].milliseconds / row.milliseconds if base in rows else None

    plain = rows.get("plain")
    for variant, row in rows.items():
        if row.section in ("inference", "modules") and variant.startswith("attendo"):
            row.over_timm, row.over_compiled = over("timm", row), over("timm compiled", row)
            if variant == PERSISTENT:
                row.over_primitives = over("attendo", row)
        if plain is not None:
            row.cost = row.milliseconds / plain.milliseconds
            row.memory_cost = row.megabytes / plain.megabytes if plain.megabytes else None
    return list(rows.values())


def rows_of(answer: dict[str, Any]) -> list[Row]:
    """Make rows of what a worker says of a case: ``times``, or a ``note``."""
    section, case = answer["case"]
    if "times" not in answer:
        return [Row(section, case, answer["variant"], note=answer["note"])]
    rows = summary(section, case, answer["times"])
    for variant, row in rows.items():
        row.megabytes = answer.get("megabytes", {}).get(variant)
        if variant.startswith("attendo"):
            row.note = answer.get("note", "")
        if "copy" in rows:  # which reads a map and writes one
            row.share = answer["maps"][variant] * rows["copy"].milliseconds / (2 * row.milliseconds)
            row.section = "copy" if variant == "copy" else section
    return compared(rows)


def table(rows: Sequence[Row]) -> str:
    """Say in a line each what was measured."""
    lines = [f"{'':<56}{'variant':<35}{'ms':>9}{'quartiles':>20}"]
    for row in rows:
        start = f"{row.case:<56}{row.variant:<35}"
        if row.milliseconds is None:
            lines.append(f"{start} {row.note}")
            continue
        said = [f"{row.share:.0%} of a copy"] if row.share is not None else []
        peers = [("timm", row.over_timm), ("timm compiled", row.over_compiled)]
        known = [peer for peer in (*peers, ("primitive by primitive", row.over_primitives)) if peer[1] is not None]
        said += [f"{more:.2f} {'as' if i else 'times as fast as'} {peer}" for i, (peer, more) in enumerate(known)]
        if row.cost is not None:
            said.append(f"{row.cost:.3f} of plain")
        if row.memory_cost is not None:
            said.append(f"{row.memory_cost:.3f} of its memory ({row.megabytes:,.0f} MB)")
        if row.note:
            said.append(row.note)
        spread = f"{row.lower_quartile:.3f} to {row.upper_quartile:.3f}"
        lines.append(f"{start}{row.milliseconds:>9.3f}{spread:>20}  {', '.join(said)}".rstrip())
    return "\n".join(lines)


def write_csv(path: Path, rows: Sequence[Row], made_on: dict[str, str]) -> None:
    """Write all rows, each with its environment; what was there before stays until all is written."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w", newline="") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)] + list(made_on))
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in (asdict(row) | made_on).items()} for row in rows
        )
    new.replace(path)


def environment(device: str) -> dict[str, str]:
    """What the numbers were made on and with."""
    driver = "none"
    if device == "cuda":
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30)
            driver = found.stdout.split("\n")[0].strip()
        except (OSError, subprocess.SubprocessError):
            driver = "unknown"
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip or "none",
        "triton": triton,
        **{package: importlib.metadata.version(package) for package in ("timm", "attendo")},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "check": "none",
    }


# What starts the others, and ends them.


@contextmanager
def child(command: Sequence[str], **more: Any) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Start a process in a group of its own; give it and what it writes, and end the group."""
    with tempfile.TemporaryFile() as said:
        more = {"stdout": said, "stderr": said, "stdin": subprocess.DEVNULL, **more}
        process = subprocess.Popen(command, start_new_session=True, **more)
        try:
            yield process, said
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a driver may hold it
                process.wait(10)
            if process.stdout is not None:
                process.stdout.close()


def lines_of(said: IO[bytes]) -> list[str]:
    """What a process has written."""
    said.seek(0)
    return [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]


def verdict(process: subprocess.Popen[bytes], said: IO[bytes], seconds: float, total: float | None = None) -> str:
    """Wait so many seconds of a total for a process that checks something; say what is wrong, or nothing."""
    try:
        code = process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        total = seconds if total is None else total
        return f"not at its end after {total:.0f} s: it waits for ever, or it compiles slowly"
    last = (lines_of(said) or [f"ended with {code}"])[-1].strip("= ")
    return "" if code == 0 else f"{'not run' if code in PYTEST_DID_NOT_RUN else 'failed'}: {last}"


def worker(asked: argparse.Namespace, section: str, **more: Any) -> list[str]:
    """Make the command that measures a section."""
    ask = {"section": section, "device": asked.device, "batch": asked.batch, "seconds": asked.seconds, **more}
    return [sys.executable, str(WORKER), json.dumps({**ask, "quick": asked.quick})]


def persistent_fault(asked: argparse.Namespace, seconds: float = 120) -> str:
    """Try attentions in one launch in another process; say what is wrong with them, or nothing."""
    with child(worker(asked, "persistent")) as (process, said):
        return verdict(process, said, seconds)


def pytest_command(name: str, processes: int) -> list[str]:
    """Make the command that runs the GPU tests of a file."""
    # a warning of another version of PyTorch says nothing about kernels
    options = ["-m", "gpu", "-n", str(processes), "-W", "default", "--tb=short", "-p", "no:cacheprovider"]
    spread = ["--dist", "load", "--maxschedchunk", "1"]
    return [sys.executable, "-m", "pytest", "-q", *options, *spread, "-p", WORKER.stem, str(TESTS / name)]


def check(asked: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:
    """Run files of GPU tests at the same time, each in its process; say what is wrong with each, or nothing."""
    missing = [name for name in ("pytest", "xdist", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing or not TESTS.is_dir():
        return dict.fromkeys(names, f"not run: there is no {(*missing, TESTS)[0]}")
    seconds, faults = 60 * asked.check_minutes, {}
    end, cores = time.monotonic() + seconds, os.cpu_count() or 1
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    variables = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    with ExitStack() as stack:
        begun = {}
        for name in names:  # most of their time goes into compiling
            command = pytest_command(name, max(1, min(cores // 2, 4 if name == GATE else 2)))
            begun[name] = stack.enter_context(child(command, cwd=TESTS.parent, env=variables))
        for name, (process, said) in begun.items():
            faults[name] = verdict(process, said, end - time.monotonic(), seconds)
            if faults[name]:
                say("\n".join(lines_of(said)[-60:]))
            if closes(faults):
                break
    return faults


def closes(faults: dict[str, str]) -> bool:
    """Whether a test of the kernels themselves has failed: wrong kernels are not worth measuring."""
    return faults.get(GATE, "").startswith("failed")


@dataclass
class Run:
    """What was asked for, what has been measured, and how much time is left."""

    asked: argparse.Namespace
    made_on: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    end: float = 0.0

    def over(self) -> bool:
        """Whether the section's time is used up."""
        return time.monotonic() > self.end

    def add(self, rows: Iterable[Row]) -> None:
        """Keep rows, and write all there are."""
        self.rows += rows
        try:
            write_csv(self.asked.csv, self.rows, self.made_on)
        except OSError as error:  # the table is still to come
            say(f"{self.asked.csv}: {error}")


def say(line: str) -> None:
    print(line, flush=True)


def checked(run: Run, inference: bool) -> bool:
    """Check before measuring; whether to measure."""
    asked = run.asked
    if asked.device == "cpu":
        return True
    if asked.skip_check:
        faults = {APART: persistent_fault(asked)} if inference else {}
    else:
        faults = check(asked, [GATE, APART] if inference else [GATE])
        run.made_on["check"] = faults[GATE] or "passed"
    if faults.get(APART):
        run.without = [PERSISTENT]
        run.rows.append(Row("inference", "all", PERSISTENT, note=faults[APART]))
    run.add(Row("check", name, "attendo", note=why or "passed") for name, why in faults.items())
    say(table(run.rows))
    return not closes(faults)


def answers(process: subprocess.Popen[bytes], patience: float) -> Iterator[dict[str, Any]]:
    """Yield what a worker says, until it ends.

    Raises:
        TimeoutError: it has said nothing for too long.
    """
    pending, pipe = b"", process.stdout.fileno()
    while select.select([pipe], [], [], patience)[0]:
        if not (read := os.read(pipe, 1 << 16)):
            return
        *whole, pending = (pending + read).split(b"\n")
        yield from map(json.loads, whole)
    raise TimeoutError(f"no answer for {patience:.0f} s")


class Section:
    """Measures a section with one worker after another, until all its cases are done or its time is over.

    Args:
        run: where the rows go.
        name: of the section.
    """

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.cases: list[tuple[str, str]] = [(name, "all")]  # until a worker has said which
        self.first, self.without = 0, list[str]()
        self.trying: str | None = None

    def measure(self) -> None:
        """Keep what is found, and say what is left out."""
        while self.first < len(self.cases) and not self.run.over():
            if why := self.follow():
                self.go_on_without(why)
        self.leave_out("skipped: out of time")

    def follow(self) -> str:
        """Let a worker measure from the next case on; say why it did not come to its end."""
        run = self.run
        more = {"first": self.first, "without": self.without, "never": run.without, "end": run.end}
        patience = COMPILING_PATIENCE_S if self.name == "compiled" else PATIENCE_S
        with child(worker(run.asked, self.name, **more), stdout=subprocess.PIPE) as (process, said):
            try:
                for answer in answers(process, patience):
                    self.hear(answer)
                    if "end" in answer:
                        return ""
            except TimeoutError as error:
                return f"failed: {error}"
            return verdict(process, said, 10) or "failed: it ended early"

    def hear(self, answer: dict[str, Any]) -> None:
        """Take what a worker says."""
        self.cases = answer.get("cases", self.cases)
        self.trying = answer.get("trying", self.trying)
        if "case" in answer:
            self.run.add(rows_of(answer))
        if "done" in answer:
            self.first, self.without, self.trying = answer["done"] + 1, [], None

    def go_on_without(self, why: str) -> None:
        """Note what a worker died of, and leave that out."""
        section, case = self.cases[min(self.first, len(self.cases) - 1)]
        self.run.add([Row(section, case, self.trying or "all", note=why)])
        if self.trying is None:
            self.first, self.without = self.first + 1, []
        else:
            self.without.append(self.trying)
            self.trying = None

    def leave_out(self, why: str) -> None:
        """Note what was not measured."""
        self.run.add(Row(section, case, "all", note=why) for section, case in self.cases[self.first :])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SHARES)}; default: all")
    parser.add_argument("--check-minutes", type=float, default=4.0, help="for the GPU tests, before all others")
    parser.add_argument("--minutes", type=float, default=5.0, help="shared out among the sections, after the tests")
    parser.add_argument("--seconds", type=float, default=0.15, help="for each variant; networks get 20 times")
    parser.add_argument(
        "--batch", type=int, default=256, help="samples of modules and networks; primitives get 8 times"
    )
    parser.add_argument("--csv", type=Path, default=Path("gpu.csv"), help="where all numbers go")
    parser.add_argument(
        "--skip-check", action="store_true", help="run no GPU tests; for the persistent kernel 2 minutes at most"
    )
    parser.add_argument("--try-persistent", action="store_true", help="only compare attentions in one launch, and exit")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script out")
    # to try the script out without a GPU, on tiny sizes
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if unknown := [section for section in asked.sections if section not in SHARES]:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SHARES)}")
    if asked.batch < 1:
        parser.error(f"--batch {asked.batch}: it must be at least 1")
    asked.quick = asked.quick or asked.device == "cpu"
    if asked.quick:
        asked.batch, asked.seconds = min(asked.batch, 2), min(asked.seconds, 0.001)
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, write; return the exit code."""
    asked = parse(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: there is no GPU here that PyTorch can use; nothing was measured.", file=sys.stderr)
        return 1
    if asked.try_persistent:
        return subprocess.call(worker(asked, "persistent"))
    run = Run(asked, environment(asked.device))
    say(", ".join(f"{name} {value}" for name, value in run.made_on.items() if name != "check"))
    run.add([])  # now rather than after minutes it shows whether that can be written
    left = [section for section in SHARES if section in asked.sections or not asked.sections]
    if not checked(run, "inference" in left):
        print("benchmarks/gpu.py: the GPU tests fail; wrong kernels are not worth measuring.", file=sys.stderr)
        return 1
    end = time.monotonic() + 60 * asked.minutes
    while left:
        share = SHARES[left[0]] / sum(SHARES[section] for section in left)  # what one saves, the others have
        run.end = time.monotonic() + share * max(0.0, end - time.monotonic())
        before, begin = len(run.rows), time.monotonic()
        section = left.pop(0)
        try:
            Section(run, section).measure()
        finally:  # what there is, should the rest fail
            say(f"\n{table(run.rows[before:])}\n{section}: {time.monotonic() - begin:.0f} s\n")
    say(f"all numbers: {asked.csv}")
    return 0


def stop_on_signals() -> None:
    """Let a signal to end raise, so that what there is is written and no process is left behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


if __name__ == "__main__":
    stop_on_signals()
    sys.exit(main())
