"""XLA's compiler for NVIDIA GPUs on a machine that has none: JAX's CUDA plugin, told of a GPU.

python -m umup.plan.compiler    install it, 400 MB, beside JAX, which does not load it

It compiles what a GPU would run, except for the choice among a product's algorithms, which needs a
GPU to time them. CUDA's libraries are not needed; a fused attention remains an opaque call.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from umup.errors import ConfigError, TrainError
from umup.plan import hardware

PACKAGES = ("jax-cuda13-plugin", "jax-cuda13-pjrt")
OPTIONS = {"xla_gpu_enable_triton_gemm": False}
"""XLA flags as slices use them (`umup.slices.h100`): products by cuBLASLt, none by Triton."""
DEVICES = ("h100", "h200")
"""Devices to compile for; their sizes are those of ``hardware``."""

_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  l2_cache_size: 52428800 memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  device_vendor: "NVIDIA Corporation" name: "{name}" device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{name}"
"""
"""XLA's ``GpuTargetConfigProto`` of a Hopper GPU: limits from CUDA's programming guide, compute
capability 9.0, and the H100's datasheet."""


def folder() -> Path:
    """Its folder: ``umup/cuda-VERSION`` in the user's cache, with jaxlib's version."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "umup" / f"cuda-{version('jaxlib')}"


def available() -> bool:
    """Whether it is installed for this version of JAX."""
    return (folder() / "jax_plugins").is_dir()


def install() -> None:
    """Download and install it, if necessary.

    Raises:
        TrainError: pip fails.
    """
    if available():
        return
    place = folder()
    place.parent.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}=={version('jaxlib')}" for name in PACKAGES]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    with tempfile.TemporaryDirectory(prefix=".cuda-", dir=place.parent) as temporary:
        made = Path(temporary) / "packages"  # whole, or not there: a killed pip leaves nothing
        done = subprocess.run(
            [*command, "--target", str(made), *wanted], capture_output=True, text=True
        )
        if done.returncode:
            raise TrainError(
                "pip",
                (done.stderr.strip().splitlines() or ["failed"])[-1],
                " ".join(["an index with", *wanted]),
            )
        made.rename(place)


def environment(device: str) -> dict[str, str]:
    """Environment for compiling for a device: JAX finds the plugin and does not look for a GPU.

    Raises:
        ConfigError: ``device`` is none of ``DEVICES``.
        TrainError: the plugin is not installed.
    """
    if device not in DEVICES:
        raise ConfigError("device", device, " | ".join(DEVICES))
    if not available():
        raise TrainError("compiler", f"none for NVIDIA GPUs in {folder()}", "make gpu-compiler")
    before = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": os.pathsep.join([str(folder()), *([before] if before else [])]),
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "",
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def devices(name: str, number: int = 1) -> list[Any]:
    """Devices of one machine to compile for, in a process with ``environment``.

    Args:
        name: of ``DEVICES``.
        number: of devices.
    """
    from jax.experimental import topologies

    machine = hardware.get(name)
    text = _DESCRIPTION.format(
        name=f"NVIDIA {name.upper()}",
        memory=1e9 * machine.memory_gb,
        bandwidth=1e9 * machine.memory_gb_s,
    )
    found = topologies.get_topology_desc(
        platform="cuda", target_config=text, topology=f"1x1x{number}"
    )
    return found.devices


if __name__ == "__main__":
    install()
    print(folder())
