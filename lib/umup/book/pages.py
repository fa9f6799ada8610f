"""The generated parts of the book: Markdown fragments made from records, claims and the library.

Every function returns Markdown (MyST) for one page. `generate` writes all fragments into the
staging folder of the book, where the hand-written pages include them. No page has typed numbers.
"""

from __future__ import annotations

import ast
import base64
import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from umup import config
from umup.book import advice, headlines, planner_page, quotes, scale, shown, theory_page
from umup.book.markdown import table
from umup.lab import records, schemas
from umup.lab.claims import PROFILES, Verdict
from umup.lab.study import parameters
from umup.lab.study import profiles as profiles_of
from umup.plan import hardware

SOFTWARE = ("python", "jax", "jaxlib", "flax", "xla_flags")


@dataclass(frozen=True)
class Study:
    """A study as the book sees it: its name, folder, rendered notebook and its profile."""

    name: str
    folder: Path
    page: Path
    profile: str

    @property
    def notebook(self) -> dict[str, Any]:
        """The rendered notebook as a dictionary."""
        return json.loads(self.page.read_text(encoding="utf-8"))

    @property
    def title(self) -> str:
        """The first heading of the notebook, or the study's name."""
        for cell in self.notebook["cells"]:
            if found := re.search(r"^# (.+)$", "".join(cell["source"]), re.MULTILINE):
                return found[1].strip()
        return self.name


def picture(studies: Sequence[Study], folder: Path) -> str:
    """The front page's picture: the figure of the first cell tagged `picture` (else the first).

    Writes `picture.png` into `folder` and returns Markdown that shows it with its caption.
    """
    cells = [(s, c) for s in studies for c in s.notebook["cells"] if png(c)]
    cells.sort(key=lambda pair: "picture" not in pair[1]["metadata"].get("tags", []))
    if not cells:
        return "No study shows a figure yet.\n"
    study, cell = cells[0]
    (folder / "picture.png").write_bytes(base64.b64decode(png(cell)))
    caption = cell["metadata"].get("mystnb", {}).get("figure", {}).get("caption", study.title)
    caption = re.sub(r"\{glue:text\}`([^`]+)`", lambda found: _glued(found[1], study), caption)
    return (
        f"````{{figure}} _generated/picture.png\n:name: fig-picture\n:alt: {study.title}\n\n"
        f"{caption.strip()} From [{study.title}](studies/{study.name}.ipynb), "
        f"profile `{study.profile}`.\n````\n"
    )


def _glued(key: str, study: Study) -> str:
    """A reference from another page to a value glued in a study, with its notebook and a format."""
    key = key if "::" in key else f"studies/{study.name}.ipynb::{key}"
    return f"{{glue:text}}`{key}`" if ":" in key.split("::")[1] else f"{{glue:text}}`{key}:s`"


def png(cell: Mapping[str, Any]) -> str:
    """The last PNG among a cell's outputs, base64, or an empty string."""
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    images = [d["image/png"] for d in data if "image/png" in d]
    return "".join(images[-1]) if images else ""


def read_records(experiments: Path) -> pd.DataFrame:
    """All committed records of all studies and profiles, smoke excepted; stale ones included.

    Runs and points; the columns of runs alone are NaN in points.
    """
    folders = sorted(p for p in experiments.glob("*/records/*") if p.is_dir() and p.name != "smoke")
    frames = []
    for store in map(records.Store, folders):
        # A point has no status: it is recorded when it ended, whatever it found.
        frames += [store.read(), store.points.read().assign(status="ok")]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return pd.DataFrame(columns=list(schemas.RUNS.columns))
    return pd.concat(frames, ignore_index=True)


def status(runs: pd.DataFrame) -> str:
    """The provenance of the records: counts, hardware, versions, commits, stale records."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("jax", "jaxlib", "flax", "optax"))
    now = (
        f"This copy of umup ({_version('umup')}) has numerics version **{config.NUMERICS}**. The "
        f"site was built with Python {platform.python_version()}, {versions}.\n\n"
    )
    if runs.empty:
        return now + "No records are committed yet.\n"
    rows, made = [], []
    for (study, profile), group in runs.groupby(["study", "profile"], sort=True):
        old = len(records.stale(group))
        kinds = group["status"].value_counts()
        days = sorted(datetime.fromisoformat(c).strftime("%Y-%m-%d") for c in group["created"])
        span = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
        numbers = len(group), kinds.get("ok", 0), kinds.get("diverged", 0)
        rows.append([f"`{study}`", f"`{profile}`", *numbers, f"**{old}**" if old else 0, span])
        columns = ["device", "device_count", *SOFTWARE, "git_commit", "git_dirty"]
        for values, part in group.groupby(columns, sort=True, dropna=False):
            v = dict(zip(columns, values, strict=True))
            software = ", ".join(f"{name} {v[name]}" for name in SOFTWARE if v[name])
            commit = f"`{v['git_commit'][:10]}`" + (" with changes" if v["git_dirty"] else "")
            hardware = f"{v['device_count']} × {v['device']}"
            made.append([f"`{study}`, `{profile}`", hardware, software, commit, len(part)])
    stale = records.stale(runs)
    last = "No record is stale.\n"
    if not stale.empty:
        versions = ", ".join(map(str, sorted(stale["numerics"].unique())))
        last = (
            f"Stale records: {len(stale)}, with numerics version {versions}. "
            "Run their studies again.\n"
        )
    dirty = int(runs["git_dirty"].fillna(False).astype(bool).sum())
    if dirty:
        last += (
            "\n*With changes* stands where the tree had changes that were not committed: a commit "
            f"alone does not say what code made {dirty:,} of {len(runs):,} records. Their keys and "
            "the version of the numerics still fix what was computed.\n"
        )
    counts = table(["study", "profile", "runs", "ok", "diverged", "stale", "measured"], rows)
    header = ["records", "hardware", "software", "commit", "runs"]
    return f"{now}## Records\n\n{counts}\n{last}\n## Made with\n\n{table(header, made)}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def prices() -> dict[str, float]:
    """US dollars per hour by machine, of those that `umup.plan.hardware` has a price for."""
    known = hardware.catalogue()
    return {name: machine.usd_per_hour for name, machine in known.items() if machine.usd_per_hour}


def costs(runs: pd.DataFrame, per_hour: Mapping[str, float]) -> str:
    """Time and dollars of each study, profile and device: sums of the runs' wall times.

    A run's dollars are hours · devices · price of the first name in `per_hour` that occurs in its
    device; a device without a price gets a dash.
    """
    if runs.empty:
        return "No records are committed yet.\n"
    rows = []
    groups = runs.groupby(["study", "profile", "device", "device_count"], sort=True)
    for (study, profile, device, count), group in groups:
        hours = float(group["wall_s"].sum()) / 3600
        price = next((p for name, p in per_hour.items() if name in str(device).lower()), None)
        dollars = ["–", "–"] if price is None else [f"{price:.2f}", f"{hours * count * price:.2f}"]
        hardware = f"{count} × {device}"
        row = [f"`{study}`", f"`{profile}`", hardware, len(group), f"{hours:.2f}", *dollars]
        rows.append(row)
    header = ["study", "profile", "hardware", "runs", "device-hours", "$ per hour", "$ in total"]
    return table(header, rows)


def profiles(folder: Path) -> str:
    """The parameters of a study's profiles, side by side."""
    order = ("smoke", *reversed(PROFILES))
    names = sorted(profiles_of(folder), key=lambda n: order.index(n) if n in order else 9)
    values = {n: parameters(folder, n) for n in names}
    keys = dict.fromkeys(key for v in values.values() for key in v)
    rows = [[f"`{k}`", *(_plain(values[n].get(k)) for n in names)] for k in keys]
    return table(["parameter", *names], rows, "wrap")


def _plain(value: object) -> str:
    if value is None:
        return "default"
    return json.dumps(value, ensure_ascii=False).strip('"').replace("*", r"\*").replace("_", r"\_")


def data_sheet(runs: pd.DataFrame) -> str:
    """The registry of corpora, and the data sheet of each corpus and tokenizer in the records."""
    from umup import data
    from umup.data import corpora

    trained = runs[runs["scheme"].notna()]
    specs = [json.loads(spec) for spec in trained["spec"].drop_duplicates()]
    used = sorted({(s["corpus"], s["tokenizer"]) for s in specs}) or [("sotu", "bytes")]
    cards = [demote(data.card(corpus, tokenizer), 2) for corpus, tokenizer in used]
    rows = []
    for row in corpora.list_table():
        size = f"{row['bytes']:,}" if isinstance(row["bytes"], int) else row["bytes"]
        about = f"<small>{row['licence']}; {row['source']}. Needs {row['needs']}.</small>"
        rows.append([f"`{row['corpus']}`", f"{row['title']}<br>{about}", size])
    registry = table(["corpus", "text", "bytes"], rows, "wrap")
    return "\n\n".join([*cards, "## Corpora that can be used", registry])


def demote(markdown: str, level: int) -> str:
    """Shift headings so that the highest is of `level`, outside fenced code."""
    out, fenced, shift = [], False, None
    for line in markdown.splitlines():
        fenced ^= line.lstrip().startswith("```")
        found = re.match(r"(#+) ", line)
        if found and not fenced:
            shift = level - len(found[1]) if shift is None else shift
            line = "#" * max(level, len(found[1]) + shift) + line[len(found[1]) :]
        out.append(line)
    return "\n".join(out)


def _first_paragraph(path: Path) -> str:
    """The first paragraph of a module's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def api(package: Path, folder: Path) -> str:
    """Write a reference page per package into `folder`, and one of the modules outside packages.

    Returns:
        The table of pages, with the first paragraph of each package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for home in (package, *sorted(path.parent for path in package.glob("*/__init__.py"))):
        name = ".".join(home.relative_to(package.parent).parts)
        rooms = [f"{name}.{p.stem}" for p in sorted(home.glob("*.py")) if p.stem[0] != "_"]
        # What umup itself exports is documented in its defining module, since link targets must be
        # unique.
        own = "\n   :no-members:" if home == package else ""
        page = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}{own}\n```\n"
        for room in rooms:
            page += f"\n## {room}\n\n```{{eval-rst}}\n.. automodule:: {room}\n```\n"
        (folder / f"{name}.md").write_text(page, encoding="utf-8")
        rows.append([f"[`{name}`](api/{name}.md)", _first_paragraph(home / "__init__.py")])
    return table(["package", "its job"], rows, "wrap")


def generate(root: Path, staging: Path, studies: Sequence[Study]) -> None:
    """Write every fragment into `staging/_generated`, and the reference pages into `staging/api`.

    Args:
        root: the checkout.
        staging: the copied book sources, executed studies included.
        studies: what was rendered.
    """
    from umup.book import (
        board,
        composer_page,
        curves_page,
        examples,
        front,
        h100_page,
        logbook,
    )
    from umup.lab import claims

    folder = staging / "_generated"
    folder.mkdir(parents=True, exist_ok=True)
    runs = read_records(root / "experiments")
    verdicts = claims.board(root / "experiments")
    found = board.collect(root, staging, verdicts, studies, runs)
    on_template(root, staging, studies, runs, verdicts, found)
    for study in studies:
        curves_page.generate(
            study.folder, study.profile, study.page, staging / "curves", staging / board.SITE
        )
    fragments = {
        "front": front.page(verdicts, runs, prices()),
        "picture": picture(studies, folder),
        **advice.fragments(verdicts),
        **theory_page.fragments(),
        "data": data_sheet(runs),
        "costs": costs(runs, prices()),
        "status": status(runs),
        "log": logbook.page(runs, verdicts, studies),
        "h100": h100_page.page(root / "experiments"),
        "modules": api(Path(__file__).parents[1], staging / "api"),
    }
    for name, text in fragments.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    board.generate(root, staging, found, studies)
    quotes.generate(staging, verdicts)
    planner_page.generate(staging)
    composer_page.generate(staging, verdicts)
    examples.generate(staging)


def on_template(
    root: Path,
    staging: Path,
    studies: Sequence[Study],
    runs: pd.DataFrame,
    verdicts: Sequence[Verdict],
    found: Sequence[Mapping[str, Any]],
) -> None:
    """Put every study's page on the template; the site carries its notebook to download.

    Args:
        root: the checkout. staging: the copied book. studies: what was rendered.
        runs: all records. verdicts: the whole board. found: the same, of `board.collect`.
    """
    from umup.book import board, study_page

    by_path = {f"{v.study}/{v.id}": v for v in verdicts}
    site = staging / board.SITE
    (site / "notebooks").mkdir(parents=True, exist_ok=True)
    for study in studies:
        notebook = f"notebooks/{study.name}.ipynb"
        shutil.copy(study.folder / "study.ipynb", site / notebook)
        own = runs[runs["study"] == study.name]
        names = sorted(f"records/{study.name}-{profile}.csv" for profile in own["profile"].unique())
        extras = study_page.Extras(
            title=headlines.title(study.name, by_path),
            claims=[one for one in found if one["study"] == study.name],
            scale=scale.measure(own, prices()),
            gaps=shown.gaps(study.folder, study.profile),
            parameters=profiles(study.folder),
            notebook=notebook,
            records=names,
            repository=board.repository(root),
        )
        study_page.shape(study.page, study.name, extras, by_path)
