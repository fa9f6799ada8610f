"""``umup bench`` measures anew, keeps what it is told to keep and says what it left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from umup import cli, machine
from umup.config import ModelConfig
from umup.lab import bench, bench_torch
from umup.lab.folders import code
from umup.lab.records import Store


def test_step_flops_by_hand() -> None:
    model = ModelConfig(
        d_model=4, d_head=2, n_layers=3, d_ff=5, vocab_size=7, seq_len=2, base_d_head=2
    )
    # A layer: q, k, v, out 4·4·4 = 64; gate, up, down 3·4·5 = 60. Readout 4·7 = 28.
    weights = 3 * (64 + 60) + 28
    # A token and layer: q·k 2·T·D = 16, weights·v 16; times 3 with the backward pass.
    attention = 3 * 3 * (16 + 16)
    assert model.step_flops(batch_size=10) == 20 * (6 * weights + attention)


def test_the_shape_is_that_beside_pytorch() -> None:
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


LITTLE = {"tried": "[]", "parts_widths": "[]", "depths": "[]", "gemm_sizes": "[8]"}


def little(*more: str) -> list[str]:
    """A command line that measures one step and one look, of the smoke profile's shape."""
    given = [word for name, value in LITTLE.items() for word in ("-p", name, value)]
    return ["bench", "--profile", "smoke", *given, *more]


@pytest.mark.slow
def test_what_is_measured_is_kept_and_shown(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(bench_torch, "PACKAGES", ("no-such-package",))
    argv = little("-p", "references", "[eager]", "--records", str(tmp_path))
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert "No PyTorch beside ours: no-such-package not installed" in err
    assert "| width | layers |" in out and "an observation every 50 steps adds" in out
    points = Store(tmp_path).points
    assert sorted(points.read()["what"]) == ["gemm", "probes", "step"]
    before = points.keys()
    assert cli.main(argv) == 0
    assert points.keys() == before, "what is on record is not measured again"


def test_a_part_that_stops_keeps_what_was_measured(tmp_path: Path, monkeypatch, capsys) -> None:
    def stops(**spec):
        raise MemoryError("device is full")

    measures = code("throughput").measures.MEASURES
    monkeypatch.setitem(measures, "step", stops)
    monkeypatch.setitem(
        measures, "gemm", lambda **spec: {"found": [{"gflops": 8.0}], "others": 0.0}
    )
    assert cli.main(little("--records", str(tmp_path))) == 1
    assert list(Store(tmp_path).points.read()["what"]) == ["gemm"]
    out, err = capsys.readouterr()
    assert "Not measured" in out and "a larger machine (out of memory: device is full)" in err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--profile", "cpu2"], "profile: received 'cpu2'; allowed: one of cpu, h100, smoke"),
        (["-p", "widths", "[33]"], "d_head"),
        (["-p", "width", "3"], "width: received 3"),
        (["--fast"], "--fast"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(argv, says, capsys, monkeypatch) -> None:
    monkeypatch.setattr("umup.lab.study.make", lambda *_: pytest.fail("it measures"))
    try:
        assert cli.main(["bench", *argv]) == 1
    except SystemExit as usage:
        assert usage.code == 2
    assert says in capsys.readouterr().err


def test_help_has_examples(capsys) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["bench", "--help"])
    assert done.value.code == 0
    assert "umup bench --profile h100" in capsys.readouterr().out
