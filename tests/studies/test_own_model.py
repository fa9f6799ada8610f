"""The study own_model: foreign models, roles and numbers, measures, tables, the chapter's code."""

from __future__ import annotations

import difflib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from synthetic import EMPTY, drawn, marks, points_of
from umup.config import OptimConfig
from umup.errors import ConfigError
from umup.lab import claims
from umup.lab.claims import NotMeasured
from umup.lab.folders import code
from umup.lab.records import Results
from umup.lab.study import parameters
from umup.optim import lr_factors, mark
from umup.rules import Parametrization

study = code("own_model").design
figures = code("own_model").figures
glyphs = code("own_model").glyphs
measuring = code("own_model").measures
models = code("own_model").models
plain = code("own_model").plain
words = code("own_model").words
tables = code("own_model").results

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "experiments" / "own_model"
CONFIG = OptimConfig(steps=4, batch_size=8, warmup_steps=1)


def numbers(width: int, base: int = 8, scheme: str = "mup") -> Parametrization:
    return Parametrization.of_width(scheme, width, base, base_d_head=base // models.HEADS)


# Roles in models that are not ours


def meta(param: nnx.Param) -> tuple:
    got = param.get_metadata()
    return tuple(got[name] for name in ("role", "fan_in", "fan_out", "residual"))


def test_marks_are_the_named_role_for_matrices_and_input_for_vectors() -> None:
    def layers():
        rngs = nnx.Rngs(0)
        return nnx.Linear(3, 5, rngs=rngs), nnx.Conv(4, 6, (3, 3), rngs=rngs)

    linear, conv = nnx.eval_shape(layers)
    mark(linear, "hidden", residual=True)
    mark(conv, "hidden")
    assert meta(linear.kernel) == ("hidden", 3, 5, True)
    assert meta(linear.bias) == ("input", 1, 5, True)
    assert meta(conv.kernel) == ("hidden", 3 * 3 * 4, 6, False)
    alone = nnx.Param(jnp.zeros(7))
    mark(alone, "hidden")
    assert meta(alone) == ("hidden", 1, 7, False)


def test_bad_marks_are_errors() -> None:
    linear = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
    for part, role, field in ((linear, "bias", "role"), (nnx.Dropout(0.1), "hidden", "part")):
        with pytest.raises(ConfigError) as error:
            mark(part, role)
        assert error.value.field == field
    with pytest.raises(ConfigError, match="without a role"):
        lr_factors(nnx.state(linear, nnx.Param), numbers(8))


def test_every_parameter_of_the_transformer_has_its_factor() -> None:
    width, base = 32, 8
    vit = nnx.eval_shape(lambda: models.ViT(width, numbers(width), rngs=nnx.Rngs(0)))
    got = lr_factors(nnx.state(vit, nnx.Param), numbers(width))
    matrices = {"qkv", "out", "up", "down"}
    flat = {".".join(map(str, path)): float(v[...]) for path, v in nnx.to_flat_state(got)}
    hidden = {f"blocks.{i}.{m}.kernel" for i in range(plain.BLOCKS) for m in matrices}
    assert {name for name, factor in flat.items() if factor == base / width} == hidden
    assert {factor for name, factor in flat.items() if name not in hidden} == {1.0}


def test_the_readout_keeps_the_initialization_of_the_base() -> None:
    width, base = 128, 8
    layer, scale = models.readout(width, numbers(width), rngs=nnx.Rngs(0))
    assert scale == base / width
    assert float(jnp.std(layer.kernel[...])) == pytest.approx(base**-0.5, rel=0.05)  # 3328 draws


@pytest.mark.parametrize("model", ["MLP", "ViT"])
def test_at_the_base_width_the_rules_change_nothing(model: str, monkeypatch) -> None:
    for module in (plain, models):
        monkeypatch.setattr(module, "BLOCKS", 1)  # half the time to compile

    @jax.jit
    def both(key):
        old = getattr(plain, model)(8, rngs=nnx.Rngs(params=key))
        new = getattr(models, model)(8, numbers(8), rngs=nnx.Rngs(params=key))
        images, letters = glyphs.batch(key, 16)
        return (
            updated(old, plain.optimizer(old, CONFIG, 0.01), images, letters),
            updated(new, models.optimizer(new, numbers(8), CONFIG, 0.01), images, letters),
        )

    def updated(made, adam, images, letters):
        graph, params = nnx.split(made)

        def loss(params):
            return measuring.cross_entropy(nnx.merge(graph, params)(images), letters)

        value, gradient = jax.value_and_grad(loss)(params)
        update, _ = adam.update(gradient, adam.init(params), params)
        return value, jax.tree.leaves(optax.apply_updates(params, update))

    old, new = both(jax.random.key(3))
    for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


# Images


def test_letters_fill_their_masters_and_differ() -> None:
    masters = glyphs.masters()
    assert masters.shape == (16, 26, 24, 24)
    assert masters.max(axis=(2, 3)).min() > 0.5, "every letter has ink"
    flat = masters.reshape(16 * 26, -1)
    assert len(np.unique(flat, axis=0)) == len(flat)


def test_a_stream_is_a_pure_function_of_its_key() -> None:
    key = jax.random.key(5)
    images, letters = glyphs.stream(key, 3, 512)
    again, _ = glyphs.batch(jax.random.fold_in(key, 2), 512)
    np.testing.assert_array_equal(images[2], again)
    assert not np.array_equal(images[1], images[2])
    assert float(images.mean()) == pytest.approx(0.0, abs=0.1)
    assert float(jnp.sqrt(jnp.mean(images**2))) == pytest.approx(0.5, abs=0.1)
    assert set(np.asarray(letters).ravel().tolist()) == set(range(26))


# Measures

CURVE = {
    "model": "mlp",
    "scheme": "mup",
    "wrong": "",
    "width": 16,
    "base_width": 8,
    "steps": 1,
    "batch_size": 16,
    "warmup_ratio": 0.0,
    "held_out": 16,
    "near": [-8.0, 126.0],
    "far": [-9.0],
    "seeds": 2,
}


def test_a_curve_has_every_seed_near_one_far_and_keeps_what_diverged() -> None:
    got = measuring.curve(**CURVE)
    assert got["log2_eta"] == [-8.0, -8.0, 126.0, 126.0, -9.0]
    assert got["seed"] == [0, 1, 0, 1, 0]
    weights, data = jax.random.split(jax.random.key(1))
    images, letters = glyphs.batch(jax.random.fold_in(data, 0), 16)
    logits = jax.jit(lambda key: models.MLP(16, numbers(16), rngs=nnx.Rngs(params=key))(images))
    wanted = -jax.nn.log_softmax(logits(weights))[np.arange(16), letters].mean()
    assert got["train"][1] == pytest.approx(float(wanted), rel=1e-5)  # seed 1, before any update
    assert got["loss"][0] != got["loss"][4]
    assert got["loss"][2] is None
    assert got["accuracy"][2] is None
    assert 0 <= got["accuracy"][0] <= 1


def test_an_unknown_parameter_cannot_have_a_wrong_role() -> None:
    with pytest.raises(ConfigError, match=r"hidden\.kernel") as error:
        setup = measuring.Setup("mlp", "mup", 8, 8, "hidden.gain")
        nnx.eval_shape(lambda: setup.build(jax.random.key(0)))
    assert error.value.field == "wrong"


def test_a_wrong_role_slows_the_parameter_alone() -> None:
    setup = measuring.Setup("mlp", "mup", 32, 8, "hidden.bias")
    made = nnx.eval_shape(lambda: setup.build(jax.random.key(0)))
    factors = lr_factors(nnx.state(made, nnx.Param), setup.numbers())
    assert float(factors["hidden"]["bias"][...]) == 8 / 32
    assert float(factors["first"]["bias"][...]) == 1.0


def test_activations_are_what_layers_and_methods_give() -> None:
    images, letters = glyphs.batch(jax.random.key(0), 4)
    vit = nnx.eval_shape(lambda: plain.ViT(8, rngs=nnx.Rngs(0)))
    _, seen = jax.eval_shape(
        measuring.checked_loss(nnx.graphdef(vit)), nnx.state(vit), (images, letters)
    )
    layers = [f"blocks.{i}.{n}" for i in (0, 1) for n in ("qkv", "out", "up", "down", "norm1")]
    assert {*layers, "patch", "blocks.0", "blocks.1.attend", "norm"} < set(seen)
    assert seen["blocks.1.attend"].shape == (4, 10, 8)  # nine patches and the class token

    @jax.jit
    def both(key):
        mlp = plain.MLP(8, rngs=nnx.Rngs(params=key))
        loss = measuring.checked_loss(nnx.graphdef(mlp))
        logits = mlp(images)
        return loss(nnx.state(mlp), (images, letters)), logits

    (loss, seen), logits = both(jax.random.key(0))
    assert set(seen) == {"first", "norm", "hidden", "readout"}
    np.testing.assert_allclose(seen["readout"], logits, rtol=1e-5, atol=1e-6)
    assert float(loss) == pytest.approx(float(measuring.cross_entropy(logits, letters)), rel=1e-5)


# The design


def test_points_are_every_arm_and_width_the_dearest_first() -> None:
    design = study.OwnModel(wrong_curves=("mlp.readout.kernel",))
    points = design.points()
    curves = [p.spec for p in points if p.what == "curve"]
    assert len(curves) == 2 * 2 * 3 + 3
    assert [(c["model"], c["width"]) for c in curves[:2]] == [("vit", 32)] * 2
    assert {c["base_width"] for c in curves if c["model"] == "mlp"} == {32}
    checks = [p.spec for p in points if p.what == "coord"]
    assert [c["wrong"] for c in checks] == ["", "", "", "", "hidden.bias"]
    assert len({p.key() for p in points}) == len(points)
    assert {p.spec["model"] for p in replace(design, models=("mlp",)).points()} == {"mlp"}


def test_the_grid_keeps_the_learning_rate_of_the_base() -> None:
    near, far = study.OwnModel(near=1.0, far=2.0).grid("vit", "sp", 32)
    assert near == [-8.0, -7.5, -7.0, -6.5, -6.0, -5.0]  # −7 ± 1 and the base's −5
    assert far == [-9.0]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mlp_widths": (32, 64)}, "mlp_widths"),
        ({"vit_widths": (8, 16, 30)}, "vit_widths"),
        ({"mlp_sp": (-6.0,)}, "mlp_sp"),
        ({"models": ()}, "models"),
        ({"models": ("cnn",)}, "models"),
        ({"wrong_checks": ("hidden.bias",)}, "wrong_checks"),
        ({"spacing": 0.3}, "spacing"),
        ({"seeds": 2, "wide_seeds": 3}, "wide_seeds"),
    ],
)
def test_bad_parameters_are_errors_that_name_the_field(changes: dict, field: str) -> None:
    with pytest.raises(ConfigError) as error:
        study.OwnModel(**changes)
    assert error.value.field == field


# Tables, with planted optima: μP's stays at −6, SP's falls by an octave a doubling

WIDTHS = (32, 64, 128, 256)
DESIGN = study.OwnModel(
    mlp_widths=WIDTHS,
    vit_widths=WIDTHS,
    mlp_sp=(-6, -7, -8, -9),
    mlp_mup=(-6,) * 4,
    vit_sp=(-6, -7, -8, -9),
    vit_mup=(-6,) * 4,
    near=1.5,
    far=3.0,
    seeds=3,
    wide_seeds=2,
    wrong_curves=("mlp.readout.kernel",),
    wrong_checks=("mlp.hidden.bias", "mlp.readout.kernel", "vit.norm.scale"),
)
SLOPES = {"sp": 1.0, "mup": 0.0}


def planted(spec: dict) -> dict:
    """Loss 2 − 0.1·doublings + 0.1·(distance)² + a seed's own, and 0.03 for a wrong role."""
    doublings = math.log2(spec["width"] / 32)
    best = -6.0 - doublings * (spec["scheme"] == "sp")
    lanes = [(x, s) for x in spec["near"] for s in range(spec["seeds"])]
    lanes += [(x, 0) for x in spec["far"]]
    loss = [
        2 - 0.1 * doublings + 0.1 * (x - best) ** 2 + 0.01 * s + 0.03 * bool(spec["wrong"])
        for x, s in lanes
    ]
    return {
        "log2_eta": [x for x, _ in lanes],
        "seed": [s for _, s in lanes],
        "train": loss,
        "loss": loss,
        "accuracy": [0.5] * len(lanes),
    }


def planted_check(spec: dict) -> dict:
    """Updates of hidden.kernel that grow like width^slope, of the wrong one like 1/width."""
    rows = []
    for width in spec["widths"]:
        for eta in spec["log2_etas"]:
            for seed in range(3):
                slopes = {"hidden.kernel": SLOPES[spec["scheme"]]}
                slopes |= {spec["wrong"]: -1.0} if spec["wrong"] else {}
                rows += [
                    (
                        width,
                        seed,
                        2.0**eta,
                        1,
                        "weight",
                        name,
                        quantity,
                        (1 + 0.01 * seed) * width**slope,
                        [width, width],
                    )
                    for name, slope in slopes.items()
                    for quantity in ("update", "update_frobenius")
                ]
    names = ("width", "seed", "eta", "step", "kind", "tensor", "quantity", "value", "shape")
    return {name: list(column) for name, column in zip(names, zip(*rows))}


@pytest.fixture(scope="module")
def results() -> Results:
    made = {"curve": planted, "coord": planted_check}
    points = points_of(DESIGN.points(), lambda p: made[p.what](dict(p.spec)))
    return Results(EMPTY.runs, points)


@pytest.mark.parametrize("model", ["mlp", "vit"])
def test_planted_shifts_and_prices_are_recovered(results: Results, model: str) -> None:
    assert tables.eta_shift(results, model, "mup").value == pytest.approx(0.0, abs=1e-6)
    assert tables.eta_shift(results, model, "sp").value == pytest.approx(-3.0, abs=1e-6)
    assert tables.shift_difference(results, model).value == pytest.approx(-3.0, abs=1e-6)
    assert tables.price(results, model, "mup").value == pytest.approx(0.0)
    assert tables.price(results, model, "sp").value == pytest.approx(0.1 * 3**2)
    assert tables.widening(results, model, "mup").value == pytest.approx(-0.1)
    # from 128 to 256 at the base's η: −0.1 + 0.1·(3² − 2²)
    assert tables.widening(results, model, "sp").value == pytest.approx(0.4)


def test_checks_find_what_was_planted(results: Results) -> None:
    assert tables.broken(results, "mlp", "mup").value == 0
    assert tables.broken(results, "vit", "sp").value == 1
    assert tables.broken(results, "mlp", "mup", "hidden.bias").value == 1
    slope = tables.update_slope(results, "vit", "mup", "norm.scale", "norm.scale")
    assert slope.value == pytest.approx(-1.0)
    assert tables.wrong_role(results, "mlp", "readout.kernel").value == pytest.approx(0.03)


def test_a_seed_that_diverged_at_the_bases_eta_has_an_infinite_price(results: Results) -> None:
    points = results.points.copy()
    for i, row in points.iterrows():
        spec, result = json.loads(row["spec"]), json.loads(row["result"])
        if (spec.get("width"), spec["scheme"], spec["model"]) == (256, "sp", "mlp"):
            at = result["log2_eta"].index(-6.0)
            result["loss"][at] = None
            points.loc[i, "result"] = json.dumps(result)
    got = Results(results.runs, points)
    assert tables.price(got, "mlp", "sp").value == math.inf
    assert tables.widening(got, "mlp", "sp").value == math.inf
    assert tables.eta_shift(got, "mlp", "sp").value == pytest.approx(-3.0, abs=1e-6)
    assert "diverges" in words.widths_table(got)


def test_what_is_absent_or_too_narrow_is_not_measured(results: Results) -> None:
    for quantity, args in (
        (tables.eta_shift, ("mlp", "mup")),
        (tables.broken, ("mlp", "mup")),
        (tables.wrong_role, ("mlp", "readout.kernel")),
    ):
        with pytest.raises(NotMeasured):
            quantity(EMPTY, *args)
        with pytest.raises(NotMeasured, match="span 8×, the claim needs 16×"):
            quantity(results, *args, factor=16)


def test_every_claim_is_judged_from_full_records(results: Results) -> None:
    verdicts = {v.id: v for v in claims.evaluate(HERE, results, "cpu")}
    assert {v.note for v in verdicts.values() if v.verdict == "not measured"} == set()
    assert verdicts["vit-sp-falls"].verdict == verdicts["mlp-mup-steady"].verdict == "holds"
    assert verdicts["vit-sp-check"].verdict == "fails"  # one rule broken, nine wanted


def test_profiles_are_designs() -> None:
    for profile in ("smoke", "cpu", "h100"):
        values = parameters(HERE, profile)
        design = study.OwnModel.from_dict(values)
        if profile != "smoke":
            assert all(max(w) >= 8 * min(w) for w in (design.mlp_widths, design.vit_widths))


# Words, figures and the chapter


def test_texts_say_the_planted_numbers(results: Results) -> None:
    said = words.numbers(results, 1)
    assert (said["shift_mlp_sp"], said["price_vit_sp"], said["wrong_gain"]) == (
        "−3.0",
        "0.9",
        "−1.0",
    )
    assert said["broken_mlp_mup"] == "0 of 1"
    assert words.numbers(EMPTY, 1)["shift_mlp_sp"] == words.ABSENT
    assert "−3.0 and −3.0 under SP" in words.answer(results, 1)
    # an arm of μP: 7 learning rates × (3 + 3 + 3 + 2) seeds + 4 × 4; SP adds 3 + 2 and misses 2
    assert words.what_ran(results).startswith(f"{3 * 93 + 2 * 96} models, 0 of them diverged: MLPs")
    assert words.checks_table(results, 1).count("\n") == 1 + 4 + 3
    assert "| MLP, μP, hidden.bias as hidden | 1 of 2 | 0 | hidden.bias −1.0 |" in (
        words.checks_table(results, 1)
    )


@pytest.mark.parametrize("name", ["transfer", "drift", "updates"])
def test_figures_draw_with_labels_and_say_when_there_is_nothing(
    results: Results, name: str
) -> None:
    figure = getattr(figures, name)(results)
    figure.draw_without_rendering()
    assert all(ax.get_title() for ax in figure.axes)
    assert figure.axes[-1].get_xlabel()
    assert not getattr(figures, name)(EMPTY).axes[0].get_title()


@pytest.mark.slow
def test_the_chapters_code_runs_and_its_model_passes_the_check(capsys) -> None:
    text = (ROOT / "book" / "own-model.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    exec("\n".join(blocks), {"__name__": "chapter"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "0.125 0.125"
    assert printed[1].startswith("passes: 0 of 20 rules broken")


def test_the_chapter_highlights_what_is_new_in_the_models() -> None:
    text = (ROOT / "book" / "own-model.md").read_text(encoding="utf-8")
    given = re.search(r"^:emphasize-lines: (.*)$", text, re.M)
    assert given
    shown = set()
    for part in given[1].split(","):
        first, _, last = part.partition("-")
        shown |= set(range(int(first), int(last or first) + 1))
    old, new = (
        Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
        for module in (plain, models)
    )
    kept = {
        j + 1
        for _, start, size in difflib.SequenceMatcher(None, old, new, False).get_matching_blocks()
        for j in range(start, start + size)
    }
    blank = {j for j, line in enumerate(new, 1) if not line.strip()}
    assert shown - blank == set(range(1, len(new) + 1)) - kept - blank


def test_the_chapter_shows_code_that_is_there_and_numbers_that_are_glued() -> None:
    text = (ROOT / "book" / "own-model.md").read_text(encoding="utf-8")
    for path, symbol in re.findall(
        r"literalinclude\} (\S+)\n:language: python\n:pyobject: (\w+)", text
    ):
        source = (ROOT / "book" / "_build" / "src" / path).resolve()
        assert re.search(rf"^(class|def) {symbol}\b", source.read_text("utf-8"), re.M)
    named = set(re.findall(r"own_model\.ipynb::(\w+):s`", text))
    assert named
    assert named <= set(words.numbers(EMPTY))


def test_losses_over_learning_rates_are_drawn_by_width(results: Results) -> None:
    axes = iter(figures.transfer(results).axes)
    for model in ("mlp", "vit"):
        for scheme in ("sp", "mup"):
            ax, own = next(axes), tables.arm(results, model, scheme)
            assert ax.get_title() == tables.title(model, scheme)
            for width, at in own.groupby("width"):
                mean = at.groupby("log2_eta")["loss"].mean().reset_index()
                np.testing.assert_allclose(drawn(ax)[str(width)], mean)


def test_the_tolerance_is_that_of_the_claims() -> None:
    """A role marked wrongly is to show an exponent of −1, give or take the check's tolerance."""
    for name in ("bias", "gain", "readout"):
        bound = claims.bound("own_model", f"{name}-as-hidden-caught")
        assert bound == pytest.approx(-1 + tables.TOLERANCE)


def test_drifts_and_updates_are_those_of_the_tables(results: Results) -> None:
    for ax, model in zip(figures.drift(results).axes, ("mlp", "vit"), strict=True):
        for scheme, label in tables.SCHEMES.items():
            fits = tables.optima(tables.arm(results, model, scheme))
            x = np.array([f.x for f in fits.values()])
            np.testing.assert_allclose(drawn(ax)[label][:, 1], x - x[0])
    for ax, model in zip(figures.updates(results).axes, ("mlp", "vit"), strict=True):
        checks = tables.checks(results, tables.TOLERANCE)
        slopes = [
            slope
            for arm, check in checks.items()
            if arm[0] == model
            for name, (slope, *_) in figures._first_updates(check.slopes).items()
            if not arm[2] or name == arm[2]
        ]
        np.testing.assert_allclose(marks(ax)[:, 0], slopes)
        assert len(slopes) > 2
