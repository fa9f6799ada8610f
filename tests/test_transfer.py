"""Carrying η: by hand, against the records that its motions come from, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from umup import transfer
from umup.book import motions
from umup.errors import ConfigError
from umup.laws import Interval
from umup.run.runfile import TrainConfig, read_config
from umup.transfer import Motion

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SMALL = {
    "scheme": "umup",
    "model.d_model": 256,
    "model.d_ff": 704,
    "model.n_layers": 8,
    "model.seq_len": 512,
    "optim.batch_size": 32,
    "optim.steps": 1000,
    "optim.warmup_steps": 250,
}
ETA = Interval(-1.0, -1.25, -0.75)


def run(**changes: object) -> TrainConfig:
    return read_config(None, SMALL | {k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Motions that can be added in one's head."""
    per_doubling = {
        ("umup", "width"): (0.0, -0.1, 0.1, 3),
        ("umup", "depth"): (0.5, 0.4, 0.7, 4),
        ("umup", "batch"): (0.25, 0.2, 0.3, 4),
        ("umup", "steps"): (-0.2, -0.3, -0.1, 4),
        ("umup", "schedule"): (-0.5, -0.7, -0.2, 1),
        ("umup", "together"): (-0.1, -0.3, 0.2, 0),
        ("mup", "width"): (-0.1, -0.2, 0.0, 3),
        ("mup", "depth"): (0.3, 0.2, 0.4, 4),
        ("completep", "depth"): (-0.1, -0.2, 0.0, 4),
    }
    table = {
        (scheme, axis): Motion(scheme, axis, Interval(value, lo, hi), n, "", "s", "c", "holds")
        for (scheme, axis), (value, lo, hi, n) in per_doubling.items()
    }
    monkeypatch.setattr(transfer, "motions", lambda: table)


def ends(found: Interval) -> tuple[float, float, float]:
    return found.value, found.lo, found.hi


@pytest.mark.usefixtures("planted")
def test_one_axis_adds_its_doublings_and_errors_in_squares():
    found = transfer.carry(ETA, run(), run(model__n_layers=32))
    assert ends(found.log2_eta) == pytest.approx(
        (0.0, -math.hypot(0.25, 0.2), math.hypot(0.25, 0.4))
    )
    (term,) = found.terms
    assert (term.axis, term.doublings, term.beyond) == ("depth", 2.0, 0.0)
    back = transfer.carry(ETA, run(model__n_layers=32), run())
    assert ends(back.log2_eta) == pytest.approx(
        (-2.0, -2.0 - math.hypot(0.25, 0.4), -2.0 + math.hypot(0.25, 0.2))
    )


@pytest.mark.usefixtures("planted")
def test_the_same_run_keeps_its_rate():
    found = transfer.carry(ETA, run(), run())
    assert found.log2_eta == ETA and found.terms == () and found.notes == ()


@pytest.mark.usefixtures("planted")
def test_a_sum_is_widened_by_what_sums_left_unexplained():
    target = run(model__n_layers=16, optim__steps=4000, optim__warmup_steps=1000)
    found = transfer.carry(ETA, run(), target)
    assert [term.axis for term in found.terms] == ["depth", "steps", "together"]
    assert found.log2_eta.value == pytest.approx(-1.0 + 0.5 - 0.4)
    assert found.log2_eta.lo == pytest.approx(-0.9 - math.hypot(0.25, 0.1, 0.2, 0.3))


@pytest.mark.usefixtures("planted")
def test_a_longer_sequence_at_equal_tokens_is_no_larger_batch():
    target = run(model__seq_len=1024, optim__batch_size=16)
    (term,) = transfer.carry(ETA, run(), target).terms
    assert term.axis == "seq_len" and term.doublings == 1.0
    more = transfer.carry(ETA, run(), run(model__seq_len=1024))
    assert [t.axis for t in more.terms][:2] == ["seq_len", "batch"]


@pytest.mark.usefixtures("planted")
def test_what_is_not_measured_leaves_the_rate_open():
    found = transfer.carry(ETA, run(), run(model__seq_len=1024, optim__batch_size=16))
    assert found.log2_eta.value == -1.0
    assert math.isinf(found.log2_eta.lo) and math.isinf(found.log2_eta.hi)
    assert found.terms[0].motion is None


@pytest.mark.usefixtures("planted")
def test_doublings_beyond_the_measured_are_counted():
    wide = run(model__d_model=4096, model__d_ff=11264)
    assert transfer.carry(ETA, run(), wide).terms[0].beyond == pytest.approx(1.0)


@pytest.mark.usefixtures("planted")
def test_a_schedule_moves_it_once_either_way():
    wsd = run(optim__schedule="wsd", optim__decay_steps=200)
    assert transfer.carry(ETA, run(), wsd).log2_eta.value == pytest.approx(-1.5)
    assert transfer.carry(ETA, wsd, run()).log2_eta.value == pytest.approx(-0.5)
    root = run(optim__schedule="wsd_sqrt", optim__decay_steps=200)
    found = transfer.carry(ETA, run(), root)
    assert found.notes == ("schedule: cosine in the proxy, wsd_sqrt here",)


@pytest.mark.usefixtures("planted")
def test_completep_is_mup_but_over_depth():
    base = {"scheme": "completep"}
    wide = transfer.carry(ETA, run(**base), run(**base, model__d_model=512, model__d_ff=1408))
    assert wide.log2_eta.value == pytest.approx(-1.1)
    deep = transfer.carry(ETA, run(**base), run(**base, model__n_layers=16))
    assert deep.log2_eta.value == pytest.approx(-1.1)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"model__d_head": 128}, "model.d_head: 64 in the proxy, 128 here"),
        ({"optim__beta2": 0.95}, "optim.beta2: 0.999 in the proxy, 0.95 here"),
        ({"hps__alpha_residual": 2.0}, "hps.alpha_residual: 1.0 in the proxy, 2.0 here"),
        ({"optim__warmup_steps": 100}, "the warm-up's share of the steps: 0.25 in the proxy"),
        ({"model__d_ff": 1024}, "d_ff over d_model: 2.75 in the proxy, 4 here"),
    ],
)
def test_other_differences_are_noted(changes: dict, note: str):
    (found,) = transfer.carry(ETA, run(), run(**changes)).notes
    assert found.startswith(note)


@pytest.mark.usefixtures("planted")
def test_what_does_not_change_the_numbers_is_not_noted():
    target = run(model__remat="full", model__attention="blocked", optim__accumulate=2)
    assert transfer.carry(ETA, run(), target).notes == ()


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("proxy", "target", "message"),
    [
        ({}, {"scheme": "mup"}, "scheme: received 'mup'; allowed: umup, the proxy's"),
        (
            {"scheme": "mup"},
            {"scheme": "mup", "model__base_width": 64},
            "model.base_width: received 64; allowed: 256, the proxy's: μP's η counts from it",
        ),
        (
            {"scheme": "mup_sqrt_emb"},
            {"scheme": "mup_sqrt_emb"},
            "scheme: received 'mup_sqrt_emb'; allowed: completep",
        ),
        (
            {},
            {
                "optim__size_rule": "sqrt_batch",
                "optim__base_batch_size": 32,
                "optim__base_steps": 1000,
            },
            "size_rule of the target: received 'sqrt_batch'; allowed: none",
        ),
    ],
)
def test_what_cannot_be_carried_is_refused(proxy: dict, target: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        transfer.carry(ETA, run(**proxy), run(**target))


def test_the_base_of_a_scheme_without_one_is_free():
    found = transfer.carry(ETA, run(), run(model__base_width=64))
    assert found.log2_eta == ETA


def test_the_motions_are_those_of_the_records():
    written = motions.FILE.read_text(encoding="utf-8")
    assert written == motions.text(motions.collect(EXPERIMENTS)), "python -m umup.book.motions"


def test_every_axis_has_a_motion_of_mup_and_umup():
    for axis in transfer.AXES:
        for scheme in ("mup", "umup"):
            found = transfer.motion(scheme, axis)
            assert found and found.octaves.lo < found.octaves.hi and found.doublings > 0
