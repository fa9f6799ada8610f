"""Spikes are found where they were planted and nowhere else; what was left out stays out."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umup.checked import canonical_json
from umup.errors import CheckpointError, ConfigError
from umup.run.recovery import (
    Detector,
    Intervention,
    Interventions,
    RecoveryConfig,
    Spike,
    Verdict,
)

SMALL = RecoveryConfig(
    window=8, warmup=8, loss_threshold=7.0, grad_threshold=10.0, patience=3, margin=2
)


def watch(
    config: RecoveryConfig, losses: Iterable[float], norms: Iterable[float] | None = None
) -> list[Spike]:
    detector, losses = Detector(config), list(losses)
    norms = [1.0] * len(losses) if norms is None else norms
    found = [detector.update(*args, True) for args in zip(range(10**6), losses, norms)]
    return [spike for spike in found if spike]


# ---------------------------------------------------------------------------------------- detector

# Median 2.1 and median absolute deviation 0.1: a deviation of 0.14826, a limit at 3.13782.
CALM = [2.0, 2.2] * 4


def test_a_spike_by_hand():
    (spike,) = watch(SMALL, [*CALM, 3.14, 3.9, 3.5, 3.6])
    assert (spike.onset, spike.detected, spike.reason) == (8, 10, "loss")
    assert spike.value == 3.9
    assert spike.median == pytest.approx(2.1) and spike.deviation == pytest.approx(0.14826)
    assert watch(SMALL, [*CALM, 3.137, 3.9, 3.5]) == []


@pytest.mark.parametrize(
    ("config", "losses"),
    [
        (SMALL, [*CALM, 9.0, 9.0, 2.1, 9.0, 9.0, 2.1]),  # outliers, no patience's worth
        (SMALL, [*CALM, 0.5, 0.5, 0.5, 0.5]),  # a fall
        (RecoveryConfig(**{**SMALL.to_dict(), "warmup": 9}), [*CALM, 9.0, 9.0, 9.0]),
        (RecoveryConfig(**{**SMALL.to_dict(), "loss_threshold": 0.0}), [*CALM, 9.0, 9.0, 9.0]),
        (RecoveryConfig(**{**SMALL.to_dict(), "on": False}), [*CALM, 9.0, 9.0, 9.0]),
        (RecoveryConfig(warmup=0), [*[2.0] * 60, *[9.0] * 4]),  # half a window is not known yet
        (SMALL, [*[2.0] * 8, 2.06, 2.06, 2.06]),  # no noise at all: seven floors are 0.07
    ],
)
def test_no_spike(config: RecoveryConfig, losses: list[float]):
    assert watch(config, losses) == []
    assert len(watch(SMALL, [*[2.0] * 8, 2.08, 2.08, 2.08])) == 1  # so that the last one can fail


def test_gradient_norms_are_compared_by_factors():
    # Floor 0.1 nats, ten of them: beyond a factor of e = 2.718.
    calm = [5.0] * 8
    (spike,) = watch(SMALL, [2.0] * 11, [*calm, 13.7, 14.0, 13.8])
    assert (spike.onset, spike.detected, spike.reason) == (8, 10, "grad_norm")
    assert spike.value == pytest.approx(math.log(14.0))
    assert watch(SMALL, [2.0] * 11, [*calm, 13.5, 13.5, 13.5]) == []
    assert watch(SMALL, [2.0] * 11, [*calm, 0.0, 0.0, 0.0]) == []


def test_non_finite_steps_make_a_spike_of_their_own():
    config = RecoveryConfig(max_nonfinite=3)
    bad = [(math.nan, 1.0, True), (2.0, math.inf, True), (2.0, 1.0, False)]
    good = (2.0, 1.0, True)
    detector = Detector(config)
    said = [detector.update(i, *x) for i, x in enumerate([*bad[:2], good, *bad, *bad])]
    assert said == [*[None] * 5, Spike(3, 5, "non-finite"), None, None, None]
    # They neither break a streak of finite suspicious steps nor add to it.
    detector = Detector(SMALL)
    series = [*CALM, 9.0, math.nan, 9.0, math.nan, 9.0]
    said = [detector.update(i, x, 1.0, True) for i, x in enumerate(series)]
    assert said[:-1] == [None] * 12 and said[-1] is not None
    assert (said[-1].onset, said[-1].detected) == (8, 12)


def test_the_onset_is_where_the_rise_began():
    # 32 even steps from 1.9 to 2.1: median 2, deviation about 0.075, half the threshold at 2.26.
    calm = [1.9 + 0.2 * (13 * i % 32) / 31 for i in range(32)]
    config = RecoveryConfig(window=32, warmup=32, patience=3)
    (spike,) = watch(config, [*calm, 2.2, 2.4, 4.0, 5.0, 6.0])
    assert (spike.onset, spike.detected) == (33, 36)


def test_a_slow_spike_does_not_hide_itself():
    # Half a deviation per step: an estimate that took it in would widen as fast as it rises.
    noise = np.random.default_rng(0).normal(0, 0.1, 400)
    rise = np.maximum(np.arange(400) - 300, 0) * 0.05
    config = RecoveryConfig()
    (spike,) = watch(config, (2 + noise + rise).tolist())
    assert 300 < spike.onset < spike.detected < 340


@pytest.mark.parametrize("share", [1.0, 0.85])
def test_a_new_level_is_reported_and_then_accepted(share: float):
    rng = np.random.default_rng(1)
    shifted = np.where(rng.random(3000) < share, 2.0, 0.0) * (np.arange(3000) >= 300)
    losses = 2 + shifted + rng.normal(0, 0.1, 3000)
    losses[2900:] += 3.0
    found = watch(RecoveryConfig(), losses.tolist())
    early = [spike for spike in found if spike.detected < 2900]
    assert early[0].onset == pytest.approx(300, abs=10) and len(early) <= 10
    assert max(spike.detected for spike in early) < 300 + 100  # half a window is 64 steps
    assert share < 1.0 or len(early) == 1
    assert len(found) > len(early)  # and it still sees a spike on the new level


def test_heavy_noise_does_not_alarm():
    # The docstring's check, small: Student's t with 4 degrees of freedom, of deviation 0.07.
    rng, steps = np.random.default_rng(2), np.arange(20_000)
    losses = 2 + 3 * (1 + steps / 100) ** -0.3 + 0.05 * rng.standard_t(4, steps.size)
    norms = np.exp(-1 - 0.1 * np.log1p(steps / 100) + 0.15 * rng.standard_t(4, steps.size))
    assert watch(RecoveryConfig(), losses.tolist(), norms.tolist()) == []
    losses[9000:9010] += 1.0  # and what it is there for is seen in the same noise
    (spike,) = watch(RecoveryConfig(), losses.tolist(), norms.tolist())
    assert (spike.onset, spike.detected) == (9000, 9003)


@given(st.integers(0, 10**6), st.integers(0, 299))
@settings(max_examples=20, deadline=None)
def test_a_restored_detector_decides_alike(seed: int, cut: int):
    rng = np.random.default_rng(seed)
    losses = 2 + 0.1 * rng.normal(size=300) + 5 * (rng.random(300) < 0.1).cumsum() * 0.3
    losses[rng.random(300) < 0.05] = np.nan
    rows = list(zip(range(300), losses.tolist(), rng.lognormal(0, 1, 300).tolist()))
    config = RecoveryConfig(window=16, warmup=20, patience=2, max_nonfinite=2, grad_threshold=3.0)
    whole, first = Detector(config), Detector(config)
    for row in rows[:cut]:
        whole.update(*row, True)
        first.update(*row, True)
    second = Detector.restore(config, json.loads(canonical_json(first.state())))
    rest = [whole.update(*row, True) for row in rows[cut:]]
    assert [second.update(*row, True) for row in rows[cut:]] == rest
    assert second.state() == whole.state()


def test_a_foreign_state_is_refused():
    for state in ({}, {"loss": 1, "grad_norm": 2, "nonfinite": 0}):
        with pytest.raises(CheckpointError, match=r"detector: received .*Detector\.state"):
            Detector.restore(RecoveryConfig(), state)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 4}, "window: received 4"),
        ({"patience": 65}, "patience: received 65; allowed: at most half the window of 128"),
        ({"lead": 30, "margin": 20}, "margin: received 20; allowed: at least lead = 30"),
        ({"lead": 0}, "lead: received 0"),
        ({"eta_factor": 0.0}, "eta_factor: received 0.0"),
        ({"eta_factor": 2.0}, "eta_factor: received 2.0"),
        ({"loss_floor": 0.0}, "loss_floor: received 0.0"),
        ({"tolerance": 1}, "tolerance: received 1; allowed: one of the fields of RecoveryConfig"),
    ],
)
def test_bad_policies_are_named(values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        RecoveryConfig.from_dict(values)


# ----------------------------------------------------------------------------------- interventions


def planned(state: Interventions, spike: Spike, checkpoints: list[int]) -> Intervention:
    plan = state.plan(spike, checkpoints)
    assert isinstance(plan, Intervention)
    return plan


def test_interventions_by_hand():
    config = RecoveryConfig(margin=10, lead=2, trail=1, eta_factor=0.5)
    none = Interventions(config)
    first = planned(none, Spike(50, 53, "loss", 9.0, 2.0, 0.1), [0, 20, 40, 45])
    # Back to 40, the last at or before 50 − 10; without 48 … 53 and one more.
    assert first == Intervention(53, 50, 40, 48, 54, 0.5, "loss", 9.0, 2.0, 0.1)
    one = none.after(first)
    assert one.skips == ((48, 7),)
    assert [one.batch_at(s) for s in (0, 47, 48, 60)] == [0, 47, 55, 67]
    # A spike at 80 on batches 85 … 89, and then one before the first, since η was lowered.
    two = one.after(planned(one, Spike(80, 82, "grad_norm"), [0, 40, 60]))
    assert two.skips == ((48, 7), (78, 6))
    assert two.done[1].rolled_back_to == 60
    assert (two.done[1].first_batch, two.done[1].last_batch) == (85, 90)
    three = two.after(planned(two, Spike(44, 46, "loss"), [0, 20, 40, 60]))
    # 42 … 47 are out, and so is 48 … 54 behind them; step 42 goes on at 55, and 72 at 91.
    assert three.skips == ((42, 13), (72, 6))
    assert [three.batch_at(s) for s in (41, 42, 71, 72)] == [41, 55, 84, 91]
    # η is lower from 10 before each onset, 44, 50 and 80, whatever checkpoints there were.
    scales = [three.eta_scale_at(s) for s in (33, 34, 39, 40, 69, 70)]
    assert scales == [1, 0.5, 0.5, 0.25, 0.25, 0.125]
    text = canonical_json(three.to_list())
    assert Interventions.from_list(config, json.loads(text)) == three


def test_checkpoints_before_the_margin_or_the_start():
    state = Interventions(RecoveryConfig(margin=100))
    assert planned(state, Spike(30, 33, "loss"), [0, 20]).rolled_back_to == 0
    assert planned(state, Spike(0, 7, "non-finite"), [0]).first_batch == 0
    verdict = state.plan(Spike(130, 133, "loss"), [40, 90])
    assert verdict == Verdict("a spike (loss) at step 130, and no checkpoint at or before step 30")


def test_a_run_is_given_up():
    state = Interventions(RecoveryConfig(max_interventions=2))
    for step in (200, 300):
        state = state.after(planned(state, Spike(step, step + 3, "loss"), [0, 100]))
    verdict = state.plan(Spike(400, 403, "loss"), [0, 100])
    assert isinstance(verdict, Verdict) and verdict.verdict == "gave up"
    assert verdict.reason == "a spike (loss) at step 400 after 2 interventions, the most allowed"


def test_a_damaged_list_is_refused():
    with pytest.raises(ConfigError, match="onset: received 'nothing'"):
        Interventions.from_list(RecoveryConfig(), [{"detected": 3}])


@given(
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 12)), max_size=8),
    st.integers(1, 6),
    st.integers(0, 9),
    st.integers(6, 40),
)
@settings(max_examples=150, deadline=None)
def test_no_batch_that_was_left_out_comes_back(spikes, lead: int, trail: int, margin: int):
    config = RecoveryConfig(lead=lead, trail=trail, margin=margin, eta_factor=0.5)
    state, bad = Interventions(config), set()
    for onset, length in spikes:
        before = [state.batch_at(s) for s in range(200)]
        plan = planned(state, Spike(onset, onset + length, "loss"), list(range(0, 200, 7)))
        suspects = before[max(onset - lead, 0) : onset + length + 1]
        bad |= set(suspects)
        assert plan.first_batch == suspects[0] and plan.last_batch == suspects[-1] + trail
        state = state.after(plan)
        indices = [state.batch_at(s) for s in range(200)]
        assert all(a < b for a, b in itertools.pairwise(indices))
        assert not bad & set(indices)
        kept = max(onset - lead, 0)
        assert plan.rolled_back_to <= kept and indices[:kept] == before[:kept]
        # Nothing else is lost: what lies between is trained on, up to the batches after trail.
        lost = set(range(indices[-1])) - set(indices)
        assert lost == {b for i in state.done for b in range(i.first_batch, i.last_batch + 1)}


# --------------------------------------------------------------------------------- the whole thing


def drill(poisoned: set[int], chunks: Iterable[int], steps: int = 600) -> tuple[list[int], list]:
    """A toy run: training on a poisoned batch adds 3 nats, which go by 2 % per step.

    A checkpoint is taken every 25 steps, whatever the chunks; the host looks after each chunk.
    """
    config = RecoveryConfig(window=32, warmup=40, margin=10)
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * steps).tolist()
    state, detector = Interventions(config), Detector(config)
    step, damage, trained, saved, sizes = 0, 0.0, [], {}, iter(chunks)
    while step < steps:
        seen = []
        for _ in range(min(next(sizes), steps - step)):
            if step % 25 == 0:
                saved[step] = json.dumps([damage, trained, detector.state()])
            batch = state.batch_at(step)
            trained = [*trained, batch]
            spike = detector.update(step, 2 + noise[batch] + damage, 1.0, True)
            seen += [spike] if spike else []
            damage = 0.98 * damage + 3.0 * (batch in poisoned)
            step += 1
        if seen:
            plan = planned(state, seen[0], list(saved))
            state, step = state.after(plan), plan.rolled_back_to
            saved = {s: v for s, v in saved.items() if s <= step}
            damage, trained, kept = json.loads(saved[step])
            detector = Detector.restore(config, kept)
    return trained, state.to_list()


def test_a_run_is_healed_whatever_its_chunks():
    poisoned = {150, 152, 300, 410, 418}
    trained, done = drill(poisoned, iter(lambda: 1, 0))
    assert not poisoned & set(trained)
    assert len(trained) == 600 and trained[-1] < 600 + 40
    assert len(done) == 4  # 150 and 152 are one
    for seed in range(3):
        sizes = np.random.default_rng(seed).integers(1, 70, 10_000).tolist()
        assert drill(poisoned, sizes) == (trained, done)
