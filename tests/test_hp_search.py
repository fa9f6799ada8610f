"""Searches over several hyperparameters: their stages on known bowls, whatever the order."""

from __future__ import annotations

import math
import random as shuffler
from collections.abc import Callable

import numpy as np
import pytest

from synthetic import rows_of
from umup.config import HPs
from umup.errors import ConfigError
from umup.lab import hp_search
from umup.lab.curves import Text
from umup.lab.hp_search import Point, Result, Space, Spaces, Trial

GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)
SPACE = Space.of("umup", {"eta": GRID, "alpha_residual": GRID, "alpha_ffn_act": GRID})
BEST = (1.0, -1.0, 2.0)
PLANS = {
    "independent": lambda results: hp_search.independent(SPACE, results, seeds=3),
    "random": lambda results: hp_search.random(SPACE, results, 7, seeds=3),
    "rounds": lambda results: hp_search.rounds(SPACE, results, 4, seeds=3),
}


def bowl(point: Point, seed: int) -> float:
    """Coordinates add up, so that lines find the lowest point."""
    return sum((x - b) ** 2 for x, b in zip(point, BEST, strict=True)) + 0.01 * seed


def stages(
    plan: hp_search.Plan, loss: Callable[[Point, int], float] = bowl
) -> tuple[list[list[Trial]], list[Result]]:
    """Every stage of a search, all of it done before the next, and the results."""
    results, found = [], []
    while todo := plan(results):
        assert len(set(todo)) == len(todo)
        found.append(todo)
        results += [Result(*trial, loss(*trial)) for trial in todo]
        assert len(found) < 50, "does not end"
    return found, results


# --- the space ------------------------------------------------------------------------------------


def test_a_space_knows_its_default_lines_and_planes() -> None:
    space = Space.of("mup", {"eta": (-8, -7, -6, -5), "sigma_init": (-1, 0, 1)})
    assert space.default() == (-7.0, 0.0)  # the lower middle of η's; 1 of the other
    assert space.line("sigma_init", (-5.0, 0.0)) == [(-5.0, -1.0), (-5.0, 0.0), (-5.0, 1.0)]
    plane = space.plane("sigma_init", "eta")
    assert len(plane) == 12 and plane[:2] == [(-8.0, -1.0), (-7.0, -1.0)]
    assert space.log2((-5.0, 1.0)) == {"eta": -5.0, "sigma_init": 1.0}
    assert space.box() == [(-8.0, -5.0), (-1.0, 1.0)]


@pytest.mark.parametrize(
    ("scheme", "grids", "message"),
    [
        ("umup", {"eta": GRID, "sigma_init": GRID}, "hps: received 'sigma_init'; allowed: of umup"),
        ("mup", {"eta": GRID, "weight_decay": GRID}, "hps: received 'weight_decay'"),
        ("mup", {"sigma_init": GRID}, r"hps: received \['sigma_init'\].*eta among them"),
        ("mup", {"eta": (1.0,)}, r"eta: received \[1.0\].*two or more finite numbers"),
        ("mup", {"eta": (1.0, 1.0)}, "eta: received .*rising"),
        ("mup", {"eta": (0.0, math.inf)}, "eta: received .*finite"),
        ("nup", {"eta": GRID}, "scheme: received 'nup'"),
    ],
)
def test_a_bad_space_is_named(scheme: str, grids: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Space.of(scheme, grids)


def test_a_name_comes_once_and_has_its_grid() -> None:
    with pytest.raises(ConfigError, match="different names"):
        Space("mup", ("eta", "eta"), (GRID, GRID))
    with pytest.raises(ConfigError, match="grids: received 1; allowed: one per"):
        Space("mup", ("eta", "sigma_init"), (GRID,))


# --- independent ----------------------------------------------------------------------------------


def test_independent_search_has_a_line_then_lines_then_their_combination() -> None:
    found, results = stages(PLANS["independent"])
    eta, others, ends = found
    assert eta == [Trial((x, 0.0, 0.0), 0) for x in GRID]
    # At the best η; the default is in each line and was run already.
    assert others == [
        *(Trial((1.0, x, 0.0), 0) for x in GRID if x),
        *(Trial((1.0, 0.0, x), 0) for x in GRID if x),
    ]
    bests = [(1.0, 0.0, 0.0), (1.0, -1.0, 0.0), (1.0, 0.0, 2.0)]
    assert ends[:3] == [Trial(BEST, seed) for seed in range(3)]
    assert set(ends[3:]) == {Trial(point, seed) for point in bests for seed in (1, 2)}
    lines = hp_search.lines(SPACE, results)
    assert lines is not None and lines.combined == BEST and lines.start == bests[0]
    assert lines.bests == {"alpha_residual": bests[1], "alpha_ffn_act": bests[2]}


def test_bests_are_chosen_by_seed_0_alone() -> None:
    def loss(point: Point, seed: int) -> float:
        return bowl(point, seed) if seed == 0 else 100.0

    found, _ = stages(PLANS["independent"], loss)
    assert found == stages(PLANS["independent"])[0]


def test_a_line_without_anything_better_keeps_the_default() -> None:
    def loss(point: Point, seed: int) -> float:  # flat but for η: all ties
        return point[0] ** 2

    found, results = stages(PLANS["independent"], loss)
    lines = hp_search.lines(SPACE, results)
    assert lines is not None and lines.combined == lines.start == (0.0, 0.0, 0.0)
    assert found[-1] == [Trial((0.0, 0.0, 0.0), seed) for seed in (1, 2)]


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_diverged_is_never_chosen(lost: float) -> None:
    def loss(point: Point, seed: int) -> float:
        return lost if point[0] > 0 or point[2] != 0 else bowl(point, seed)

    _, results = stages(PLANS["independent"], loss)
    lines = hp_search.lines(SPACE, results)
    assert lines is not None and lines.combined == (0.0, -1.0, 0.0)

    found, results = stages(PLANS["independent"], lambda point, seed: lost)
    assert len(found) == 1 and hp_search.lines(SPACE, results) is None
    for name in ("random", "rounds"):
        found, _ = stages(PLANS[name], lambda point, seed: lost)
        assert {trial.seed for stage in found for trial in stage} == {0}


# --- random, and in rounds ------------------------------------------------------------------------


def test_random_points_are_functions_of_their_number_alone() -> None:
    points = hp_search.random_points(SPACE, 5)
    assert hp_search.random_points(SPACE, 2000)[:5] == points
    assert hp_search.random_points(SPACE, 5, draw=1) != points
    # Known by their bits: another machine's records are found again.
    assert points[0] == (0.5478515625, -0.9208984375, -1.8359375)
    many = np.array(hp_search.random_points(SPACE, 2000))
    assert many.min() >= -2 and many.max() <= 2
    assert np.abs(many.mean(axis=0)).max() < 0.1  # of ±2: standard error 0.026
    assert np.allclose(many.var(axis=0), 16 / 12, rtol=0.1)
    assert (many * hp_search.FINE % 1 == 0).all()


def test_random_search_ends_with_the_seeds_of_its_best() -> None:
    found, _ = stages(PLANS["random"])
    points = hp_search.random_points(SPACE, 7)
    assert found[0] == [Trial(point, 0) for point in points]
    best = min(points, key=lambda point: bowl(point, 0))
    assert found[1:] == [[Trial(best, 1), Trial(best, 2)]]


def test_rounds_shrink_around_the_best_so_far() -> None:
    found, results = stages(PLANS["rounds"])
    assert [len(stage) for stage in found] == [4, 4, 4, 2]
    done: list[Result] = []
    shares = []
    for number, stage in enumerate(found[:3]):
        side = 4.0 * 0.5**number
        points = np.array([trial.point for trial in stage])
        assert np.ptp(points, axis=0).max() <= side
        low = np.full(3, -2.0)
        if done:
            best = np.array(hp_search.best(done, [r.point for r in done]))
            low = np.clip(best - side / 2, -2, 2 - side)
            assert (points >= low - 1e-3).all() and (points <= low + side + 1e-3).all()
        shares.append((points - low) / side)
        done += [Result(*trial, bowl(*trial)) for trial in stage]
    assert np.abs(shares[0] - shares[1]).min() > 1e-3  # every round draws anew
    assert {trial.point for trial in found[3]} == {
        hp_search.best(results, [trial.point for stage in found[:3] for trial in stage])
    }


def test_rounds_stay_inside_the_space() -> None:
    def corner(point: Point, seed: int) -> float:
        return -sum(point)

    _, results = stages(lambda found: hp_search.rounds(SPACE, found, 60), corner)
    points = np.array([r.point for r in results])
    best = points[:60][points[:60].sum(axis=1).argmax()]
    assert (best > 1.0).any()  # a box of side 2 around it would reach beyond
    assert points.max() <= 2.0


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_a_function_of_the_set_of_results(name: str) -> None:
    plan, (_, results) = PLANS[name], stages(PLANS[name])
    luck = shuffler.Random(0)
    for n in range(len(results) + 1):
        some = results[:n]
        again = luck.sample(some, n)
        before = list(again)
        assert plan(again) == plan(some)
        assert again == before
        # Killed and begun again, with a run of a later stage or of another search on record.
        alien = [*some, Result((9.0, 9.0, 9.0), 0, -9.0)]
        assert plan(alien) == plan(some)


@pytest.mark.parametrize("name", PLANS)
def test_replay_finds_what_was_asked_for_and_what_is_left(name: str) -> None:
    plan, (found, results) = PLANS[name], stages(PLANS[name])
    loss = {(r.point, r.seed): r.loss for r in results}
    assert hp_search.replay(plan, loss.get) == (results, [])
    gone = found[-1][-1]
    del loss[gone]
    assert hp_search.replay(plan, loss.get) == (results[:-1], [gone])
    early = found[0][0]
    del loss[early]  # nothing after the first stage counts until it is complete
    known, todo = hp_search.replay(plan, loss.get)
    assert todo == [early] and {r[:2] for r in known} == set(found[0][1:])
    assert hp_search.replay(plan, lambda trial: None) == ([], found[0])


# --- parameters of studies ------------------------------------------------------------------------


def test_a_study_s_parameters_give_grids_and_runs() -> None:
    design = Spaces(per_line=3, hps_mup=("eta", "alpha_emb"), lo_mup=(-8, -3), hi_mup=(-4, 3))
    space = design.space("mup")
    assert space == Space.of("mup", {"alpha_emb": (-3, 0, 3), "eta": (-8, -6, -4)})
    assert space.names == ("eta", "alpha_emb")  # in the scheme's order, whatever the study's
    run = design.trial(space, Trial((-6.0, 3.0), 7), Text("d", 256))
    assert (run.scheme, run.seed, run.model.d_model) == ("mup", 7, 32)
    assert run.hps == HPs(eta=2.0**-6, alpha_emb=8.0)
    with pytest.raises(
        ConfigError, match=r"hi_mup: received .*2 numbers, one per entry of hps_mup"
    ):
        Spaces(hi_mup=(1.0,))
    with pytest.raises(ConfigError, match=r"hps_umup: received .*different names"):
        Spaces(hps_umup=("eta", "eta"))
    with pytest.raises(ConfigError, match="per_line: received 1"):
        Spaces(per_line=1)


def test_points_come_back_from_records() -> None:
    design = Spaces()
    for scheme in ("umup", "mup"):
        space = design.space(scheme)
        points = [*space.plane(*space.names), *hp_search.random_points(space, 20)]
        runs = [design.trial(space, Trial(point, 0), Text("d", 256)) for point in points]
        table = hp_search.log2_hps(rows_of(runs, lambda run: {}))
        assert list(table[list(space.names)].itertuples(index=False, name=None)) == points
