"""`umup new-study`: all or nothing, and a chapter that can be followed word for word."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from umup import cli, machine
from umup.book import new_study
from umup.errors import BookError, StudyError

ROOT = Path(__file__).resolve().parent.parent
INSIDE = (
    "study.py",
    "study.ipynb",
    "smoke.yaml",
    "h100.yaml",
    "claims.yaml",
    "design.py",
    "results.py",
    "figures.py",
    "words.py",
)
CONTENTS = """format: jb-book
parts:
  - caption: Studies   # in this order
    chapters:
      - file: studies/one
      - file: studies/two

  - caption: Evidence
    chapters:
      - file: data
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """The folders of a checkout, and a smoke run that is only pretended."""
    for folder in ("book", "experiments", "tests/studies"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "book" / "_toc.yml").write_text(CONTENTS, encoding="utf-8")

    def pretend(folder: Path, cwd: Path) -> None:
        assert folder == cwd / "experiments" / folder.name  # so that the kernel finds its code
        (folder / "study.ipynb").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(new_study, "_try_out", pretend)
    return tmp_path


def tree(root: Path) -> dict[str, str]:
    """Every file under `root` and its content; folders end in a slash."""
    return {
        f"{p.relative_to(root)}{'/' * p.is_dir()}": "" if p.is_dir() else p.read_text("utf-8")
        for p in root.rglob("*")
    }


def create(root: Path, name: str = "mine", title: str | None = None) -> list[Path]:
    return new_study.create(root, name, title, say=lambda _: None)


def test_everything_has_its_place_and_the_page_follows_the_last_study(checkout):
    before = tree(checkout)
    made = create(checkout, "my_own", "  Is it so?  ")
    after = tree(checkout)
    assert set(after) - set(before) == {
        "experiments/my_own/",
        *(f"experiments/my_own/{name}" for name in INSIDE),
        "tests/studies/test_my_own.py",
    }
    listed = ["experiments/my_own", "tests/studies/test_my_own.py", "book/_toc.yml"]
    assert [str(path) for path in made] == listed
    listed = CONTENTS.replace("studies/two\n", "studies/two\n      - file: studies/my_own\n")
    assert after["book/_toc.yml"] == listed
    source = after["experiments/my_own/study.py"]
    assert "# # Is it so?\n" in source and 'run_or_load("my_own", ' in source
    assert '"fig-my-own-by-lr"' in source and "- id: my-own-" in after[f"{made[0]}/claims.yaml"]
    new = [text for path, text in after.items() if "my_own" in path]
    assert not [text for text in new if re.search("@[A-Z]+@", text)]


def test_where_umup_is_only_installed_a_study_is_its_folder(checkout):
    shutil.rmtree(checkout / "book")
    shutil.rmtree(checkout / "tests")
    assert create(checkout) == [Path("experiments", "mine")]
    assert set(tree(checkout)) == {
        "experiments/",
        "experiments/mine/",
        *(f"experiments/mine/{name}" for name in INSIDE),
    }


def test_a_sweep_with_its_claims_takes_at_most_150_lines(checkout):
    create(checkout)
    own = ("design.py", "results.py", "figures.py", "words.py", "claims.yaml")
    texts = [(checkout / "experiments" / "mine" / name).read_text("utf-8") for name in own]
    assert sum(text.count("\n") for text in texts) <= 150


def test_the_title_is_the_name_in_words_by_default(checkout):
    create(checkout, "weight_decay")
    source = (checkout / "experiments" / "weight_decay" / "study.py").read_text("utf-8")
    assert "# # Weight decay\n" in source


@pytest.mark.parametrize("name", ["a", "a" * new_study.MAX_NAME])
def test_the_linter_accepts_short_and_long_names(checkout, name):
    create(checkout, name)
    shutil.copy(ROOT / "pyproject.toml", checkout)
    shutil.copy(ROOT / "experiments" / "ruff.toml", checkout / "experiments")
    ours = 'lint.isort.known-first-party = ["umup", "synthetic"]'  # whose modules are not here
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", ours, "."]
        done = subprocess.run(ruff, capture_output=True, text=True, cwd=checkout)
        assert done.returncode == 0, done.stdout + done.stderr


BAD_NAMES = ("", "Mine", "9x", "a-b", "a b", "../x", "é", "class", "a\n", "a" * 41)


@pytest.mark.parametrize(
    ("name", "title", "field"),
    [
        *((name, None, "name") for name in BAD_NAMES),
        *(("mine", title, "title") for title in ("", "  ", "two\nlines", "a\x00b")),
    ],
)
def test_bad_names_and_titles_are_refused(checkout, name, title, field):
    before = tree(checkout)
    with pytest.raises(StudyError, match=f"^{field}: received"):
        create(checkout, name, title)
    assert tree(checkout) == before


@pytest.mark.parametrize("taken", ["experiments/mine/", "tests/studies/test_mine.py"])
def test_what_exists_is_left_alone(checkout, taken):
    path = checkout / taken
    path.mkdir() if taken.endswith("/") else path.write_text("mine", encoding="utf-8")
    before = tree(checkout)
    with pytest.raises(StudyError, match=f"name: received 'mine'.*{taken.rstrip('/')} exists"):
        create(checkout)
    assert tree(checkout) == before


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        ("parts:\n  - caption: Evidence\n", "a line `- file: studies/NAME`"),
        (CONTENTS.replace("studies/two", "studies/mine"), "received 'studies/mine'"),
    ],
)
def test_a_table_of_contents_without_studies_or_with_this_one(checkout, contents, told):
    (checkout / "book" / "_toc.yml").write_text(contents, encoding="utf-8")
    before = tree(checkout)
    with pytest.raises(BookError, match=f"_toc.yml: .*{told}"):
        create(checkout)
    assert tree(checkout) == before


@pytest.mark.parametrize("problem", [StudyError("cell", "x", "y"), KeyboardInterrupt()])
def test_a_smoke_run_that_fails_or_is_interrupted_leaves_nothing(checkout, monkeypatch, problem):
    def fail(folder: Path, cwd: Path) -> None:
        raise problem

    monkeypatch.setattr(new_study, "_try_out", fail)
    before = tree(checkout)
    with pytest.raises(type(problem)):
        create(checkout)
    assert tree(checkout) == before


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("problem", [OSError(errno.EROFS, "Read-only"), KeyboardInterrupt()])
def test_a_move_that_fails_is_taken_back(checkout, monkeypatch, number, problem):
    before, moves = tree(checkout), []

    def failing(real):
        def move(source, target):
            moves.append(str(target))
            if len(moves) == number:
                if isinstance(problem, OSError):
                    problem.filename = str(target)
                raise problem
            return real(source, target)

        return move

    monkeypatch.setattr(Path, "rename", failing(Path.rename))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    wanted = StudyError if isinstance(problem, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as caught:
        create(checkout)
    if wanted is StudyError:
        assert moves[-1] in str(caught.value) and "nothing was made" in str(caught.value)
    assert len(moves) == number and tree(checkout) == before


def test_a_checkout_that_cannot_be_written(checkout, monkeypatch):
    def refuse(suffix, prefix, folder) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    told = rf"folder: received '{checkout}'; allowed: .*\(Permission denied\); nothing was made"
    with pytest.raises(StudyError, match=told):
        create(checkout)


def test_its_place_is_the_folder_experiments_around_the_current_folder(checkout, tmp_path_factory):
    assert new_study.home(checkout / "tests" / "studies") == checkout
    with pytest.raises(StudyError, match=r"folder: received .*holds a folder `experiments`"):
        new_study.home(tmp_path_factory.mktemp("elsewhere"))


def test_the_command_tells_one_line_or_the_next_steps(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout / "book")
    assert cli.main(["new-study", "9x"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("umup: name: received '9x'") and err.count("\n") == 1
    assert cli.main(["new-study", "mine", "--title", "Is it so?"]) == 0
    out = capsys.readouterr().out
    assert "experiments/mine/design.py" in out and "umup run mine --profile cpu" in out


# --- the chapter ----------------------------------------------------------------------------------

BLOCK = re.compile(r"^```(.*)\n(?::caption: (.*)\n\n)?([\s\S]*?)^```$", re.MULTILINE)
BOARD = """
import json
from pathlib import Path
from umup.book import board, board_page, pages, site
from umup.lab import claims

root = Path.cwd()
folder = site.study_folders(root)[-1]
page = root / "book" / "_build" / "runs" / f"{folder.name}-cpu.ipynb"
study = pages.Study(folder.name, folder, page, site.best_profile(folder))
verdicts = claims.board(root / "experiments")
print(json.dumps({
    "study": [study.name, study.profile, study.title],
    "verdicts": {v.id: v.verdict for v in verdicts if v.study == folder.name},
    "board": board_page.page(board.entries(verdicts, [study]), {study.name: study.title}),
    "status": pages.status(pages.read_records(root / "experiments")),
}))
"""


@pytest.fixture
def copy(tmp_path) -> Path:
    """What of the checkout a study needs, with one study in it, as a repository of its own."""
    for folder in ("lib/umup", "experiments/lr_transfer"):
        ignored = shutil.ignore_patterns("__pycache__", "records")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for name in (
        ".gitignore",
        "pyproject.toml",
        "experiments/ruff.toml",
        "tests/conftest.py",
        "tests/synthetic.py",
        "tests/test_project.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "tests" / "studies").mkdir()
    (tmp_path / "book").mkdir()
    contents = (ROOT / "book" / "_toc.yml").read_text("utf-8")
    others = r"^\s*- file: studies/(?!lr_transfer$)\w+\n"
    contents = re.sub(others, "", contents, flags=re.MULTILINE)
    (tmp_path / "book" / "_toc.yml").write_text(contents, encoding="utf-8")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


@pytest.mark.slow
def test_the_chapter_can_be_followed_word_for_word(copy):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Most of the time is XLA's: these programs are run too little to be worth its care.
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(copy / "lib")}
    environment |= {"XLA_FLAGS": machine.in_haste()}

    def run(*command: str, given: str | None = None) -> str:
        done = subprocess.run(
            command, input=given, cwd=copy, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{given}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def shell(commands: str) -> str:
        return run("bash", "-euo", "pipefail", given=commands)

    chapter = (ROOT / "book" / "own-study.md").read_text("utf-8")
    blocks = [found.groups() for found in BLOCK.finditer(chapter)]
    scripts = [body for kind, _, body in blocks if kind == "sh"]
    made, checks, committed = scripts[0], scripts[-2], scripts[-1]
    for kind, caption, body in blocks:
        if kind == "sh":
            shell(body)
        elif kind == "diff":
            run("git", "apply", "--recount", "-", given=body)
        elif caption:
            (copy / caption).write_text(body, encoding="utf-8")
        if body == made:  # the template as it is passes, before anything of it is changed
            shell(checks)
    assert checks.startswith("pytest") and committed.startswith("git add")

    folder = copy / "experiments" / "batch_size"
    staged = set(run("git", "diff", "--cached", "--name-only").split())
    records = {name for name in staged if "/records/" in name}
    assert {Path(name).suffix for name in records} == {".parquet"}
    assert staged - records == {
        *(f"experiments/batch_size/{path.name}" for path in folder.iterdir() if path.is_file()),
        "tests/studies/test_batch_size.py",
        "book/_toc.yml",
    }
    ours = sorted(name for name in staged if name.endswith(".py"))
    run(sys.executable, "-m", "ruff", "check", "--no-cache", *ours)
    run(sys.executable, "-m", "ruff", "format", "--check", "--no-cache", *ours)

    said = json.loads(run(sys.executable, "-c", BOARD))
    title = "Does the best learning rate follow the batch size?"
    assert said["study"] == ["batch_size", "cpu", title]
    assert len(said["verdicts"]) == 3 and "not measured" not in said["verdicts"].values()
    assert f'<a href="studies/batch_size.html">{title}</a>' in said["board"]
    figure = '<a href="studies/batch_size.html#fig-batch-size-by-lr">figure</a>'
    assert said["board"].count(figure) == 2
    assert "| `batch_size` | `cpu` |" in said["status"]
