"""The planner's arithmetic, against hand-worked cases, brute force and the model itself."""

import dataclasses
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from umup.config import ModelConfig
from umup.plan import Case, budgets, formulas

CASE = Case(
    d_model=64,
    n_layers=2,
    d_head=16,
    d_ff=256,
    vocab_size=128,
    seq_len=32,
    remat="none",
    attention="xla",
    batch_size=8,
    act_bytes=2,
    param_bytes=4,
    in_bytes=2,
    wide_bytes=2,
    weight_bytes=2,
    fp8_share=0.0,
    memory=80e9,
    usable=0.5,
    bandwidth=1e12,
    link_bandwidth=100e9,
    network_bandwidth=10e9,
    node_devices=4,
    peak_flops=1e15,
    peak_fp8_flops=2e15,
    gemm_efficiency=0.5,
    attention_efficiency=0.25,
    overhead=1e-3,
    usd_per_hour=2.0,
    copied_moments=0,
    work_bytes=0,
    unfused_sums=0,
)
FAMILY = replace(CASE, d_model=128, d_ff=512, seq_len=256, batch_size=64)
"""Of 64 features per layer and four times as many in the feed-forward."""


def test_parameters_are_those_of_the_model():
    model = ModelConfig(
        d_model=64, n_layers=2, d_head=16, d_ff=256, vocab_size=128, seq_len=32, base_d_head=16
    )
    found = formulas.parameters(CASE)
    assert found.total == model.n_params
    assert formulas.flops(CASE).model == model.step_flops(8)
    assert found.total == found.embedding + found.non_embedding
    assert found.mlp == 2 * 3 * 64 * 256


def test_flops_of_a_step_by_hand():
    f = formulas.flops(CASE)
    tokens = 8 * 32
    blocks = 6 * tokens * 2 * (4 * 64**2 + 3 * 64 * 256)
    square = 3 * 2 * 2 * 2 * tokens * 32 * 64  # three passes of two products in two layers
    assert f.model == f.compiled == blocks + 6 * tokens * 128 * 64 + square
    assert f.six_nd == 6 * tokens * formulas.parameters(CASE).total


def test_rematerialization_computes_the_forward_products_again():
    none, dots, full = (
        formulas.flops(replace(CASE, remat=remat)) for remat in ("none", "dots", "full")
    )
    square = 4 * 256 * 32 * 64 * 2
    assert dots.compiled - none.compiled == pytest.approx(square)
    # All but the down-projection, whose output the backward pass does not need.
    again = 2 * 256 * 2 * (4 * 64**2 + 2 * 64 * 256)
    assert full.compiled - none.compiled == pytest.approx(again + square)
    assert none.model == dots.model == full.model


@pytest.mark.parametrize(
    ("attention", "seq_len", "share"),
    [
        ("xla", 256, 1.0),
        ("cudnn", 256, 0.5),
        ("blocked", 256, 10 / 16),
        ("blocked", 32, 3 / 4),
        ("blocked", 31, 1.0),
    ],
)
def test_share_of_the_square_that_is_computed(attention, seq_len, share):
    assert formulas.attended(replace(CASE, attention=attention, seq_len=seq_len)) == share


def test_what_a_block_keeps_by_hand():
    tokens = 8 * 32
    kept = formulas.kept(CASE)
    assert kept.stream == 2 * tokens * 64 * 2
    # Inputs of the four linears, and gate|up before its activation.
    assert kept.linears == 2 * (2 * tokens * 64 + tokens * 64 + tokens * 256 + 2 * tokens * 256)
    # q, k, v, and float32 weights of four heads.
    assert kept.attention == 2 * 3 * tokens * 64 + 4 * tokens * 4 * 32
    dots = formulas.kept(replace(CASE, remat="dots"))
    assert dots.total == 2 * tokens * (64 + 3 * 64 + 64 + 2 * 256)
    assert formulas.kept(replace(CASE, remat="full")).total == 2 * tokens * 64


def test_what_is_split_over_devices():
    mesh = replace(CASE, data=2, fsdp=2, tensor=2)
    one, many = formulas.memory(CASE), formulas.memory(mesh)
    assert one.state == 12 * formulas.parameters(CASE).total
    assert many.state == one.state / 4  # data replicates
    assert many.gradients == one.gradients / 4
    assert mesh.local_tokens == CASE.local_tokens / 4 and mesh.devices == 8
    assert formulas.kept(mesh).stream == formulas.kept(CASE).stream / 4  # features whole
    assert formulas.kept(mesh).attention == formulas.kept(CASE).attention / 8
    parts = replace(CASE, accumulate=4)
    assert formulas.kept(parts).total == formulas.kept(CASE).total / 4


def test_one_device_receives_nothing():
    assert not any(dataclasses.astuple(formulas.communication(CASE)))


def test_rings_by_hand():
    mesh = replace(CASE, data=1, fsdp=4, tensor=1)
    found = formulas.communication(mesh)
    blocks, table = 2 * (4 * 64**2 + 3 * 64 * 256), 128 * 64
    assert found.gathered == 2 * (2 * blocks + 2 * table)
    assert found.scattered == 2 * (blocks + table)
    received = 0.75 * (found.gathered + found.scattered + found.lookup)
    assert found.fsdp_s == pytest.approx(received / 100e9)
    slow = formulas.communication(replace(mesh, node_devices=2))  # the ring leaves the node
    assert slow.fsdp_s == pytest.approx(10 * found.fsdp_s)
    split = formulas.communication(replace(CASE, tensor=2))
    assert split.sums == 256 * 64 * (2 * (2 * 4 + 1) + 4)
    assert split.tensor_s == pytest.approx(split.sums / 100e9)  # 2·(n−1)/n = 1


def test_step_time_is_the_sum_of_its_parts():
    s = formulas.step_time(replace(CASE, fsdp=4))
    busy = s.products + s.attention + s.elementwise + s.overhead
    assert s.seconds == pytest.approx(busy)  # gathers hide
    flops = formulas.flops(CASE)
    one = formulas.step_time(CASE)
    assert one.products == pytest.approx((flops.blocks + flops.readout) / 1e15 / 0.5)
    assert one.mfu == pytest.approx(flops.model / one.seconds / 1e15)
    assert one.overhead == 2e-3 and one.limit == "overhead"
    slow = formulas.step_time(replace(CASE, fsdp=4, link_bandwidth=1e6))
    assert slow.limit == "communication" and slow.exposed > 0


def test_fp8_products_take_half_the_time():
    plain = formulas.step_time(CASE).products
    assert formulas.step_time(replace(CASE, fp8_share=1.0)).products == pytest.approx(plain / 2)


def test_layouts_divide_fit_and_leave_none_out():
    def mesh(c):
        return c.data, c.fsdp, c.tensor

    case = replace(CASE, batch_size=12, memory=4e6)
    found = [layout.case for layout in budgets.layouts(case, 4)]
    assert all(budgets.divides_evenly(c) and budgets.spare(c) >= 0 for c in found)
    ways = itertools.product((1, 2, 4), repeat=3)
    every = {axes for axes in ways if math.prod(axes) == 4}
    roomy = budgets.layouts(replace(case, memory=1e12), 4)
    assert {mesh(layout.case) for layout in roomy} == every
    fitting = {mesh(c) for c in found}
    assert fitting < every  # some do not fit, such as a replica each
    assert (4, 1, 1) not in fitting and (1, 4, 1) in fitting


@pytest.mark.parametrize("n", [1, 2, 12, 36, 97, 720, 9409, 9999])
def test_divisors(n):
    assert budgets.divisors(n) == [i for i in range(1, n + 1) if n % i == 0]


def test_a_prime_number_of_devices_has_a_layout_only_where_it_divides_the_batch():
    prime = 999_999_937
    assert budgets.layouts(replace(CASE, batch_size=64), prime) == []
    ((found, _),) = budgets.layouts(replace(CASE, batch_size=prime), prime)
    assert (found.data, found.fsdp, found.tensor) == (prime, 1, 1)


def test_the_fastest_is_so_among_every_number_of_parts():
    levels, case = ("none", "dots", "full"), replace(CASE, batch_size=64, overhead=1e-6)
    every = [replace(case, remat=level, accumulate=2**i) for level in levels for i in range(7)]
    sizes = sorted(formulas.memory(one).total for one in every)
    for size in sizes[::4]:
        fit = [one for one in every if formulas.memory(one).total <= size]
        best = min(formulas.step_time(one).seconds for one in fit)
        found = budgets.fastest(replace(case, memory=size * (1 + 1e-12), usable=1.0))
        assert found and found.seconds == best
    assert budgets.fastest(replace(case, memory=sizes[0] / 2)) is None


@pytest.mark.parametrize("attention", ["xla", "blocked", "cudnn"])
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
def test_mfu_is_a_share_on_the_best_of_machines(attention, remat, share):
    best = replace(
        CASE, gemm_efficiency=1.0, attention_efficiency=1.0, overhead=0.0, bandwidth=1e21
    )
    case = replace(best, attention=attention, remat=remat, fp8_share=share)
    found = formulas.step_time(replace(case, seq_len=2**17, batch_size=1))
    again = formulas.flops(case).recomputed / formulas.flops(case).compiled
    assert found.mfu <= 1
    assert found.mfu > 0.999 if remat == "none" else 0.6 < found.mfu < 1 - again / 3


@pytest.mark.parametrize(
    ("changes", "hours", "bound"),
    [({}, 1e-2, "time"), ({"memory": 3e8}, 1e3, "memory"), ({"memory": 1e13}, 1e9, "depth")],
)
def test_what_bounds_the_largest(changes, hours, bound):
    family = replace(FAMILY, **changes)
    found = budgets.largest(family, 4, hours * 3600, 20.0)
    c = found.layout.case
    assert found.bound == bound and found.tokens >= 20 * formulas.parameters(c).total
    if bound == "memory":
        shapes = (budgets.with_depth(family, n) for n in range(c.n_layers + 1, 161))
        assert not any(budgets.layouts(one, 4) for one in shapes)


def test_the_largest_is_the_largest():
    (c, _), seen, _ = budgets.largest(FAMILY, 4, 60.0, 20.0)
    assert c.n_layers >= 2 and seen >= 20 * formulas.parameters(c).total
    above = budgets.with_depth(FAMILY, c.n_layers + 1)
    fastest = min(layout.seconds for layout in budgets.layouts(above, 4))
    tokens = 60.0 / fastest * 64 * 256
    assert tokens < 20 * formulas.parameters(above).total
    assert budgets.largest(FAMILY, 4, 1e-6, 20.0) == (None, 0.0, "time")


def test_another_depth_has_the_proportions_of_the_first():
    deep = budgets.with_depth(FAMILY, 24)
    assert (deep.n_layers, deep.d_model, deep.d_ff) == (24, 24 * 64, 4 * 24 * 64)
    odd = budgets.with_depth(FAMILY, 3)  # 192 features lie between two multiples of 128
    assert (odd.d_model, odd.d_ff) == (256, 1024)
    assert replace(odd, n_layers=2, d_model=128, d_ff=512) == FAMILY


@pytest.mark.parametrize("budget", [1e18, 1e21, 1e24])
def test_chinchilla_is_the_least_loss_of_its_fit(budget):
    best = budgets.chinchilla(budget)
    n = best.parameters * np.exp(np.linspace(-3, 3, 20001))
    losses = 1.8172 + 482.01 / n**0.3478 + 2085.43 / (budget / 6 / n) ** 0.3658
    assert n[np.argmin(losses)] == pytest.approx(best.parameters, rel=1e-3)
    assert 6 * best.parameters * best.tokens == pytest.approx(budget)


@pytest.mark.parametrize("inference", [0.0, 1e11, 1e13])
def test_overtrained_is_the_cheapest_of_its_loss(inference):
    found = budgets.overtrained(1e22, inference)
    loss = budgets.chinchilla_loss(found.parameters, found.tokens)
    # Other sizes that reach this loss, with the tokens that they need for it.
    n = found.parameters * np.exp(np.linspace(-0.5, 0.5, 4001))
    d = (2085.43 / (loss - 1.8172 - 482.01 / n**0.3478)) ** (1 / 0.3658)
    cost = 6 * n * d + 2 * n * inference
    assert n[np.nanargmin(cost)] == pytest.approx(found.parameters, rel=2e-3)
    assert 6 * found.parameters * found.tokens == pytest.approx(1e22)


def test_without_inference_the_overtrained_is_chinchilla():
    a, b = budgets.overtrained(1e21, 0.0), budgets.chinchilla(1e21)
    assert a.parameters == pytest.approx(b.parameters, rel=1e-6)


def test_kaplan_at_a_petaflop_day():
    found = budgets.kaplan(8.64e19)
    assert found.parameters == pytest.approx(1.3e9)
    assert found.tokens == pytest.approx(8.64e19 / 6 / 1.3e9)
    ten = budgets.kaplan(8.64e20)
    assert math.log10(ten.parameters / found.parameters) == pytest.approx(0.73)


def test_rule_of_thumb():
    found = budgets.rule_of_thumb(6 * 20 * 1e18, 20)
    assert found.parameters == pytest.approx(1e9) and found.tokens == pytest.approx(20e9)
