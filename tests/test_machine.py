"""This machine: cores that can and cannot be bound, and kernels that show nothing of themselves."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from umup import machine
from umup.lab import study
from umup.lab.design import Design
from umup.lab.records import Store
from umup.terminal import Progress


def test_one_core_of_several():
    """In a process of its own, so that this one keeps its cores."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("processes cannot be bound here")
    core = machine.core_numbers()[-1]
    code = f"from umup import machine as m\nm.bind({core})\nm.bind(9999)  # no such core\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(m.cores(), m.core_numbers())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split(maxsplit=1) == ["1", f"[{core}]\n"]


@pytest.mark.parametrize(
    ("flags", "processor", "jaxlib", "off"),
    [
        ("", "flags : avx2 f16c", "0.10.2", True),
        (" --xla_cpu_max_isa=AVX2", "flags : avx2 f16c", "0.10.2", True),
        (" --xla_cpu_max_isa=AVX512", "flags : avx2 f16c", "0.10.2", True),
        (" --xla_cpu_max_isa=SSE4_2", "flags : avx2 f16c", "0.10.2", False),
        (" --xla_cpu_max_isa=AVX", "flags : avx2 f16c", "0.10.2", False),
        ("", "flags : sse4_2", "0.10.2", False),
        ("", "Features : fphp", "0.10.2", True),
        ("", "flags : avx2 f16c", "0.12.0", False),
    ],
)
def test_haste_leaves_out_no_emitter_that_fp8_needs(monkeypatch, flags, processor, jaxlib, off):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(machine, "_lines", lambda path: ["processor : 0", processor])
    monkeypatch.setattr(machine, "version", lambda package: jaxlib)
    found = machine.in_haste()
    assert ("fusion_emitters=false" in found) == off
    assert found.startswith(flags.strip()) and "backend_optimization_level=0" in found


@pytest.mark.parametrize("absent", [True, False])
def test_without_affinity_every_core_counts_and_none_is_bound(monkeypatch, absent):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    for name in ("sched_getaffinity", "sched_setaffinity"):
        if absent:
            monkeypatch.delattr(os, name, raising=False)
        else:
            monkeypatch.setattr(os, name, refuse, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    machine.bind(0)
    assert machine.core_numbers() == [] and machine.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


@pytest.mark.parametrize(("cores", "given"), [([], [None] * 3), ([2, 5], ["2", "5", "2"])])
def test_workers_of_a_study_are_bound_where_there_are_cores(monkeypatch, tmp_path, cores, given):
    commands = []

    class Ended:
        def __init__(self, command, **_):
            commands.append(command)

        def wait(self):
            return 0

        poll = wait

    monkeypatch.setattr(machine, "core_numbers", lambda: cores)
    monkeypatch.setattr(study.subprocess, "Popen", Ended)
    study._spawn("toy", Design(workers=3), Store(tmp_path), Progress())
    found = [dict(itertools.pairwise(command)) for command in commands]
    assert [pairs.get("--core") for pairs in found] == given


def test_a_kernel_that_shows_nothing(monkeypatch):
    def refuse(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert machine.name() and machine.peak_mib() > 1 and machine.cpu_seconds() is None
