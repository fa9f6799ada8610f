"""The bench counts, records, renders and refuses as it says; nothing here is timed."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from umup import cli, command, machine
from umup.config import ModelConfig, canonical_json
from umup.errors import RecordError
from umup.lab import bench, bench_records, bench_torch


def plan_of(**changes) -> dict:
    return json.loads(canonical_json(bench.Plan(**changes)))


def a_run(created: str = "2026-01-02T03:04:05+00:00", **changes) -> dict:
    """A bench run with round numbers: 1 TFLOP/s of peak, ours at half of PyTorch's time."""
    step = {
        "part": "step",
        "kind": "step",
        "d_model": 64,
        "n_heads": 2,
        "n_params": 1000,
        "tokens": 2048,
        "flops": 5_000_000_000,
        "ms": {"unrolled": [10.0, 11.0, 9.0], "scanned": [20.0] * 3, "pytorch": [20.0, 20.0, 30.0]},
    }
    gemms = [
        {
            "part": "step",
            "kind": "gemm",
            "library": library,
            "dtype": "float32",
            "size": size,
            "gflops": gflops,
        }
        for library, size, gflops in (
            ("jax", 512, 800.0),
            ("numpy", 512, 1000.0),
            ("jax", 1024, 700.0),
        )
    ]
    lanes = [
        {
            "part": "lanes",
            "kind": "lanes",
            "d_model": 32,
            "lanes": 8,
            "steps": 10,
            "at_once": at_once,
            "compile_s": compile_s,
            "run_s": 4.0,
        }
        for at_once, compile_s in ((0, 12.0), (2, 0.0))
    ]
    run = {
        "schema": bench_records.SCHEMA,
        "numerics": 1,
        "plan": plan_of(),
        "notes": [],
        "machine": {"name": "Abacus", "cores": 2},
        "measurements": [*gemms, step, {"part": "step", "kind": "load", "others": 0.25}, *lanes],
        "provenance": {
            "device": "cpu",
            "device_count": 1,
            "jax": "0.10.2",
            "jaxlib": "0.10.2",
            "flax": "0.12.8",
            "python": "3.11.0",
            "torch": "2.13.0",
            "git_commit": "0123456789ab",
            "git_dirty": True,
            "created": created,
        },
    }
    return {**run, **changes}


def row(text: str, first: str) -> list[str]:
    """The cells of the only table row that starts with ``first``."""
    (line,) = [x for x in text.splitlines() if x.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_step_flops_by_hand() -> None:
    model = ModelConfig(
        d_model=4, d_head=2, n_layers=3, d_ff=5, vocab_size=7, seq_len=2, base_d_head=2
    )
    # A layer: q, k, v, out 4·4·4 = 64; gate, up, down 3·4·5 = 60. Readout 4·7 = 28.
    weights = 3 * (64 + 60) + 28
    # A token and layer: q·k 2·T·D = 16, weights·v 16; times 3 with the backward pass.
    attention = 3 * 3 * (16 + 16)
    assert model.step_flops(batch_size=10) == 20 * (6 * weights + attention)


def test_the_issue_s_shape_is_what_is_measured() -> None:
    plan = bench.Plan()
    shapes = [plan.model(width) for width in plan.widths]
    assert [m.d_model for m in shapes] == [32, 64, 128, 256]
    assert [m.n_heads for m in shapes] == [2, 2, 4, 8]
    assert {m.d_ff / m.d_model for m in shapes} == {4}
    assert {(m.n_layers, m.vocab_size, m.seq_len, m.dtype) for m in shapes} == {
        (4, 512, 128, "float32")
    }
    assert plan.run(shapes[0]).optim.batch_size == 16
    # At 256: 4·(4·256² + 3·256·1024) + 256·512 weights, 2048 tokens.
    weights = 4 * (262_144 + 786_432) + 131_072
    attention = 12 * 4 * 128 * 256
    assert shapes[3].step_flops(16) == 2048 * (6 * weights + attention)


def test_records_make_the_round_trip(tmp_path: Path) -> None:
    second, first = a_run("2026-01-03T00:00:00+00:00"), a_run()
    for run in (second, first):
        path = bench.save(run, tmp_path / "deep" / "records")
        assert path.name.startswith(run["provenance"]["created"][:10])
    assert bench.load_records(path.parent) == [first, second]  # oldest first
    assert [p.suffix for p in path.parent.iterdir()] == [".json", ".json"]  # nothing temporary


def test_no_folder_is_no_records(tmp_path: Path) -> None:
    assert bench.load_records(tmp_path / "absent") == []
    assert "umup bench" in bench.page(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps(a_run())[:200], "unreadable JSON"),
        ("[1, 2]", "schema list"),
        (json.dumps(a_run(schema=99)), "schema 99"),
        (json.dumps({k: v for k, v in a_run().items() if k != "machine"}), "schema 1"),
    ],
    ids=["cut short", "a list", "another schema", "a key missing"],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=says) as caught:
        bench.load_records(tmp_path)
    assert caught.value.field.endswith("bad.json")


def test_a_full_disk_leaves_earlier_records_whole(tmp_path: Path, monkeypatch) -> None:
    bench.save(a_run(), tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RecordError, match="No space left"):
        bench.save(a_run("2027-01-01T00:00:00+00:00"), tmp_path)
    assert bench.load_records(tmp_path) == [a_run()]
    assert len(list(tmp_path.iterdir())) == 1


def test_the_step_table_says_medians_ratios_and_share() -> None:
    text = bench.table([a_run()])
    cells = row(text, "64")
    assert cells[1:4] == ["10 (9–11)", "20 (20–20)", "20 (20–30)"]
    # Pair by pair: 10/20, 11/20, 9/30 and 20/20, 20/20, 20/30.
    assert cells[4:6] == ["**0.50** (0.30–0.55)", "**1.00** (0.67–1.00)"]
    # The faster of ours, 10 ms: 2048 tokens, and 5 GFLOP of a peak of 10 (numpy's, not jax's).
    assert cells[6:] == ["204,800", "50%"]
    assert "numpy 1000 (512³), jax 800 (512³)" in text
    assert "other processes took 25% of the CPU" in text
    assert "0123456789 with changes" in text and "torch 2.13.0" in text


def test_the_ratio_of_products_stands_beside_the_ratio_of_steps() -> None:
    run = a_run()
    assert "of PyTorch's time" not in bench.table([run])
    for size, gflops in ((512, 500.0), (1024, 600.0)):
        theirs = {"library": "torch", "dtype": "float32", "size": size, "gflops": gflops}
        run["measurements"].append({"part": "step", "kind": "gemm", **theirs})
    assert "takes JAX **0.75** of PyTorch's time" in bench.table([run])  # 600 beside 800


def test_the_lanes_table_counts_compiling_both_ways() -> None:
    text = bench.table([a_run()])
    assert row(text, "8 separate runs")[1:] == ["12", "4", "2", "0.5"]
    assert row(text, "one program, 2 at once")[1:] == ["0", "4", "2", "2"]


def test_without_pytorch_its_columns_are_absent_and_the_note_says_so() -> None:
    run = a_run(notes=["No PyTorch columns: torch not installed."])
    for measured in run["measurements"]:
        measured.get("ms", {}).pop("pytorch", None)
    text = bench.table([run])
    assert row(text, "64")[1:] == ["10 (9–11)", "20 (20–20)", "204,800", "50%"]
    assert "unit_scaling" not in text and "ratio" not in text
    assert "No PyTorch columns: torch not installed." in text


def test_each_part_is_of_the_newest_run_that_has_it() -> None:
    newest = a_run("2026-09-09T00:00:00+00:00")
    newest["measurements"] = [m for m in newest["measurements"] if m["part"] == "lanes"]
    text = bench.table([newest, a_run()])
    assert text.count("### A training step") == text.count("### A sweep of lanes") == 1
    assert text.count("## Abacus, 2 cores, float32") == 1
    step, lanes = text.split("### A sweep of lanes")
    assert "2026-01-02" in step and "2026-09-09" in lanes


def test_quick_runs_stay_off_the_page(tmp_path: Path) -> None:
    quick = a_run("2026-05-05T00:00:00+00:00", plan=plan_of(quick=True))
    bench.save(quick, tmp_path)
    assert "Nothing is measured yet" in bench.page(tmp_path)
    bench.save(a_run(), tmp_path)
    assert "2026-01-02" in bench.page(tmp_path) and "2026-05-05" not in bench.page(tmp_path)


def asked(*argv: str) -> bench.Bench:
    return command.parse(bench.Bench, argv, "umup bench")


def test_the_command_line_makes_the_plan() -> None:
    assert (asked().plan(), asked().folder()) == (bench.Plan(), Path("bench/records"))
    quick = asked("--quick")
    assert quick.plan().quick and quick.plan().widths == (32, 64) and quick.folder() is None
    gpu = asked("--gpu", "--parts", "step", "--records", "there")
    plan = gpu.plan()
    assert (plan.profile, plan.dtype, plan.widths[-1]) == ("gpu", "bfloat16", 4096)
    assert plan.parts == ("step",) and not plan.torch and gpu.folder() == Path("there")
    plan = asked("--widths", "64", "128", "--skip-torch", "--samples", "2").plan()
    assert (plan.widths, plan.torch, plan.samples) == ((64, 128), False, 2)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--widths", "0"], "widths: received (0,)"),
        (["--widths", "33"], "d_head: received 16; allowed: a divisor of d_model = 33"),
        (["--parts", "stepp"], "step | lanes | compile | memory | probes"),
        (["--samples", "0"], "samples: received 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(argv, says, capsys, monkeypatch) -> None:
    monkeypatch.setattr(bench, "Ours", None)  # a measurement would fail otherwise
    assert cli.main(["bench", *argv]) == 1
    assert says in capsys.readouterr().err


def test_gpu_without_an_accelerator_is_refused(capsys) -> None:
    assert cli.main(["bench", "--gpu", "--widths", "64"]) == 1
    assert (
        "--gpu: received 'cpu'; allowed: a machine with an accelerator" in capsys.readouterr().err
    )


def test_help_has_examples(capsys) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["bench", "--help"])
    assert done.value.code == 0
    assert "umup bench --gpu" in capsys.readouterr().out


def test_absent_packages_are_named(monkeypatch) -> None:
    monkeypatch.setattr(bench_torch, "PACKAGES", ("numpy", "no-such-package"))
    assert set(bench_torch.versions()) == {"numpy"}
    assert bench_torch.missing() == "no-such-package not installed (pip install 'umup[bench]')"
    monkeypatch.setattr(bench_torch, "PACKAGES", ("numpy",))
    assert bench_torch.missing() == ""


def test_others_share_by_hand() -> None:
    # 2 cores for 10 s: 20 s in all, 15 busy, 11 of them ours.
    assert machine.others_share((100.0, 200.0, 5.0), (115.0, 220.0, 16.0)) == pytest.approx(0.2)
    assert machine.others_share((0.0, 0.0, 0.0), (9.9, 20.0, 10.0)) == 0.0  # clocks tick apart
    assert machine.others_share(None, (1.0, 1.0, 1.0)) is None


def test_a_part_that_stops_keeps_what_was_measured(monkeypatch, capsys, tmp_path) -> None:
    def stops(plan):
        yield {
            "part": "compile",
            "kind": "compile",
            "d_model": 8,
            "n_layers": 2,
            "trace_s": 0.25,
            "compile_s": 1.5,
        }
        raise MemoryError("device is full\nand more")

    monkeypatch.setattr(bench, "compile_times", stops)
    argv = ["--parts", "compile", "--skip-torch", "--records", str(tmp_path)]
    assert cli.main(["bench", *argv]) == 1
    said = capsys.readouterr().out
    assert row(said, "2") == ["2", "0.25", "1.50"]
    assert "The part compile stopped early: MemoryError: device is full." in said
    (run,) = bench.load_records(tmp_path)
    assert [m["kind"] for m in run["measurements"]] == ["compile", "failure", "load"]


@pytest.mark.slow
def test_every_part_runs_and_renders(tmp_path: Path) -> None:
    """Tiny shapes, no PyTorch: what is measured has its record, and its place in the table."""
    plan = bench.Plan(
        widths=(8,),
        n_layers=1,
        d_head=4,
        vocab_size=16,
        seq_len=4,
        batch_size=2,
        samples=2,
        steps=1,
        gemm_sizes=(8,),
        lanes=1,
        lanes_at_once=(1,),
        lane_steps=1,
        depths=(1,),
        torch=False,
    )
    run = bench.measure(plan)
    assert bench.load_records(bench.save(run, tmp_path).parent) == [run]
    kinds = [m["kind"] for m in run["measurements"] if m["kind"] != "load"]
    assert kinds == ["memory", "gemm", "gemm", "step", "lanes", "lanes", "compile", "probes"]
    (step,) = [m for m in run["measurements"] if m["kind"] == "step"]
    assert {side: len(ms) for side, ms in step["ms"].items()} == {"unrolled": 2, "scanned": 2}
    text = bench.table([run])
    for heading in ("A training step", "A sweep of lanes", "Compile time", "Peak memory", "Probes"):
        assert f"### {heading}" in text
