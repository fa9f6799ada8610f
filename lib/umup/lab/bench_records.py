"""Records of `umup bench`, one JSON file a run of it, and the tables made from them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from umup import files
from umup.config import digest
from umup.errors import RecordError
from umup.text import markdown

SCHEMA = 1
PARTS = ("step", "lanes", "compile", "memory", "probes")
RECORDS = Path("bench") / "records"
PROBE_EVERY = 50  # steps between two looks, for what probes cost
_KEYS = {"schema", "numerics", "plan", "notes", "machine", "measurements", "provenance"}
_NAMES = {
    "unrolled": "umup, layers unrolled",
    "scanned": "umup, layers scanned",
    "pytorch": "PyTorch unit_scaling",
    "umup": "umup",
}


def save(run: Mapping[str, Any], folder: Path) -> Path:
    """Write one bench run as a new file, whole or not at all, and return its path.

    Raises:
        RecordError: the folder cannot be written; earlier records are intact.
    """
    day = run["provenance"]["created"][:10]
    path = folder / f"{day}-{digest(run)}.json"
    text = json.dumps(run, indent=1, allow_nan=False) + "\n"
    intact = "earlier records are intact; --records FOLDER chooses another folder"
    with files.writing(path, RecordError, intact), files.atomic_write(path) as file:
        file.write(text.encode())
    return path


def load_records(folder: Path) -> list[dict[str, Any]]:
    """Every bench run in ``folder``, oldest first; none where there is no folder.

    Raises:
        RecordError: a file is cut short, not a bench run or of another schema.
    """
    runs = []
    for path in sorted(folder.glob("*.json")):
        todo = f"a bench run of schema {SCHEMA}; move the file away and run `umup bench` again"
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(str(path), f"unreadable JSON ({error})", todo) from error
        if not isinstance(run, dict) or set(run) != _KEYS or run["schema"] != SCHEMA:
            received = run.get("schema") if isinstance(run, dict) else type(run).__name__
            raise RecordError(str(path), f"schema {received}", todo)
        runs.append(run)
    return sorted(runs, key=lambda run: run["provenance"]["created"])


def page(folder: Path = RECORDS) -> str:
    """The Markdown of the book's page: tables of the committed bench runs, the quick ones left out.

    Raises:
        RecordError: see `load_records`.
    """
    runs = [run for run in load_records(folder) if not run["plan"]["quick"]]
    return table(runs) if runs else "Nothing is measured yet. `umup bench` measures and records.\n"


def table(records: Iterable[Mapping[str, Any]]) -> str:
    """Markdown tables of bench runs: by machine and profile, of each part the newest run with it.

    A cell of times is the median of the samples with their range; a ratio is the median of the
    ratios of neighbouring samples, ours to PyTorch's, below 1 where ours is faster.
    """
    machines: dict[str, list[Mapping[str, Any]]] = {}
    for run in sorted(records, key=lambda run: run["provenance"]["created"]):
        machines.setdefault(_title(run), []).append(run)
    out = []
    for title, runs in machines.items():
        out.append(f"## {title}\n")
        for part in PARTS:
            having = [run for run in runs if _of(run, part)]
            if having:
                out.append(_SECTIONS[part](having[-1]) + "\n\n" + _source(having[-1], part) + "\n")
    return "\n".join(out)


def _title(run: Mapping[str, Any]) -> str:
    device, machine = run["provenance"]["device"], run["machine"]
    cpu = f"{machine['name']}, {machine['cores']} cores"
    name = cpu if device.lower() == "cpu" else f"{run['provenance']['device_count']} × {device}"
    return f"{name}, {run['plan']['dtype']}"


def _of(run: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    return [m for m in run["measurements"] if m["kind"] == kind]


def _source(run: Mapping[str, Any], part: str) -> str:
    made, plan = run["provenance"], run["plan"]
    names = ("python", "jax", "jaxlib", "flax", "torch", "unit-scaling")
    software = ", ".join(f"{name} {made[name]}" for name in names if name in made)
    commit = made["git_commit"][:10] + (" with changes" if made["git_dirty"] else "")
    load = [m["others"] for m in _of(run, "load") if m["part"] == part and m["others"] is not None]
    busy = f"; other processes took {load[0]:.0%} of the CPU" if load else ""
    shape = (
        f"N = {plan['n_layers']}, d_ff = {plan['ff_ratio']}·d_model, V = {plan['vocab_size']}, "
        f"T = {plan['seq_len']}, batch {plan['batch_size']}, {plan['dtype']}"
    )
    notes = "".join(f" {note}" for note in run["notes"])
    return f"*{shape}. {made['created'][:10]}, commit {commit}, {software}{busy}.{notes}*"


def _spread(values: Sequence[float], digits: int = 3) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{_number(middle, digits)} ({_number(low, digits)}–{_number(high, digits)})"


def _number(value: float, digits: int = 3) -> str:
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours to theirs, sample by sample as they alternated."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def _step(run: Mapping[str, Any]) -> str:
    gemms = sorted(_of(run, "gemm"), key=lambda m: -m["gflops"])
    best, steps = gemms[0], _of(run, "step")
    sides = list(steps[0]["ms"])
    ours = [side for side in sides if side != "pytorch"]
    compared = ours if "pytorch" in sides else []
    rows = []
    for m in steps:
        fast = min(statistics.median(m["ms"][side]) for side in ours)
        share = m["flops"] / (fast * 1e-3) / (best["gflops"] * 1e9)
        rows.append(
            [
                str(m["d_model"]),
                *(_spread(m["ms"][side]) for side in sides),
                *(
                    f"**{statistics.median(r):.2f}** ({min(r):.2f}–{max(r):.2f})"
                    for side in compared
                    for r in [ratios(m["ms"][side], m["ms"]["pytorch"])]
                ),
                f"{m['tokens'] / (fast * 1e-3):,.0f}",
                f"{share:.0%}",
            ]
        )
    header = [
        "width",
        *(f"{_NAMES[side]}, ms" for side in sides),
        *(f"ratio, {side}" for side in compared),
        "tokens/s",
        "share of GEMM peak",
    ]
    firsts = {m["library"]: m for m in reversed(gemms)}  # the best of each library
    peaks = ", ".join(
        f"{m['library']} {_number(m['gflops'], 4)} ({m['size']}³)"
        for m in gemms
        if firsts[m["library"]] is m
    )
    peak = (
        f"Best {best['dtype']} matrix products of this run, GFLOP/s: {peaks}; the share is of the "
        "highest. Tokens/s and share are of the faster of our two."
    )
    if {"jax", "torch"} <= set(firsts):  # so that a reader can tell the library from the machine
        products = firsts["torch"]["gflops"] / firsts["jax"]["gflops"]
        peak += f" The best product takes JAX **{products:.2f}** of PyTorch's time."
    return f"### A training step\n\n{markdown(header, rows)}\n\n{peak}"


def _lanes(run: Mapping[str, Any]) -> str:
    rows, found = [], _of(run, "lanes")
    for m in found:
        at_once = f"one program, {m['at_once']} at once"
        whole = m["run_s"] + m["compile_s"]
        rows.append(
            [
                at_once if m["at_once"] else f"{m['lanes']} separate runs",
                _number(m["compile_s"]),
                _number(m["run_s"]),
                _number(m["lanes"] / m["run_s"]),
                _number(m["lanes"] / whole),
            ]
        )
    text = f"{found[0]['lanes']} runs of {found[0]['steps']} steps at width {found[0]['d_model']}."
    header = ["", "compiling, s", "running, s", "lanes/s", "lanes/s, compiling counted"]
    return f"### A sweep of lanes\n\n{text}\n\n{markdown(header, rows)}"


def _compile(run: Mapping[str, Any]) -> str:
    rows = [
        [str(m["n_layers"]), f"{m['trace_s']:.2f}", f"{m['compile_s']:.2f}"]
        for m in _of(run, "compile")
    ]
    width = _of(run, "compile")[0]["d_model"]
    head = f"### Compile time against depth\n\nWidth {width}, layers scanned."
    return f"{head}\n\n{markdown(['layers', 'tracing, s', 'compiling, s'], rows)}"


def _memory(run: Mapping[str, Any]) -> str:
    rows = []
    for m in _of(run, "memory"):
        device = "–" if m["device_mib"] is None else f"{m['device_mib']:,.0f}"
        rows.append(
            [
                _NAMES[m["side"]],
                str(m["d_model"]),
                f"{m['import_mib']:,.0f}",
                f"{m['peak_mib']:,.0f}",
                device,
            ]
        )
    header = ["", "width", "after import, MiB", "peak, MiB", "peak on the device, MiB"]
    text = "Resident memory, a process each, compilation included."
    return f"### Peak memory\n\n{text}\n\n{markdown(header, rows)}"


def _probes(run: Mapping[str, Any]) -> str:
    rows = [
        [
            str(m["d_model"]),
            _spread(m["step_ms"]),
            _spread(m["look_ms"]),
            f"{100 * statistics.median(r):.1f} % ({100 * min(r):.1f}–{100 * max(r):.1f})",
        ]
        for m in _of(run, "probes")
        for r in [[x / PROBE_EVERY for x in ratios(m["look_ms"], m["step_ms"])]]
    ]
    head = "### Probes\n\nA look at every tensor, and what it adds to a step on average."
    header = ["width", "step, ms", "look, ms", f"cost, a look every {PROBE_EVERY} steps"]
    return f"{head}\n\n{markdown(header, rows)}"


_SECTIONS = {
    "step": _step,
    "lanes": _lanes,
    "compile": _compile,
    "memory": _memory,
    "probes": _probes,
}
