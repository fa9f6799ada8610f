"""The planner's arithmetic, against hand-worked cases, brute force and the model itself."""

import math

import numpy as np
import pytest

from umup.config import ModelConfig
from umup.plan import budgets, formulas

MACHINE = {
    "memory": 80e9, "usable": 0.5, "bandwidth": 1e12, "link_bandwidth": 100e9,
    "network_bandwidth": 10e9, "node_devices": 4, "gemm_efficiency": 0.5,
    "attention_efficiency": 0.25, "overhead": 1e-3, "usd_per_hour": 2.0, "copied_moments": 0,
    "work_bytes": 0, "unfused_sums": 0, "peak_flops": 1e15, "peak_fp8_flops": 2e15,
    "fp8_share": 0.0,
}  # fmt: skip
CASE = {
    "d_model": 64, "n_layers": 2, "d_head": 16, "d_ff": 256, "vocab_size": 128, "seq_len": 32,
    "batch_size": 8, "accumulate": 1, "remat": "none", "attention": "xla", "act_bytes": 2,
    "param_bytes": 4, "in_bytes": 2, "wide_bytes": 2, "weight_bytes": 2, "data": 1, "fsdp": 1,
    "tensor": 1, **MACHINE,
}  # fmt: skip


def test_parameters_are_those_of_the_model():
    model = ModelConfig(
        d_model=64, n_layers=2, d_head=16, d_ff=256, vocab_size=128, seq_len=32, base_d_head=16
    )
    found = formulas.parameters(CASE)
    assert found["total"] == model.n_params
    assert formulas.flops(CASE)["model"] == model.step_flops(8)
    assert found["total"] == found["embedding"] + found["non_embedding"]
    assert found["mlp"] == 2 * 3 * 64 * 256


def test_flops_of_a_step_by_hand():
    f = formulas.flops(CASE)
    tokens = 8 * 32
    blocks = 6 * tokens * 2 * (4 * 64**2 + 3 * 64 * 256)
    square = 3 * 2 * 2 * 2 * tokens * 32 * 64  # three passes of two products in two layers
    assert f["model"] == f["compiled"] == blocks + 6 * tokens * 128 * 64 + square
    assert f["six_nd"] == 6 * tokens * formulas.parameters(CASE)["total"]


def test_rematerialization_computes_the_forward_products_again():
    none, dots, full = (
        formulas.flops({**CASE, "remat": remat}) for remat in ("none", "dots", "full")
    )
    square = 4 * 256 * 32 * 64 * 2
    assert dots["compiled"] - none["compiled"] == pytest.approx(square)
    # All but the down-projection, whose output the way back does not need.
    again = 2 * 256 * 2 * (4 * 64**2 + 2 * 64 * 256)
    assert full["compiled"] - none["compiled"] == pytest.approx(again + square)
    assert none["model"] == dots["model"] == full["model"]


@pytest.mark.parametrize(
    ("attention", "seq_len", "share"),
    [("xla", 256, 1.0), ("cudnn", 256, 0.5), ("blocked", 256, 10 / 16), ("blocked", 32, 3 / 4),
     ("blocked", 31, 1.0)],
)  # fmt: skip
def test_share_of_the_square_that_is_computed(attention, seq_len, share):
    assert formulas.attended({**CASE, "attention": attention, "seq_len": seq_len}) == share


def test_what_a_block_keeps_by_hand():
    tokens = 8 * 32
    kept = formulas.kept(CASE)
    assert kept["stream"] == 2 * tokens * 64 * 2
    # Inputs of the four linears, and gate|up before its activation.
    assert kept["linears"] == 2 * (2 * tokens * 64 + tokens * 64 + tokens * 256 + 2 * tokens * 256)
    # q, k, v, and float32 weights of four heads.
    assert kept["attention"] == 2 * 3 * tokens * 64 + 4 * tokens * 4 * 32
    dots = formulas.kept({**CASE, "remat": "dots"})
    assert dots["total"] == 2 * tokens * (64 + 3 * 64 + 64 + 2 * 256)
    assert formulas.kept({**CASE, "remat": "full"})["total"] == 2 * tokens * 64


def test_what_is_split_over_devices():
    mesh = {**CASE, "data": 2, "fsdp": 2, "tensor": 2}
    one, many = formulas.memory(CASE), formulas.memory(mesh)
    assert one["state"] == 12 * formulas.parameters(CASE)["total"]
    assert many["state"] == one["state"] / 4  # data replicates
    assert many["gradients"] == one["gradients"] / 4
    assert formulas.local_tokens(mesh) == formulas.local_tokens(CASE) / 4
    assert formulas.kept(mesh)["stream"] == formulas.kept(CASE)["stream"] / 4  # features whole
    assert formulas.kept(mesh)["attention"] == formulas.kept(CASE)["attention"] / 8
    parts = {**CASE, "accumulate": 4}
    assert formulas.kept(parts)["total"] == formulas.kept(CASE)["total"] / 4


def test_one_device_receives_nothing():
    found = formulas.communication(CASE)
    assert not any(found.values())


def test_rings_by_hand():
    mesh = {**CASE, "data": 1, "fsdp": 4, "tensor": 1}
    found = formulas.communication(mesh)
    blocks, table = 2 * (4 * 64**2 + 3 * 64 * 256), 128 * 64
    assert found["gathered"] == 2 * (2 * blocks + 2 * table)
    assert found["scattered"] == 2 * (blocks + table)
    received = 0.75 * (found["gathered"] + found["scattered"] + found["lookup"])
    assert found["fsdp_s"] == pytest.approx(received / 100e9)
    slow = formulas.communication({**mesh, "node_devices": 2})  # the ring leaves the node
    assert slow["fsdp_s"] == pytest.approx(10 * found["fsdp_s"])
    split = formulas.communication({**CASE, "tensor": 2})
    assert split["sums"] == 256 * 64 * (2 * (2 * 4 + 1) + 4)
    assert split["tensor_s"] == pytest.approx(split["sums"] / 100e9)  # 2·(n−1)/n = 1


def test_step_time_is_the_sum_of_its_parts():
    s = formulas.step_time({**CASE, "fsdp": 4})
    busy = s["products"] + s["attention"] + s["elementwise"] + s["overhead"]
    assert s["seconds"] == pytest.approx(busy)  # gathers hide
    flops = formulas.flops(CASE)
    one = formulas.step_time(CASE)
    assert one["products"] == pytest.approx((flops["blocks"] + flops["readout"]) / 1e15 / 0.5)
    assert one["mfu"] == pytest.approx(flops["model"] / one["seconds"] / 1e15)
    assert one["overhead"] == 2e-3 and one["limit"] == "overhead"
    slow = formulas.step_time({**CASE, "fsdp": 4, "link_bandwidth": 1e6})
    assert slow["limit"] == "communication" and slow["exposed"] > 0


def test_fp8_products_take_half_the_time():
    plain = formulas.step_time(CASE)["products"]
    assert formulas.step_time({**CASE, "fp8_share": 1.0})["products"] == pytest.approx(plain / 2)


def test_layouts_divide_fit_and_leave_none_out():
    case = {**CASE, "batch_size": 12, "memory": 4e6}
    found = budgets.layouts(case, 4)
    meshes = {(c["data"], c["fsdp"], c["tensor"]) for c in found}
    assert all(budgets.splits(c) and budgets.fits(c) >= 0 for c in found)
    every = {
        (data, fsdp, tensor)
        for data in (1, 2, 4) for fsdp in (1, 2, 4) for tensor in (1, 2, 4)
        if data * fsdp * tensor == 4
    }  # fmt: skip
    roomy = {
        (c["data"], c["fsdp"], c["tensor"]) for c in budgets.layouts({**case, "memory": 1e12}, 4)
    }
    assert roomy == every
    assert meshes < every  # some do not fit, such as a replica each
    assert (4, 1, 1) not in meshes and (1, 4, 1) in meshes


@pytest.mark.parametrize("n", [1, 2, 12, 36, 97, 720, 9409, 9999])
def test_divisors(n):
    assert budgets.divisors(n) == [i for i in range(1, n + 1) if n % i == 0]


def test_a_prime_number_of_devices_has_a_layout_only_where_it_divides_the_batch():
    prime = 999_999_937
    assert budgets.layouts({**CASE, "batch_size": 64}, prime) == []
    (found,) = budgets.layouts({**CASE, "batch_size": prime}, prime)
    assert (found["data"], found["fsdp"], found["tensor"]) == (prime, 1, 1)


def test_the_fastest_is_so_among_every_number_of_parts():
    levels, case = ("none", "dots", "full"), {**CASE, "batch_size": 64, "overhead": 1e-6}
    every = [{**case, "remat": level, "accumulate": 2**i} for level in levels for i in range(7)]
    sizes = sorted(formulas.memory(one)["total"] for one in every)
    for size in sizes[::4]:
        fit = [one for one in every if formulas.memory(one)["total"] <= size]
        best = min(formulas.step_time(one)["seconds"] for one in fit)
        room = {"memory": size * (1 + 1e-12), "usable": 1.0}
        assert budgets.fastest({**case, **room})["seconds"] == best


@pytest.mark.parametrize("attention", ["xla", "blocked", "cudnn"])
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
def test_mfu_is_a_share_on_the_best_of_machines(attention, remat, share):
    perfect = {
        "gemm_efficiency": 1.0, "attention_efficiency": 1.0, "overhead": 0.0, "bandwidth": 1e21,
    }  # fmt: skip
    case = {**CASE, **perfect, "attention": attention, "remat": remat, "fp8_share": share}
    found = formulas.step_time({**case, "seq_len": 2**17, "batch_size": 1})
    again = formulas.flops(case)["recomputed"] / formulas.flops(case)["compiled"]
    assert found["mfu"] <= 1
    assert found["mfu"] > 0.999 if remat == "none" else 0.6 < found["mfu"] < 1 - again / 3


@pytest.mark.parametrize(
    ("changes", "hours", "bound"),
    [({}, 1e-2, "time"), ({"memory": 3e8}, 1e3, "memory"), ({"memory": 1e13}, 1e9, "depth")],
)
def test_what_bounds_the_largest(changes, hours, bound):
    family = {**CASE, "aspect": 64.0, "ff_ratio": 4.0, "seq_len": 256, "batch_size": 64}
    found = budgets.largest({**family, **changes}, 4, hours * 3600, 20.0)
    asked = 20 * formulas.parameters(found)["total"]
    assert found["bound"] == bound and found["tokens"] >= asked
    if bound == "memory":
        deeper = range(found["n_layers"] + 1, 161)
        shapes = (budgets.shape({**family, **changes}, n) for n in deeper)
        assert not any(budgets.layouts(one, 4) for one in shapes)


def test_the_largest_is_the_largest():
    family = {**CASE, "aspect": 64.0, "ff_ratio": 4.0, "seq_len": 256, "batch_size": 64}
    found = budgets.largest(family, 4, 60.0, 20.0)
    n = found["n_layers"]
    assert n >= 2 and found["tokens"] >= 20 * formulas.parameters(found)["total"]
    above = budgets.shape(family, n + 1)
    quickest = budgets.quickest(budgets.layouts(above, 4))
    tokens = 60.0 / quickest["seconds"] * 64 * 256
    assert tokens < 20 * formulas.parameters(above)["total"]
    assert budgets.largest(family, 4, 1e-6, 20.0)["n_layers"] == 0


@pytest.mark.parametrize("budget", [1e18, 1e21, 1e24])
def test_chinchilla_is_the_least_loss_of_its_fit(budget):
    best = budgets.chinchilla(budget)
    n = best["parameters"] * np.exp(np.linspace(-3, 3, 20001))
    losses = 1.8172 + 482.01 / n**0.3478 + 2085.43 / (budget / 6 / n) ** 0.3658
    assert n[np.argmin(losses)] == pytest.approx(best["parameters"], rel=1e-3)
    assert 6 * best["parameters"] * best["tokens"] == pytest.approx(budget)


@pytest.mark.parametrize("inference", [0.0, 1e11, 1e13])
def test_overtrained_is_the_cheapest_of_its_loss(inference):
    found = budgets.overtrained(1e22, inference)
    loss = budgets.chinchilla_loss(found["parameters"], found["tokens"])
    # Other sizes that reach this loss, with the tokens that they need for it.
    n = found["parameters"] * np.exp(np.linspace(-0.5, 0.5, 4001))
    d = (2085.43 / (loss - 1.8172 - 482.01 / n**0.3478)) ** (1 / 0.3658)
    cost = 6 * n * d + 2 * n * inference
    assert n[np.nanargmin(cost)] == pytest.approx(found["parameters"], rel=2e-3)
    assert 6 * found["parameters"] * found["tokens"] == pytest.approx(1e22)


def test_without_inference_the_overtrained_is_chinchilla():
    a, b = budgets.overtrained(1e21, 0.0), budgets.chinchilla(1e21)
    assert a["parameters"] == pytest.approx(b["parameters"], rel=1e-6)


def test_kaplan_at_a_petaflop_day():
    found = budgets.kaplan(8.64e19)
    assert found["parameters"] == pytest.approx(1.3e9)
    assert found["tokens"] == pytest.approx(8.64e19 / 6 / 1.3e9)
    ten = budgets.kaplan(8.64e20)
    assert math.log10(ten["parameters"] / found["parameters"]) == pytest.approx(0.73)


def test_rule_of_thumb():
    found = budgets.rule_of_thumb(6 * 20 * 1e18, 20)
    assert found["parameters"] == pytest.approx(1e9) and found["tokens"] == pytest.approx(20e9)
