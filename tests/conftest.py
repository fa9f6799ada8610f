"""Eight CPU devices, 32-bit numbers, warnings as errors; and where the browser is.

`UMUP_TEST_DEVICES` sets another number of devices: with one, as users have, XLA's CPU backend
schedules programs otherwise, so that `tests/test_one_device.py` runs some tests that way too.

The flags are taken back once JAX has started, so that kernels and commands which tests start see
the machine as a user's shell does. No compiled program is kept on disk: within one run nothing is
found there, and XLA:CPU (jaxlib 0.10.2) aborted in the next run on one for several devices.
"""

from __future__ import annotations

import os
import shutil

import pytest

DEVICES = int(os.environ.get("UMUP_TEST_DEVICES", "8"))


def _start_jax() -> None:
    """Start JAX on the CPU as `DEVICES` devices, leaving the environment as it was."""
    flags = os.environ.get("XLA_FLAGS", "")
    ours = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "0",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={DEVICES}",
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
    """With UMUP_REQUIRE_BROWSER=1, as in CI, a browser test that is skipped has failed."""
    report = yield
    required = os.environ.get("UMUP_REQUIRE_BROWSER") == "1"
    if required and report.skipped and item.get_closest_marker("browser"):
        report.outcome = "failed"
        report.longrepr = f"skipped where UMUP_REQUIRE_BROWSER=1 forbids it: {report.longrepr}"
    return report
