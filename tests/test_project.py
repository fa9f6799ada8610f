"""The house rules that no single module can check: who imports whom, pins, pairs, docstrings."""

from __future__ import annotations

import ast
import base64
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lib" / "umup"
MODULES = sorted(PACKAGE.rglob("*.py"))
STUDIES = sorted(p.parent for p in (ROOT / "experiments").glob("*/study.py"))
STUDY_CODE = sorted(p for study in STUDIES for p in study.glob("*.py") if p.name != "study.py")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# The rows of the table in `book/architecture.md`: what is flat is named, a package names itself.
FLAT = {
    "core": (
        "errors text checked config powers schemes rule_tables rules scale target ops fp8 probe "
        "draws layers model roles sampling size_rules optim mesh train"
    ),
    "laws": "laws",
    "host": "command machine files terminal yaml_reader",
    "ports": "unit arguments interop coord slopes",
    "cli": "__init__ cli",
}
ROWS = {name: row for row, names in FLAT.items() for name in names.split()}
MAY_IMPORT = {
    "core": "",
    "laws": "core",
    "host": "core",
    "ports": "core laws",
    "data": "core host",
    "run": "core host data",
    "plan": "core host data run",
    "transfer": "core laws",
    "lab": "core laws host ports data",
    "slices": "core host data lab",
    "book": "core laws host ports data run plan transfer lab slices",
    "cli": "core laws host ports data run plan transfer lab slices book",
    "studies": "core laws host ports data run plan lab",
}
NO_JAX = {
    "data",
    "errors",
    "yaml_reader",
    "files",
    "checked",
    "config",
    "plan.formulas",
    "plan.budgets",
    "plan.hardware",
    "powers",
    "rule_tables",
    "rules",
    "run.recovery",
    "transfer",
    "lab.absent",
    "lab.tables",
    "laws",
    "lab.claims",
    "lab.figures",
    "lab.plots",
    "run.runlog",
    "run.writers",
    "run.telemetry",
    "run.watch",
    "terminal",
    "text",
    "schemes",
    "lab.schemas",
    "lab.records",
    "lab.report",
    "plan",
    "plan.plan_cli",
    "lab.jobs",
    "lab.options",
    "lab.commands",
    "run.commands",
    "data.commands",
    "book.commands",
    "command",
    "cli",
}
IMPORT_NAMES = {"PIL": "pillow", "yaml": "pyyaml", "orbax": "orbax-checkpoint", "jaxlib": "jax"}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names that a module imports, 'umup.ops' for `from umup import ops`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join(filter(None, ("umup", module)))
            found |= (
                {f"umup.{alias.name}" for alias in node.names} if module == "umup" else {module}
            )
    return found


def imported_at_the_top(tree: ast.Module) -> set[str]:
    """What importing the module imports: not what its functions import when they are called."""
    lazy = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return imports(ast.Module([node for node in tree.body if not isinstance(node, lazy)], []))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    """`lab.study` of lib/umup/lab/study.py, `lab` of its `__init__.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


KNOWN = {name_of(path): path for path in MODULES}


def row_of(module: str) -> str:
    """The row of a module, `lab.study` or `ops`; "" where it has none."""
    first = module.split(".")[0]
    return ROWS.get(first, first if (PACKAGE / first).is_dir() else "")


def imported_modules(tree: ast.AST) -> set[str]:
    """Modules of umup that a module imports, without the package's name: `lab.study`, `ops`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # a study's own folder; the library imports itself by its full name
                continue
            module = node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}"
                found.add(full if full.removeprefix("umup.") in KNOWN else module)
    return {name.removeprefix("umup.") for name in found if name.startswith("umup.")}


def offences(module: str, tree: ast.AST) -> list[str]:
    """What `module` imports that its row of the table does not name."""
    row = row_of(module)
    allowed = {row, *MAY_IMPORT.get(row, "").split()}
    return [
        f"{module} imports {other}, of {row_of(other) or 'no row'}"
        for other in sorted(imported_modules(tree))
        if row_of(other) not in allowed
    ]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_are_those_of_the_table(path: Path) -> None:
    module, tree = name_of(path), parse(path)
    assert row_of(module) in MAY_IMPORT, f"give {path.name} a row in {__file__}"
    assert offences(module, tree) == []


def strays(tree: ast.AST) -> list[str]:
    """What the code of a study imports or reads beyond its row of the table and its own folder."""
    allowed = MAY_IMPORT["studies"].split()
    bad = [f"imports {m}" for m in sorted(imported_modules(tree)) if row_of(m) not in allowed]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level > 1:
            bad.append("imports from outside its folder")
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("code", "store", "folder"):
                bad.append(f"reads {node.args[0].value}")
    return bad


@pytest.mark.parametrize("path", STUDY_CODE, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_a_study_reads_only_the_library_and_its_own_folder(path: Path) -> None:
    own = [f"reads {path.parent.name}"]
    assert [found for found in strays(parse(path)) if found not in own] == []


def test_a_study_that_reads_another_is_seen() -> None:
    for line in (
        "from umup.book import pages",
        "from ..throughput import results",
        'study.code("throughput").results',
        'study.store("throughput", "cpu")',
    ):
        assert strays(ast.parse(line)) != []
    assert strays(ast.parse("from . import results\nfrom umup.lab import study")) == []


def test_there_are_no_circles() -> None:
    arrows = {name: imported_modules(parse(path)) - {name} for name, path in KNOWN.items()}
    for name in arrows:  # importing a module runs the package that it is in
        arrows[name] &= arrows.keys()
    while free := {name for name, others in arrows.items() if not others & arrows.keys()}:
        arrows = {name: others for name, others in arrows.items() if name not in free}
    assert not arrows, f"in or behind a circle: {sorted(arrows)}"


def test_the_table_in_the_book_is_this_one() -> None:
    text = (ROOT / "book" / "architecture.md").read_text(encoding="utf-8")
    shown = {}
    for line in text.splitlines():
        match = re.match(r"\| `?(\w+)`? \| (.*?) \| (.*?) \| .* \|$", line)
        if match and match[1] in MAY_IMPORT:
            shown[match[1]] = (match[2], match[3])
    assert shown.keys() == MAY_IMPORT.keys()
    for row, (names, may) in shown.items():
        held = {path.stem for name, path in KNOWN.items() if row_of(name) == row}
        if row != "studies":
            assert set(re.findall(r"`(\w+)`", names)) == held - {"__init__"}, row
        assert re.findall(r"\w+", may.replace("—", "")) == MAY_IMPORT[row].split(), row


def test_the_table_sees_every_way_to_import() -> None:
    for line in (
        "from umup.lab import study",
        "import umup.lab.study",
        "from umup.lab.study import work",
        "def f():\n    from umup.lab import study",
    ):
        assert offences("ops", ast.parse(line)) == ["ops imports lab.study, of lab"]
    assert offences("plan.aot", ast.parse("from umup.lab import study")) != []
    assert offences("train", ast.parse("from umup import ops\nfrom umup.config import x")) == []
    assert offences("ops", ast.parse("from umup.attic import x")) != []


def test_importing_needs_no_jax() -> None:
    """In a process of its own, as what is imported once stays."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(f'umup.{name}')\n"
        "    if found := {'jax', 'flax', 'optax'} & sys.modules.keys():\n"
        "        sys.exit(f'umup.{name} imports {sorted(found)}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *sorted(NO_JAX)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
    )
    assert done.returncode == 0, done.stderr


def test_every_third_party_import_is_declared() -> None:
    core = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    every = {canonicalize_name(r.name) for r in ranges()}
    bad = []
    for path in MODULES:
        tree = parse(path)
        tops = imported_at_the_top(tree)
        for name in imports(tree):
            package = name.split(".")[0]
            if package in sys.stdlib_module_names or package == "umup":
                continue
            dist = canonicalize_name(IMPORT_NAMES.get(package, package))
            if dist not in (core if name in tops else every):
                bad.append(f"{path.stem}: {name}")
    assert bad == []


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions and classes, and public methods of such classes, without a docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    queue: list[tuple[str, ast.stmt]] = [("", node) for node in tree.body]
    bad = []
    for prefix, node in queue:
        if not isinstance(node, kinds) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            bad.append(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            queue += [(f"{prefix}{node.name}.", child) for child in node.body]
    return bad


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree), f"{path.name} says nothing about itself"
    assert undocumented(tree) == []


def ranges() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return list(map(Requirement, lines))


def pythons() -> list[str]:
    """The versions of Python, say 3.11, among the classifiers."""
    found = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: Python :: " in c]
    assert found, "pyproject.toml names the Pythons that it is tested with"
    return found


@pytest.mark.parametrize("python", pythons())
def test_every_requirement_is_pinned_within_its_range(python: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    every = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = {"python_version": python, "python_full_version": f"{python}.0"}
    found = [r for r in every if r.marker is None or r.marker.evaluate(here)]
    pins = {canonicalize_name(r.name): r for r in found}
    assert len(pins) == len(found), "a name is pinned twice"
    for requirement in every:
        assert [s.operator for s in requirement.specifier] == ["=="], str(requirement)
    for wanted in ranges():
        pin = pins[canonicalize_name(wanted.name)]
        version = next(iter(pin.specifier)).version
        assert wanted.specifier.contains(version), f"{wanted} is pinned to {version}"


def test_the_workflow_tests_every_python_that_is_named() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == pythons()
    setups = [step["with"] for step in jobs["matrix"]["steps"] if "setup-python" in str(step)]
    assert sorted(setups[0]["python-version"].split()) == pythons()
    assert SpecifierSet(PROJECT["requires-python"]).contains(pythons()[0])


def test_jax_range_admits_the_versions_we_run_on() -> None:
    jax = next(r for r in ranges() if r.name == "jax")
    tried = ("0.10.1", "0.10.2", "0.11.0", "0.11.2", "0.12.0.1", "0.13.0")
    assert [v for v in tried if v in jax.specifier] == ["0.10.2", "0.11.0", "0.11.2", "0.12.0.1"]


def test_environment_yml_is_the_twin_of_pyproject() -> None:
    env = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [line for line in env["dependencies"] if isinstance(line, str)]
    pip = next(line["pip"] for line in env["dependencies"] if isinstance(line, dict))
    assert env["name"] == PROJECT["name"]
    assert env["channels"] == ["conda-forge"]
    extras = PROJECT["optional-dependencies"]
    ours = [*PROJECT["dependencies"], *extras["book"], *extras["dev"], *extras["slurm"]]
    assert sorted([*conda, *pip]) == sorted(
        [*ours, f"python{PROJECT['requires-python']}", "pip", "-e ."]
    )


def tracked() -> list[Path]:
    """Text files that are, or would be, committed."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    binary = {".parquet", ".png", ".ico", ".npy", ".woff2"}
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [p for p in paths if p.is_file() and p.suffix not in binary]


def test_no_index_addresses_nor_machine_paths() -> None:
    # in pieces, so that this file passes its own test
    patterns = [
        "index" + "-url",
        "find-links[= ]/",
        "py" + r"pi\.org/simple",
        "python" + r"hosted\.org",
        "registry" + r"\.npm",
        r"(?<![\w./~-])/(?:work|root|home|Users|tmp" + r"/\w)/",
    ]
    pattern = re.compile("|".join(patterns))
    bad = []
    for path in tracked():
        if path.suffix in (".parquet", ".npz", ".png"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                bad.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert bad == []


def test_ci_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_contributing_is_at_most_two_pages() -> None:
    words = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split()
    assert len(words) <= 1000


def test_there_is_a_study() -> None:
    assert ROOT / "experiments" / "lr_transfer" in STUDIES


studies = pytest.mark.parametrize("study", STUDIES, ids=lambda p: p.name)


def notebook(study: Path) -> nbformat.NotebookNode:
    return nbformat.read(study / "study.ipynb", as_version=4)


def parameters(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The one cell that is tagged `parameters`."""
    cells = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1, "papermill needs exactly one cell tagged parameters"
    return cells[0]


@studies
def test_notebook_is_in_step_with_its_source(study: Path) -> None:
    def cells(nb: nbformat.NotebookNode) -> list[tuple[str, str, dict]]:
        return [(c.cell_type, c.source, dict(c.metadata)) for c in nb.cells]

    source = jupytext.read(study / "study.py", fmt="py:percent")
    assert cells(notebook(study)) == cells(source), f"make notebook STUDY={study.name}"


@studies
def test_notebook_is_one_that_papermill_and_nbval_can_use(study: Path) -> None:
    nb = notebook(study)
    assert nb.metadata.kernelspec.name == "python3"
    assert "papermill" not in nb.metadata
    code = [c for c in nb.cells if c.cell_type == "code"]
    # nbval passes whatever a notebook without stored outputs prints
    assert any("text/plain" in o.get("data", o) or "text" in o for c in code for o in c.outputs)
    assert all(o.output_type != "error" for c in code for o in c.outputs)
    for cell in code:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        made = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, kinds)]
        assert made == [], f"logic belongs in the library: {cell.source[:80]!r}"


@studies
def test_notebook_shows_every_figure_and_stays_small(study: Path) -> None:
    assert (study / "study.ipynb").stat().st_size < 500_000, "code hosts show no larger ones"
    drawn = [c for c in notebook(study).cells if "figure" in c.metadata.get("mystnb", {})]
    assert drawn
    for cell in drawn:
        found = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
        assert len(found) == 1, cell.metadata.mystnb.figure.name
        assert base64.b64decode(found[0])[24:26] == bytes([8, 3]), "eight bits, a palette"


@studies
def test_parameters_are_typed_and_those_of_cpu_and_profiles_hold_what_differs(study: Path) -> None:
    source = parameters(notebook(study)).source
    body = ast.parse(source).body
    typed = {n.target.id for n in body if isinstance(n, ast.AnnAssign) and n.value}
    assert len(typed) == len(body), "every parameter reads `name: type = default`"
    exec(source, own := {})
    assert (own["profile"], own["mode"], own["fresh"]) == ("cpu", "load", False)
    profiles = {path.stem for path in study.glob("*.yaml")} - {"claims"}
    claims = yaml.safe_load((study / "claims.yaml").read_text(encoding="utf-8"))
    named = {claim["profile"] for claim in claims if "profile" in claim}
    assert profiles == {"smoke", "h100"} | named, "a further one is for claims of its own"
    for profile in profiles:
        values = yaml.safe_load((study / f"{profile}.yaml").read_text(encoding="utf-8"))
        assert set(values) <= typed, f"{profile}.yaml sets what the notebook has not"
        assert (values["profile"], values["mode"]) == (profile, "run"), "as papermill -f needs it"
        same = [name for name in values if values[name] == own[name]]
        assert same == [], f"{profile}.yaml repeats the notebook's own values"


@studies
def test_claims_are_written_down(study: Path) -> None:
    claims = yaml.safe_load((study / "claims.yaml").read_text(encoding="utf-8"))
    assert claims
    assert all(set(claim["bound"]) & {"min", "max"} for claim in claims)


def test_tests_add_to_the_flags_that_they_are_run_with() -> None:
    """Else a suite under, say, --xla_cpu_max_isa tests another machine than it says."""
    tests = (
        p
        for p in ROOT.glob("tests/**/*.py")
        if p.stem not in ("test_project", "test_scripts", "test_site")
    )
    outright = re.compile("[\"']--xla_")  # in what is added to others, a blank comes first
    assert [p.name for p in tests if outright.search(p.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("outer", ["--xla_cpu_max_isa=SSE4_2", None])
def test_jax_starts_with_the_outer_flags_and_leaves_them(tmp_path: Path, outer: str | None) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text("utf-8"))
    (tmp_path / "jax.py").write_text(  # what JAX would see
        "import os\nseen = []\ndef devices(): seen.append(os.environ['XLA_FLAGS'])\n"
        "def clear_caches(): pass\n"
    )
    ours = f"{outer or ''} --xla_force_host_platform_device_count=8".strip()
    (tmp_path / "test_it.py").write_text(
        "import jax, os\ndef test_it():\n"
        f"    assert jax.seen == ['{ours}']\n"
        f"    assert os.environ.get('XLA_FLAGS') == {outer!r}\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(tmp_path)}
    env |= {"UMUP_TEST_IN_HASTE": "0"} | ({"XLA_FLAGS": outer} if outer else {})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_a_skipped_browser_test_fails_where_a_browser_is_required(
    tmp_path: Path, required: str, outcome: str
) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text("utf-8"))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = browser\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.browser\ndef test_it(chromium): pass\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("PATH", "UMUP_CHROMIUM")}
    env |= {"UMUP_REQUIRE_BROWSER": required, "PATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert outcome in done.stdout
    assert "no browser: none of chromium" in done.stdout or required == "0"
