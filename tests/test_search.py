"""The adaptive search over η: its stages on known parabolas, and the plan of a whole sweep."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from umup.data import Dataset
from umup.errors import ConfigError
from umup.lab.curves import Text
from umup.lab.lr_sweep import Arm, LRSweep
from umup.lab.search import (
    LRSearch,
    Result,
    around,
    best_lr,
    means,
    next_lrs,
    predicted_optimum,
)

SEARCH = LRSearch(lo=-6, hi=-2)
COARSE = [-6.0, -5.0, -4.0, -3.0, -2.0]


def parabola(center):
    return lambda lr, seed: 1.0 + 0.1 * (lr - center) ** 2 + 1e-3 * seed


def play(search, loss_of, limit=50):
    """All stages of a search: a list of lists of points, and the results."""
    results, stages = [], []
    while todo := next_lrs(search, results):
        assert not {(r.log2_lr, r.seed) for r in results} & set(todo), "asked for twice"
        assert len(set(todo)) == len(todo)
        stages.append(todo)
        results += [Result(lr, seed, loss_of(lr, seed)) for lr, seed in todo]
        assert len(stages) < limit, "does not terminate"
    return stages, results


# --- one search -----------------------------------------------------------------------------------


def test_stages_inside_the_grid():
    stages, _ = play(SEARCH, parabola(-4.1))
    assert stages == [
        [(lr, 0) for lr in COARSE],
        [(-4.5, 0), (-3.5, 0)],
        [(lr, s) for lr in (-5.0, -4.5, -4.0, -3.5, -3.0) for s in (1, 2)],
    ]


def test_the_window_follows_the_best():
    # The refined stage moves the best from −4 to −3.5, and the window with it.
    stages, _ = play(SEARCH, parabola(-3.6))
    assert stages[1] == [(-4.5, 0), (-3.5, 0)]
    assert stages[2] == [(-2.5, 0)]
    assert {lr for lr, _ in stages[3]} == {-4.5, -4.0, -3.5, -3.0, -2.5}


def test_seeds_may_move_the_best():
    def loss(lr, seed):  # seed 0 flatters −4, the others do not
        return 1 + 0.1 * (lr + 3) ** 2 - (0.12 if (lr, seed) == (-4.0, 0) else 0)

    _, results = play(SEARCH, loss)
    assert best_lr(results) == -3.0
    at_all_seeds = {r.log2_lr for r in results if r.seed == 2}
    assert at_all_seeds >= {-4.0, -3.5, -3.0, -2.5, -2.0}


@pytest.mark.parametrize(("center", "edge"), [(-8.0, [-7.0, -8.0, -9.0]), (0.0, [-1.0, 0.0, 1.0])])
def test_the_grid_grows_past_an_end_that_holds_the_best(center, edge):
    stages, results = play(SEARCH, parabola(center))
    assert stages[1:4] == [[(lr, 0)] for lr in edge]
    assert best_lr(results) == center


@pytest.mark.parametrize(("center", "last"), [(-99.0, -10.0), (99.0, 2.0)])
def test_the_grid_grows_by_four_octaves_at_most(center, last):
    _, results = play(SEARCH, parabola(center))
    assert (min if center < 0 else max)(r.log2_lr for r in results) == last
    assert SEARCH.ends() == (-10.0, 2.0)


def test_diverged_runs_are_avoided():
    def loss(lr, seed):
        return math.nan if lr > -4.2 else parabola(-3)(lr, seed)

    _, results = play(SEARCH, loss)
    assert best_lr(results) == -4.5  # the highest that trains; −5 and −4.5 were both run
    assert (-2.0, 1) not in {(r.log2_lr, r.seed) for r in results}


def test_one_diverged_seed_spoils_its_point():
    results = [Result(-4, 0, 1.0), Result(-4, 1, math.nan), Result(-5, 0, 2.0), Result(-5, 1, 2.2)]
    assert means(results) == {-4: math.inf, -5: pytest.approx(2.1)}
    assert best_lr(results) == -5


def test_all_diverged_goes_down_and_gives_up_at_the_limit():
    stages, results = play(SEARCH, lambda lr, seed: math.nan)
    assert stages[1:] == [[(lr, 0)] for lr in (-7.0, -8.0, -9.0, -10.0)]
    assert best_lr(results) is None

    stages, results = play(SEARCH, lambda lr, s: math.nan if lr > -8 else parabola(-8)(lr, s))
    assert best_lr(results) == -8.0


def test_ties_go_to_the_lower_rate():
    assert best_lr([Result(-3, 0, 1.0), Result(-4, 0, 1.0)]) == -4


def test_the_plan_is_a_pure_function_of_the_results():
    rng = np.random.default_rng(0)
    _, results = play(SEARCH, parabola(-7.3))
    for n in range(len(results)):
        some = results[:n]
        again = [some[i] for i in rng.permutation(n)]
        before = list(again)
        assert sorted(next_lrs(SEARCH, again)) == sorted(next_lrs(SEARCH, some))
        assert again == before


@pytest.mark.parametrize("refine", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("window", [0.0, 0.75, 1.0, 2.0])
def test_it_ends_for_noisy_losses_at_any_setting(refine, window):
    search = LRSearch(-6, -2, refine=refine, window=window, seeds=2)
    for trial in range(10):
        noise = {}
        rng = np.random.default_rng(trial)

        def loss(lr, seed, noise=noise, rng=rng):
            return noise.setdefault((lr, seed), float(rng.normal()))

        _, results = play(search, loss, limit=100)
        best = best_lr(results)
        assert {r.seed for r in results if r.log2_lr == best} == {0, 1}
        lowest, highest = search.ends()
        assert all(lowest <= r.log2_lr <= highest for r in results)


def test_search_errors():
    with pytest.raises(ConfigError, match=r"hi: received -6.0; allowed: more than lo = -6"):
        LRSearch(-6, -6)
    with pytest.raises(ConfigError, match=r"refine: received 0\.3"):
        LRSearch(-6, -2, refine=0.3)
    with pytest.raises(ConfigError, match="seeds: received 0"):
        LRSearch(-6, -2, seeds=0)
    with pytest.raises(ConfigError, match="lo: received nan"):
        LRSearch(math.nan, 0)


def test_around_and_predicted_optimum():
    assert around(-5.4, LRSearch(0, 8, 0.25, 2.0, 5)) == LRSearch(-7, -2, 0.25, 2.0, 5)
    assert predicted_optimum({}, 64) is None
    assert predicted_optimum({64: -3.0, 128: 9.0}, 64) is None  # only narrower ones count
    assert predicted_optimum({32: -5.0}, 128) == -5.0
    # −1 octave a doubling from the two nearest; the far third does not count.
    assert predicted_optimum({8: 0.0, 32: -5.0, 64: -6.0}, 256) == -8.0
    assert predicted_optimum({16: -5.0, 64: -6.0}, 128) == pytest.approx(-6.5)


# --- a whole sweep --------------------------------------------------------------------------------


def dataset(digest="d0"):
    return Dataset(
        "sotu", "bytes", 256, np.zeros(9, np.uint16), np.zeros(9, np.uint16), 1.0, digest, "t0"
    )


def sweep(**changes):
    base = {
        "schemes": ("sp", "umup"),
        "widths": (32, 64, 128),
        "full_grid_width": 64,
        "steps": 100,
        "lr_sp": (-8.0, -4.0),
        "lr_umup": (-2.0, 2.0),
        "seeds": 2,
    }
    return LRSweep(**(base | changes))


def table(runs, loss_of):
    rows = [{"key": r.key(), "final_loss": loss_of(r)} for r in runs]
    return pd.DataFrame(rows, columns=["key", "final_loss"])


def drifting(run):
    """SP's optimum falls an octave a doubling from −6, u-μP's stays at 0."""
    octaves = math.log2(run.model.d_model / 32)
    center = -6.0 - octaves if run.scheme == "sp" else 0.0
    return 1 + 0.1 * (math.log2(run.hps.eta) - center) ** 2 + 1e-3 * run.seed


def play_sweep(plan, loss_of):
    done, rounds = {}, 0
    while todo := plan.pending(table(done.values(), loss_of), dataset()):
        assert not {r.key() for r in todo} & set(done), "asked for a run on record"
        done |= {r.key(): r for r in todo}
        rounds += 1
        assert rounds < 60
    return list(done.values())


def test_arms_take_the_main_horizon_first_then_the_cheap():
    plan = sweep(
        widths=(64, 32), short_steps=50, short_widths=(64,), long_steps=900, long_widths=(32,)
    )
    assert plan.arms() == [
        Arm("sp", 32, 100),
        Arm("umup", 32, 100),
        Arm("sp", 64, 100),
        Arm("umup", 64, 100),
        Arm("sp", 64, 50),
        Arm("umup", 64, 50),
        Arm("sp", 32, 900),
        Arm("umup", 32, 900),
    ]
    assert len(sweep(widths=(32, 32)).arms()) == 2


def test_the_first_round_asks_for_the_coarse_grids_of_the_narrow_widths():
    first = sweep().pending(table([], drifting), dataset())
    found = {(r.scheme, r.model.d_model, math.log2(r.hps.eta), r.seed) for r in first}
    assert found == {
        (scheme, width, float(lr), 0)
        for scheme, lo, hi in (("sp", -8, -4), ("umup", -2, 2))
        for width in (32, 64)
        for lr in range(lo, hi + 1)
    }, "128 waits for the narrower widths"


def test_a_whole_sweep_follows_the_drift():
    runs = play_sweep(sweep(), drifting)
    best = {}
    for run in runs:
        arm = (run.scheme, run.model.d_model)
        if arm not in best or drifting(run) < drifting(best[arm]):
            best[arm] = run
    assert {arm: math.log2(run.hps.eta) for arm, run in best.items()} == {
        ("sp", 32): -6,
        ("sp", 64): -7,
        ("sp", 128): -8,
        ("umup", 32): 0,
        ("umup", 64): 0,
        ("umup", 128): 0,
    }
    # Extrapolated from −6 and −7: a short grid around −8, not the full one.
    wide = {math.log2(r.hps.eta) for r in runs if (r.scheme, r.model.d_model) == ("sp", 128)}
    assert wide == {-10, -9, -8.5, -8, -7.5, -7, -6, -5}
    at_optimum = [r for r in runs if (r.scheme, r.model.d_model, r.hps.eta) == ("sp", 128, 2.0**-8)]
    assert {r.seed for r in at_optimum} == {0, 1}


def test_a_sweep_resumes_from_any_records():
    plan = sweep(schemes=("sp",), widths=(32,))
    whole = {r.key() for r in play_sweep(plan, drifting)}
    runs = play_sweep(plan, drifting)
    for n in (0, 1, 4, 7, len(runs) - 1):
        todo = plan.pending(table(runs[:n], drifting), dataset())
        assert todo
        assert {r.key() for r in todo} <= whole - {r.key() for r in runs[:n]}


def test_records_of_other_data_or_settings_do_not_count():
    plan = sweep(schemes=("sp",), widths=(32,))
    done = table(play_sweep(plan, drifting), drifting)
    assert plan.pending(done, dataset()) == []
    assert len(plan.pending(done, dataset("d1"))) == 5
    assert len(sweep(schemes=("sp",), widths=(32,), seq_len=32).pending(done, dataset())) == 5
    # What does not change a run's numbers keeps its key.
    same = sweep(schemes=("sp",), widths=(32,), workers=2, lanes=4, chunk_steps=10, profile="x")
    assert same.pending(done, dataset()) == []


def further(run):
    """As ``drifting``, but seeds beyond the two of the search do best elsewhere, or diverge."""
    if run.seed < 2:
        return drifting(run)
    octaves = math.log2(run.hps.eta)
    return math.nan if octaves < 0 else 1.0 - 0.5 * octaves


def test_further_seeds_are_asked_for_where_the_search_ended_and_move_nothing():
    plain, more = sweep(), sweep(deciding=("umup",), deciding_seeds=5)
    before = {r.key(): r for r in play_sweep(plain, further)}
    whole = {r.key(): r for r in play_sweep(more, further)}
    assert before.keys() <= whole.keys(), "nothing on record is asked for again, or lost"
    added = [run for key, run in whole.items() if key not in before]
    where = {(r.scheme, r.model.d_model, math.log2(r.hps.eta), r.seed) for r in added}
    points = [(width, lr) for width in (32, 64, 128) for lr in (-1.0, 0.0, 1.0)]
    assert where == {("umup", *point, seed) for point in points for seed in (2, 3, 4)}
    # From the search's end on, any part of the further runs leaves the rest to do.
    added.sort(key=lambda run: run.key())
    for n in range(len(added) + 1):
        done = [*before.values(), *added[:n]]
        todo = more.pending(table(done, further), dataset())
        assert {r.key() for r in todo} == {r.key() for r in added[n:]}
    assert plain.pending(table(whole.values(), further), dataset()) == []


def test_further_seeds_are_for_the_main_horizon_and_wait_for_the_searches():
    plan = sweep(
        schemes=("umup",), short_steps=50, short_widths=(32,), deciding=("umup",), deciding_seeds=3
    )
    runs = play_sweep(plan, drifting)
    assert {r.optim.steps for r in runs if r.seed == 2} == {100}
    done = [r for r in runs if r.model.d_model == 32 and r.optim.steps == 100 and r.seed < 2]
    todo = plan.pending(table(done, drifting), dataset())
    assert [r.seed == 2 for r in todo] == sorted(r.seed == 2 for r in todo)
    assert {r.model.d_model for r in todo if r.seed == 2} == {32}


def test_runs_are_what_the_settings_say():
    plan = sweep(
        widths=(96,),
        full_grid_width=96,
        d_head=48,
        ff_ratio=2.75,
        n_layers=3,
        base_width=48,
        weight_decay=0.5,
        warmup_ratio=0.2,
        seq_len=16,
        batch_size=4,
        eval_batches=7,
    )
    run = plan.at(Arm("umup", 96, 100), Text.of(dataset()), -1.5, 4)
    assert (run.scheme, run.seed, run.eval_batches, run.data_digest) == ("umup", 4, 7, "d0")
    assert (run.hps.eta, run.hps.weight_decay) == (2.0**-1.5, 0.5)
    m = run.model
    assert (m.d_model, m.n_layers, m.d_head, m.d_ff, m.vocab_size, m.seq_len) == (
        96,
        3,
        48,
        264,
        256,
        16,
    )
    # Only the width has a base of its own.
    assert (m.base_width, m.base_depth, m.base_d_head) == (48, 3, 48)
    assert (run.optim.steps, run.optim.warmup_steps, run.optim.batch_size) == (100, 20, 4)


def test_estimated_seconds():
    plan = sweep(assumed_tflops=0.5, workers=2, batch_size=2, seq_len=10)
    run = plan.at(Arm("sp", 32, 100), Text.of(dataset()), -6.0, 0)
    # Weights that multiply: 2 blocks of 4·32² + 3·32·88, and the readout of 32·256.
    weights = 2 * (4 * 32**2 + 3 * 32 * 88) + 32 * 256
    want = 2 * 6 * weights * 100 * 2 * 10 / 0.5e12 / 2
    assert plan.missing_seconds([run, run]) == pytest.approx(want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (33,)}, "d_head: received 32; allowed: a divisor of d_model = 33"),
        ({"long_widths": (48,)}, "divisor of d_model = 48"),
        ({"widths": ()}, r"widths: received \(\); allowed: at least one entry"),
        ({"schemes": ()}, "schemes"),
        ({"schemes": ("ntp",)}, "schemes: received .*sp | mup | umup"),
        ({"lr_sp": (-4.0, -8.0)}, "more than lo = -4"),
        ({"lr_mup": (-4.0,)}, "lr_mup: received .*two numbers"),
        ({"deciding": ("ntp",)}, "deciding: received"),
        ({"deciding_seeds": 9, "window": 0.5}, "deciding_reach: received 1.0; allowed: from"),
        ({"refine": 0.4}, "refine: received 0.4; allowed: 0.25"),
        ({"steps": 0}, "steps: received 0"),
        ({"steps": 10.5}, "steps: received 10.5; allowed: a value of type int"),
        ({"widths": 32}, "widths: received 32"),
        ({"widths": (True,)}, "widths"),
        ({"weight_decay": -1.0}, "weight_decay: received -1.0"),
        ({"weight_decay": math.nan}, "weight_decay: received nan"),
        ({"ff_ratio": 0.0}, "ff_ratio"),
        ({"mode": "train"}, r"mode: received 'train'; allowed: run \| load"),
        ({"fresh": 1}, "fresh: received 1; allowed: a value of type bool"),
        ({"warmup_ratio": 1.5}, "warmup_ratio"),
        ({"dtype": "float16"}, "dtype: received 'float16'"),
        ({"workers": -1}, "workers"),
    ],
)
def test_bad_settings_are_errors_before_any_compute(changes, message):
    with pytest.raises(ConfigError, match=message):
        sweep(**changes)


@pytest.mark.parametrize("lo", [-7.7])
def test_a_grid_off_the_octaves_is_recognised_or_refused(lo):
    try:
        plan = sweep(schemes=("sp",), widths=(32,), lr_sp=(lo, lo + 4))
    except ConfigError:
        return
    runs = plan.pending(table([], drifting), dataset())
    again = plan.pending(table(runs, drifting), dataset())
    assert not {r.key() for r in runs} & {r.key() for r in again}, "a finished run is asked for"


def test_a_horizon_without_a_full_grid_is_refused():
    with pytest.raises(ConfigError, match="full_grid_width: received 16; allowed: at least 32"):
        LRSweep(widths=(32, 64), full_grid_width=16)
    with pytest.raises(ConfigError, match="narrowest width of 50 steps"):
        LRSweep(widths=(32, 64), full_grid_width=32, short_steps=50, short_widths=(64,))
