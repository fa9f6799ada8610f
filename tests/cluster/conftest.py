"""A Slurm for the tests of this folder, and a small study to run on it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.oneslurm import COMMANDS, Slurm, found


@pytest.fixture(scope="session")
def whole_slurm() -> Iterator[Slurm]:
    if absent := [name for name in COMMANDS if found(name) is None]:
        message = f"no Slurm: {', '.join(absent)} (apt-get install slurmctld slurmd munge)"
        if os.environ.get("UMUP_REQUIRE_SLURM") == "1":
            pytest.fail(message)
        pytest.skip(message)
    folder = Path(tempfile.mkdtemp(prefix="umup-slurm-"))  # short: a socket's path is bounded
    folder.chmod(0o755)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    cluster = None
    try:
        cluster = Slurm(folder)
        yield cluster
    finally:
        if cluster is not None:
            with contextlib.suppress(AssertionError):
                cluster.clear()
            cluster.stop()
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(whole_slurm: Slurm) -> Iterator[Slurm]:
    """The Slurm of the session, without jobs."""
    yield whole_slurm
    whole_slurm.clear()


# Six learning rates of one model, one after another; the best is none of the grid's ends.
TINY = {
    "profile": "tiny",
    "schemes": ["umup"],
    "widths": [16],
    "full_grid_width": 16,
    "n_layers": 1,
    "d_head": 8,
    "seq_len": 8,
    "batch_size": 2,
    "steps": 6000,
    "base_width": 16,
    "lr_umup": [-4, 1],
    "seeds": 1,
    "refine": 1.0,
    "window": 0.0,
    "eval_batches": 2,
    "chunk_steps": 400,
}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus: one file for all tests, so that equal runs have equal keys."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    lines = [f"document {i}: " + "all work and no play " * (1 + i % 3) for i in range(60)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def workplace(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one study, `toy`, on a small corpus, with caches for tokens and programs."""
    toy = tmp_path / "experiments/toy"
    toy.mkdir(parents=True)
    (toy / "study.ipynb").write_text("{}")
    (toy / "design.py").write_text("from umup.lab.lr_sweep import LRSweep\n\nDESIGN = LRSweep\n")
    plain = TINY | {"corpus": f"file:{text}"}
    (toy / "tiny.yaml").write_text(json.dumps(plain))
    (toy / "brief.yaml").write_text(json.dumps(plain | {"profile": "brief", "fresh": True}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMUP_CACHE", str(text.parent / "tokens"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(text.parent / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("UMUP_PROGRESS", raising=False)
    return tmp_path
