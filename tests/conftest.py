"""Eight CPU devices, 32-bit numbers, warnings as errors; and where the browser is.

`UMUP_TEST_DEVICES` sets another number of devices: with one, as users have, XLA's CPU backend
schedules programs otherwise, so that `tests/test_one_device.py` runs some tests that way too.

`UMUP_TEST_IN_HASTE=1`, as `make test` sets it, compiles in haste: nine tenths of the tests' time
are JAX's tracing and XLA's compiling. What is marked `optimized`, golden numbers and what is equal
bit for bit in two programs, needs programs as users have them: `tests/test_optimized.py` runs it.

The flags are taken back once JAX has started, so that kernels and commands which tests start see
the machine as a user's shell does. No compiled program is kept on disk: within one run nothing is
found there, and XLA:CPU (jaxlib 0.10.2) aborted in the next run on one for several devices.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator

import pytest

from umup import machine
from umup.plan import compiler

DEVICES = int(os.environ.get("UMUP_TEST_DEVICES", "8"))
IN_HASTE = os.environ.get("UMUP_TEST_IN_HASTE") == "1"
APART = ("tests/test_optimized.py", "tests/test_smoke.py")
"""Files whose tests share nothing in this process: any worker may have each."""
LONG = (
    *("tests/test_new_study.py", "tests/test_one_device.py", *APART),
    *("tests/studies/test_part_done.py", "tests/test_compiler.py", "tests/test_parallel.py"),
)
"""What workers start with, so that none is left with it at the end."""
UNCOMPILED = "Failed to materialize symbols"
"""XLA:CPU's error where a program needs a function that it does not have."""


def _start_jax() -> None:
    """Start JAX on the CPU as `DEVICES` devices, leaving the environment as it was."""
    flags = machine.in_haste() if IN_HASTE else os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={DEVICES}"
    ours = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "0",
        "XLA_FLAGS": flags.strip(),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    import jax

    jax.devices()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


_start_jax()
os.environ.setdefault("UMUP_DIRTY", "1")  # tests make records of code that is being written
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # a `make` that a test starts is not this one's
    os.environ.pop(name, None)


@pytest.fixture(autouse=True, scope="module")
def _programs_are_forgotten() -> Iterator[None]:
    """At the end of each file: kept, they would take several gigabytes."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that the test starts compile as this one does, so that numbers are equal."""
    if IN_HASTE:
        monkeypatch.setenv("XLA_FLAGS", machine.in_haste())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if IN_HASTE:
        left = {item for item in items if item.get_closest_marker("optimized")}
        config.hook.pytest_deselected(items=list(left))
        items[:] = [item for item in items if item not in left]
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what compiles for GPUs where no compiler for them is installed."""
    if item.get_closest_marker("gpu_compiler") and not compiler.available():
        pytest.skip(f"no compiler for GPUs in {compiler.folder()} (make gpu-compiler)")


def pytest_collection_finish() -> None:
    """What is imported and collected is not walked for garbage, and the rest seldom.

    With Python's own thresholds walking took another 5 to 12 % of a file's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """A file's tests go to one worker, which shares what it compiles; `APART` are on their own."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if nodeid.startswith(APART) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # by our order, not by the number of tests
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium or Chrome; `UMUP_CHROMIUM` names another. Skips where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    named = os.environ.get("UMUP_CHROMIUM")
    path = named or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(
            f"no browser: none of {', '.join(names)} is installed (apt-get install chromium)"
        )
    return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """What cannot be tested here: no browser, or a processor for which XLA cannot compile FP8.

    With UMUP_REQUIRE_BROWSER=1, as in CI, a browser test that is skipped has failed; so has, with
    UMUP_REQUIRE_GPU_COMPILER=1, one that compiles for GPUs.
    """
    report = yield
    for name in ("browser", "gpu_compiler"):
        variable = f"UMUP_REQUIRE_{name.upper()}"
        required = os.environ.get(variable) == "1"
        if required and report.skipped and item.get_closest_marker(name):
            report.outcome = "failed"
            report.longrepr = f"skipped where {variable}=1 forbids it: {report.longrepr}"
    if report.failed and UNCOMPILED in report.longreprtext and not machine.converts_float16():
        report.outcome = "skipped"
        reason = "XLA:CPU converts no FP8 on a processor without F16C"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {reason}")
    return report
