"""Slopes over width, the rules on them, and the check of small models whose faults are known."""

from __future__ import annotations

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx

from umup import coord, slopes
from umup.coord import Coord, coord_check, observe
from umup.errors import ConfigError

WIDTHS = (16, 32, 64)


def table(exponents: dict[tuple, float], noise: float = 0.0, seeds: int = 3) -> pd.DataFrame:
    """Measurements that follow width^p; (kind, tensor, quantity, step) → p."""
    rng = np.random.default_rng(0)
    shapes = {"hidden": (1, 1), "input": (0, 1), "output": (1, 0), "stream": (1,), "logits": (0,)}
    rows = []
    for (kind, tensor, quantity, step), p in exponents.items():
        for width in WIDTHS:
            for seed in range(seeds):
                value = 3.0 * width**p * math.exp(noise * rng.standard_normal())
                shape = tuple(width if grows else 8 for grows in shapes[tensor])
                rows.append((width, seed, 0.5, step, kind, tensor, quantity, value, shape))
    return pd.DataFrame(rows, columns=list(slopes.COLUMNS))


def test_slope_of_a_power_is_its_exponent_exactly() -> None:
    found = slopes.fit_slope([2, 4, 8, 8], [3 * w**-0.7 for w in (2, 4, 8, 8)])
    assert found.value == pytest.approx(-0.7, abs=1e-12)
    assert found.hi - found.lo == pytest.approx(0, abs=1e-9)


def test_interval_of_the_slope_is_that_of_the_regression_by_hand() -> None:
    # x = 0, 1, 2; y = 0, 1, 3: slope 3/2, residuals 1/6, -1/3, 1/6, s² = 1/6 at one degree of
    # freedom, error √(1/12); Student's 97.5 % quantile there is 12.7062.
    found = slopes.fit_slope([1, 2, 4], [1, 2, 8])
    assert found.value == pytest.approx(1.5)
    assert found.hi - found.value == pytest.approx(12.7062 / math.sqrt(12), rel=1e-4)


def test_slope_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    width = np.repeat([32, 64, 128, 256], 3)
    hits = 0
    for _ in range(400):
        value = width**0.5 * np.exp(0.1 * rng.standard_normal(width.size))
        found = slopes.fit_slope(width, value)
        hits += found.lo <= 0.5 <= found.hi
    assert 0.92 < hits / 400 < 0.98


def test_slope_without_data_is_unknown() -> None:
    assert math.isnan(slopes.fit_slope([4, 4], [1, 2]).value)
    assert math.isnan(slopes.fit_slope([2, 4], [0, math.nan]).value)
    two = slopes.fit_slope([2, 4], [1, 2])
    assert (two.value, two.lo, two.hi) == (1.0, -math.inf, math.inf)


def test_roles_are_read_from_shapes() -> None:
    keys = {("weight", name, "norm", 0): 0.0 for name in ("hidden", "input", "output")}
    keys |= {("activation", name, "size", 0): 0.0 for name in ("stream", "logits")}
    assert slopes.roles(table(keys)) == {
        ("weight", "hidden"): "hidden",
        ("weight", "input"): "input",
        ("weight", "output"): "output",
        ("activation", "stream"): "hidden",
        ("activation", "logits"): "fixed",
    }


def test_weights_with_a_fixed_side_are_judged_by_their_frobenius_norm() -> None:
    given = table(
        {
            ("weight", "input", "norm", 0): 0.9,
            ("weight", "input", "norm_frobenius", 0): 0.0,
            ("weight", "hidden", "norm", 0): 0.0,
            ("weight", "hidden", "norm_frobenius", 0): 0.5,
        }
    )
    found = slopes.fit(given)
    assert list(found["tensor"]) == ["input", "hidden"]
    assert list(found["quantity"]) == ["norm", "norm"]
    assert found["slope"].to_numpy() == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize(
    ("key", "slope", "breaks"),
    [
        (("activation", "stream", "size", 0), 0.5, True),
        (("activation", "stream", "size", 0), -0.5, True),
        (("activation", "logits", "size", 0), 0.5, True),
        (("activation", "logits", "size", 0), -0.5, False),  # outputs may start small
        (("activation", "logits", "change", 1), -0.5, True),
        (("activation", "stream", "size", 5), 0.5, False),  # its change is what is judged
        (("weight", "output", "norm_frobenius", 0), -1.0, False),
        (("weight", "output", "norm_frobenius", 0), 0.5, True),
        (("weight", "hidden", "norm", 0), -0.5, True),
        (("weight", "hidden", "update", 5), 1.0, True),
        (("weight", "hidden", "update", 5), 0.1, False),
    ],
)
def test_rules(key: tuple, slope: float, breaks: bool) -> None:
    # one other tensor each, so that the check has widths that grow
    other = ("weight", "hidden", "norm", 0) if key[1] != "hidden" else ("weight", "input", "x", 0)
    check = slopes.CoordCheck.of(table({other: 0.0, key: slope}, noise=0.01), 0.2)
    assert [f.tensor for f in check.broken] == ([key[1]] if breaks else [])
    assert check.passed is not breaks


def test_undecided_is_neither_broken_nor_kept() -> None:
    check = slopes.CoordCheck.of(table({("weight", "hidden", "update", 1): 0.2}, noise=0.05), 0.2)
    assert [f.status for f in check.findings] == ["undecided"]
    assert check.passed
    assert "undecided: hidden (hidden weight): update's norm grows like width^0.2" in str(check)


def test_the_worst_step_is_named_with_its_cause() -> None:
    check = slopes.CoordCheck.of(
        table({("weight", "hidden", "update", 1): 0.5, ("weight", "hidden", "update", 9): 1.0}), 0.2
    )
    assert check.verdict.splitlines()[1].strip() == (
        "breaks: hidden (hidden weight): update's norm grows like width^1.00 [1.00, 1.00] after "
        "step 9 at η = 0.5: its learning rate times multiplier is too large by width^1.00"
    )


def test_a_tensor_that_never_changes_breaks_the_rule() -> None:
    given = table({("weight", "hidden", "update", 1): 0.0}).assign(value=0.0)
    (finding,) = slopes.CoordCheck.of(given, 0.2).broken
    assert "no update's norm at all after step 1" in finding.text()


def test_zero_at_the_first_step_alone_is_no_fault() -> None:
    given = table({("weight", "hidden", "update", 1): 0.0, ("weight", "hidden", "update", 2): 0.0})
    given.loc[given["step"] == 1, "value"] = 0.0  # behind a readout that starts at zero
    assert slopes.CoordCheck.of(given, 0.2).passed


def test_divergence_is_reported_and_fails() -> None:
    given = table({("activation", "stream", "change", 7): 0.0})
    given.loc[given["width"] == 64, "value"] = math.nan
    check = slopes.CoordCheck.of(given, 0.2)
    assert not check.passed
    assert check.diverged == ("diverges at η = 0.5 from width 64 on, by step 7",)


def linear(width: int, seed: int = 0, eta: float = 0.5, **changes) -> Coord:
    """y = 2·x W, loss = sum y; plain gradient descent, so that every number is known."""
    w = jax.random.normal(jax.random.key(seed), (2, width)) / width
    fields = {
        "params": {"a": {"w": w}},
        "loss": _linear_loss,
        "optimizer": optax.sgd(eta),
        "batch": lambda step: jnp.ones((3, 2)),
        "multipliers": {"a.w": 2.0},
    }
    return Coord(**(fields | changes))


def _linear_loss(params, batch):
    y = 2.0 * batch @ params["a"]["w"]
    return jnp.sum(y), {"y": y}


def test_measurements_are_those_of_the_hand() -> None:
    rows = observe(linear(4), [3])
    w = np.asarray(linear(4).params["a"]["w"])
    at = rows.set_index(["step", "tensor", "quantity"])["value"]
    # sum over 3 rows of ones: dloss/dw = 2·3 everywhere, three steps of η = ½: ΔW = -9
    moved = np.full((2, 4), -9.0)
    unit = math.sqrt(4 / 2)
    assert at[0, "a.w", "norm"] == pytest.approx(2 * np.linalg.norm(w, 2) / unit, rel=1e-5)
    assert at[3, "a.w", "norm"] == pytest.approx(2 * np.linalg.norm(w + moved, 2) / unit, rel=1e-5)
    assert at[3, "a.w", "update"] == pytest.approx(2 * 9 * math.sqrt(8) / unit, rel=1e-5)
    assert at[3, "a.w", "update_frobenius"] == pytest.approx(2 * 9 * math.sqrt(8) / unit, rel=1e-5)
    assert at[0, "y", "size"] == pytest.approx(2 * np.sqrt(np.mean(w.sum(0) ** 2)), rel=1e-5)
    assert at[3, "y", "change"] == pytest.approx(36, rel=1e-5)
    assert set(rows["quantity"][rows["step"] == 0]) == {"size", "norm", "norm_frobenius"}


def test_stacked_weights_are_matrices_side_by_side() -> None:
    w = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)
    spectral, frobenius = coord._norms(np.asarray(coord._gram(jnp.asarray(w))))
    norms = np.array([np.linalg.norm(m, 2) for m in w]) / math.sqrt(3 / 6)
    assert float(spectral) == pytest.approx(np.sqrt(np.mean(norms**2)), rel=1e-5)
    assert float(frobenius) == pytest.approx(np.linalg.norm(w) / math.sqrt(5 * 3 / 6), rel=1e-5)


@pytest.mark.one_device
def test_norms_are_found_again_and_again_whatever_is_stacked() -> None:
    """LAPACK beside other work in one program made XLA's CPU backend wait for ever."""
    shapes = {"a": (3, 64), "b": (3, 64, 64), "c": (3, 64), "d": (64,), "e": (8, 64), "f": (64, 4)}
    params = {n: jax.random.normal(jax.random.key(i), s) for i, (n, s) in enumerate(shapes.items())}
    program = jax.jit(lambda: coord._grams(params, params, dict.fromkeys(shapes, 1.0)))
    assert "custom_call" not in program.lower().as_text()
    for _ in range(50):
        found = coord._norms_all(params, params, dict.fromkeys(shapes, 1.0))
    for name, w in params.items():
        unit = math.sqrt(w.shape[-1] / (w.shape[-2] if w.ndim > 1 else 1))
        matrices = np.asarray(w).reshape(-1, w.shape[-2] if w.ndim > 1 else 1, w.shape[-1])
        spectral = [np.linalg.norm(m, 2) / unit for m in matrices]
        assert found[name]["norm"] == pytest.approx(np.sqrt(np.mean(np.square(spectral))), rel=1e-4)
        assert found[name]["update"] == 0.0


def test_a_vector_is_measured_by_its_rms() -> None:
    spectral, _ = coord._norms(np.asarray(coord._gram(jnp.asarray([3.0, 4.0, 0.0, 0.0]))))
    assert float(spectral) == pytest.approx(2.5)


def test_after_divergence_the_rest_is_nan_and_not_trained() -> None:
    seen = []

    def batch(step):
        seen.append(step)
        return jnp.full((3, 2), math.nan if step == 1 else 1.0)

    rows = observe(linear(4, batch=batch, probe=jnp.ones((3, 2))), [1, 2, 50])
    finite = rows.groupby("step")["value"].apply(lambda v: bool(np.isfinite(v).all()))
    assert dict(finite) == {0: True, 1: True, 2: False, 50: False}
    assert max(seen) == 1


@pytest.mark.one_device
def test_nnx_state_is_a_tree_like_any_other() -> None:
    def model_fn(width, seed, eta):
        graph, params = nnx.split(nnx.Linear(2, width, rngs=nnx.Rngs(seed)))
        return Coord(params, _nnx_loss(graph), optax.sgd(eta), lambda step: jnp.ones((3, 2)))

    found = coord_check(model_fn, widths=WIDTHS, etas=(0.1,), seeds=(0,), steps=(1,))
    assert {"kernel", "bias"} == {f.tensor for f in found.findings if f.kind == "weight"}


def _nnx_loss(graph):
    def loss(params, batch):
        y = nnx.merge(graph, params)(batch)
        return jnp.mean(y**2), {"y": y}

    return loss


def test_the_example_of_the_docstring() -> None:
    failed, tried = doctest.testmod(coord)
    assert (failed, tried > 5) == (0, True)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("widths", {"widths": (8, 16)}),
        ("widths", {"widths": (0, 16, 32)}),
        ("etas", {"etas": ()}),
        ("etas", {"etas": (-1.0,)}),
        ("seeds", {"seeds": ()}),
        ("steps", {"steps": (0, 1)}),
        ("tolerance", {"tolerance": 0.5}),
        ("model_fn", {"model_fn": None}),
        ("model_fn", {"model_fn": lambda w, s, e: None}),
        ("model_fn", {"model_fn": lambda w, s, e: linear(4)}),
        ("model_fn", {"model_fn": lambda w, s, e: linear(w, loss=named(w))}),
        ("params", {"model_fn": lambda w, s, e: linear(w, params={"a": "text"})}),
        ("optimizer", {"model_fn": lambda w, s, e: linear(w, optimizer=0.1)}),
        ("loss", {"model_fn": lambda w, s, e: linear(w, loss=lambda p, b: jnp.ones(()))}),
        ("loss", {"model_fn": lambda w, s, e: linear(w, loss=lambda p, b: (p["a"]["w"], {}))}),
        ("batch", {"model_fn": lambda w, s, e: linear(w, batch=jnp.ones((3, 2)))}),
        ("multipliers['b']", {"model_fn": lambda w, s, e: linear(w, multipliers={"b": 1.0})}),
    ],
)
def test_bad_input_names_its_field(field: str, changes: dict) -> None:
    given = {"model_fn": linear, "widths": WIDTHS, "etas": (0.1,), "seeds": (0,), "steps": (1,)}
    with pytest.raises(ConfigError) as caught:
        coord_check(**(given | changes))
    assert caught.value.field == field


def named(width: int):
    """A loss whose activation has another name at every width."""

    def loss(params, batch):
        value, seen = _linear_loss(params, batch)
        return value, {f"y{width}": seen["y"]}

    return loss
