"""Steps compiled for GPUs that are not there: FP8 products as a GPU would run them, its memory."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest

from umup import plan
from umup.config import MeshConfig, ModelConfig, OptimConfig
from umup.errors import ConfigError, TrainError
from umup.plan import aot, compiler, formulas, hardware

MODEL = ModelConfig(
    d_model=256,
    n_layers=3,
    d_head=64,
    d_ff=704,
    vocab_size=512,
    seq_len=128,
    dtype="bfloat16",
)
OPTIM, ONE = OptimConfig(batch_size=8), MeshConfig()
LINEARS = 5  # q|k|v, attention-out, gate|up, FFN-down, and the readout
E4M3, E5M2 = "f8e4m3fn", "f8e5m2"


PLAIN = {"__cublas$lt$matmul: bf16 × bf16": 6 + 3 * LINEARS}  # attention: two forward, four back


def compiled(device: str = "h100", mesh: MeshConfig = ONE, **model: Any) -> aot.Report:
    job = aot.Job("umup", dataclasses.replace(MODEL, **model), OPTIM, mesh)
    return aot.compiled(job, device=device)


def fp8(pairs: dict[str, int]) -> dict[str, int]:
    """Products of a step of which those of these types are FP8."""
    narrow = {f"__cublas$lt$matmul$f8: {pair}": n for pair, n in pairs.items()}
    rest = 6 + 3 * LINEARS - sum(pairs.values())
    return narrow | {"__cublas$lt$matmul: bf16 × bf16": rest}


@pytest.mark.gpu_compiler
@pytest.mark.parametrize(
    ("recipe", "products"),
    [
        ("plain", PLAIN),
        # Every linear's three.
        ("fp8_seed", fp8({f"{E4M3} × {E4M3}": 11, f"{E5M2} × {E4M3}": 4})),
        # Attention-out and FFN-down stay in bfloat16.
        (
            "fp8_e5m2_grad",
            fp8({f"{E4M3} × {E4M3}": 3, f"{E5M2} × {E4M3}": 3, f"{E4M3} × {E5M2}": 3}),
        ),
    ],
)
def test_every_product_that_a_recipe_casts_is_cublas_s_in_fp8(recipe, products) -> None:
    assert compiled(recipe=recipe).products == products


@pytest.mark.gpu_compiler
def test_eight_gpus_reduce_and_scatter_and_take_the_planned_memory() -> None:
    mesh = MeshConfig(data=2, fsdp=4)
    wide = {"d_model": 512, "d_ff": 1408, "vocab_size": 4096, "seq_len": 512, "remat": "full"}
    found = compiled(mesh=mesh, **wide)
    assert (found.platform, found.devices) == ("gpu", 8)
    case = plan.case(dataclasses.replace(MODEL, **wide), OPTIM, mesh, hardware.get("h100"))
    assert formulas.memory(case).total == pytest.approx(found.total_bytes, rel=0.1)
    assert formulas.flops(case).compiled / 8 == pytest.approx(found.flops, rel=1e-3)
    assert "reduce-scatter" in {row.kind for row in found.collectives}
    assert compiled("h200", mesh, **wide).total_bytes == found.total_bytes


def test_what_cannot_be_compiled_for_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(ConfigError, match=r"device: received 'b200'; allowed: h100 \| h200"):
        compiled("b200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.folder().is_relative_to(tmp_path) and not compiler.available()
    with pytest.raises(TrainError, match=r"none for NVIDIA GPUs in .*; allowed: make gpu-compiler"):
        compiled("h100")


def test_an_index_without_the_compiler_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(TrainError, match=r"pip: received 'ERROR: No matching.*jax-cuda13-plugin=="):
        compiler.install()
    assert "--no-deps" in asked[0] and not compiler.available()
    (compiler.folder() / "jax_plugins").mkdir(parents=True)
    compiler.install()
    assert len(asked) == 1, "what is there is not asked for again"
