"""The allocator keeps memory where it was asked to, says so where it cannot, and is left alone otherwise."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

import pytest

import attendo
from attendo.kernels import allocator

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is not glibc")

# Eight times 64 MB, each written and freed: as many page faults as pages that the allocator fetches from the system.
FAULTS = """
import resource, torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(32):
    if i == 24:
        before = faults()  # the first ones are fetched: of 28 processes, each fetched between two and six
    torch.ones(16 << 20)
print(faults() - before)
"""
PAGES = 8 * (64 << 20) // 4096


def python(code: str, **environment: str) -> str:
    """Run code in a process of its own; return what it prints."""
    inherited = {key: value for key, value in os.environ.items() if key != allocator.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@glibc
def test_a_tuned_process_fetches_no_page_twice():
    default = int(python(f"import attendo\n{FAULTS}"))
    tuned = int(python(f"import attendo\nassert attendo.tune_allocator()\n{FAULTS}"))
    assert tuned < default / 50
    assert tuned < PAGES / 50


@glibc
def test_asking_twice_and_from_many_threads_is_asking_once():
    code = (
        "import attendo, threading\n"
        "found = []\n"
        "threads = [threading.Thread(target=lambda: found.append(attendo.tune_allocator())) for _ in range(16)]\n"
        "[t.start() for t in threads], [t.join() for t in threads]\n"
        "print(set(found), attendo.tune_allocator())\n"
    )
    assert python(code) == "{Tuning(done=True, why='')} tuned: glibc keeps freed memory"


def test_importing_attendo_leaves_the_allocator_alone():
    said = python(
        "import attendo\nfrom attendo.kernels.allocator import allocator\nprint(bool(allocator()), allocator())"
    )
    assert said.startswith("False as it was: ")


def test_the_environment_can_turn_it_off():
    code = f"import attendo\ntuning = attendo.tune_allocator()\nprint(bool(tuning), tuning.why)\n{FAULTS}"
    said, faults = python(code, ATTENDO_ALLOCATOR="default").splitlines()
    assert said == "False ATTENDO_ALLOCATOR=default in the environment"
    if platform.libc_ver()[0] == "glibc":
        assert int(faults) > PAGES / 600  # of 2 MB where huge pages are always on


def test_a_word_that_the_variable_does_not_know_is_refused(monkeypatch):
    monkeypatch.setattr(allocator, "_tuned", False)
    monkeypatch.setenv(allocator.VARIABLE, "off")
    with pytest.raises(attendo.AttendoError, match=r"ATTENDO_ALLOCATOR='off'.*Take default or tuned"):
        attendo.tune_allocator()


@glibc
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make another malloc with")
def test_another_malloc_is_left_alone_and_named(tmp_path):
    source, library = tmp_path / "malloc.c", tmp_path / "libjemalloc.so.2"
    source.write_text(
        "extern void *__libc_malloc(unsigned long); void *malloc(unsigned long n) { return __libc_malloc(n); }"
    )
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    said = python("import attendo\nprint(attendo.tune_allocator())", LD_PRELOAD=str(library))
    assert said == "as it was: malloc is that of libjemalloc.so.2, not glibc's"


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_another_system_is_left_alone_and_named(monkeypatch, system):
    monkeypatch.setattr(allocator, "_tuned", False)
    monkeypatch.delenv(allocator.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "platform", system)
    tuning = attendo.tune_allocator()
    assert not tuning
    assert system in tuning.why
    assert allocator.allocator() == tuning


def test_a_c_library_without_the_call_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator, "_tuned", False)
    monkeypatch.delenv(allocator.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())  # as musl: neither function is there
    assert "this C library is another" in attendo.tune_allocator().why


@glibc
def test_a_setting_that_glibc_refuses_is_named(monkeypatch):
    monkeypatch.setattr(allocator, "_tuned", False)
    monkeypatch.delenv(allocator.VARIABLE, raising=False)
    monkeypatch.setattr(allocator, "SETTINGS", {"M_MXFAST": (1, -1)})
    assert attendo.tune_allocator() == (False, "mallopt(M_MXFAST, -1) was refused")


@glibc
def test_commands_tune_their_own_process():
    code = (
        "import sys\nfrom attendo.cli import main\nfrom attendo.kernels.allocator import allocator\n"
        "try:\n    main(['list'])\nexcept SystemExit as end:\n    print(end.code, bool(allocator()))\n"
    )
    assert python(code).splitlines()[-1] == "0 True"
    assert python(code, ATTENDO_ALLOCATOR="default").splitlines()[-1] == "0 False"


@glibc
def test_the_processes_of_a_comparison_tune_themselves(monkeypatch):
    from attendo.comparison import pool

    class Asked(Exception):
        pass

    def asked() -> None:
        raise Asked

    monkeypatch.setattr(pool, "tune_allocator", asked)
    monkeypatch.setattr(pool.signal, "signal", lambda *_: None)
    monkeypatch.setattr(pool.threading, "Thread", lambda **_: type("Thread", (), {"start": lambda self: None})())
    with pytest.raises(Asked):
        pool._work(None, None, None, "", 1, 0, 0)
