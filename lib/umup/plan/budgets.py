"""Which layouts fit a machine, which of them is the fastest, and what a budget buys.

Layouts are searched with `umup.plan.formulas`, and budgets are spent by published laws. The
interactive page has the same in JavaScript (``book/planner/formulas.js``); a test compares the two,
so change both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from umup.plan.formulas import Case, memory, parameters, step_time

REMAT = ("none", "dots", "full")
"""Levels of rematerialization, each of which saves less than the previous one."""

LARGEST_CLUSTER = 2**16
"""Largest number of devices of a cluster that is searched."""

DEEPEST = 160
"""Largest number of layers of a decoder that is searched."""


class Layout(NamedTuple):
    """A case in a layout that fits its machine, and the seconds of its step."""

    case: Case
    seconds: float


def spare(c: Case) -> float:
    """Spare bytes per device, negative if the step does not fit."""
    return c.memory * c.usable - memory(c).total


def divides_evenly(c: Case) -> bool:
    """Whether the layout divides the model and the batch evenly (`umup.mesh.check`)."""
    return (
        c.batch_size % (c.data * c.fsdp * c.accumulate) == 0
        and c.d_model % c.fsdp == 0
        and c.d_model / c.d_head % c.tensor == 0
        and c.d_ff % c.tensor == 0
        and c.vocab_size % c.tensor == 0
    )


def divisors(n: int) -> list[int]:
    """Every divisor of a positive integer, in ascending order."""
    small = [i for i in range(1, math.isqrt(n) + 1) if n % i == 0]
    return small + [n // i for i in reversed(small) if i * i < n]


def doublings(first: int, last: int) -> Iterator[int]:
    """``first``, and its doublings up to ``last``."""
    while first <= last:
        yield first
        first *= 2


def meshes(c: Case, total: int) -> Iterator[Case]:
    """The case on every mesh of ``total`` devices that divides evenly, the batch in one part.

    Tensor ways are powers of two within a node.
    """
    for tensor in doublings(1, min(total, c.node_devices)):
        rows, rest = divmod(total, tensor)
        # Every row of devices takes its own sequences, which few numbers of devices allow.
        if rest or c.batch_size % rows:
            continue
        for fsdp in divisors(rows):
            mesh = replace(c, data=rows // fsdp, fsdp=fsdp, tensor=tensor, accumulate=1)
            if divides_evenly(mesh):
                yield mesh


def layouts(c: Case, total: int) -> list[Layout]:
    """Every mesh over ``total`` devices on which the step fits, each in its fastest layout."""
    return [found for mesh in meshes(c, total) if (found := fastest(mesh))]


def fastest(c: Case) -> Layout | None:
    """The fastest rematerialization and number of parts that fit the mesh of ``c``.

    Numbers of parts are powers of two. None if nothing fits.
    """
    trials = (_in_parts(replace(c, remat=remat)) for remat in REMAT)
    return _quickest([Layout(one, step_time(one).seconds) for one in trials if one])


def _in_parts(c: Case) -> Case | None:
    """The case with the fewest parts of its batch that fit; None if it never fits.

    More parts save memory but never time, so the first number that fits is the fastest.
    """
    for parts in doublings(1, c.batch_size):
        trial = replace(c, accumulate=parts)
        if not divides_evenly(trial):
            return None
        if spare(trial) >= 0:
            return trial
    return None


def _quickest(found: list[Layout]) -> Layout | None:
    """The layout with the shortest step; of equals, the first."""
    return min(found, key=lambda layout: layout.seconds, default=None)


def fastest_layout(c: Case, total: int) -> Layout | None:
    """The fastest of all layouts over ``total`` devices; None if none fits."""
    return _quickest(layouts(c, total))


def leanest(c: Case, total: int) -> Case | None:
    """The layout over ``total`` devices that takes the least memory; None if none divides evenly.

    If no layout fits, the error says how much this one lacks.
    """
    trials = (
        replace(mesh, remat="full", accumulate=parts)
        for mesh in meshes(c, total)
        for parts in doublings(1, c.batch_size)
    )
    return min(filter(divides_evenly, trials), key=lambda one: memory(one).total, default=None)


def smallest_cluster(c: Case, total: int) -> Layout | None:
    """The fastest layout over ``total`` devices, doubled as often as it takes to fit.

    The batch grows with the devices, so that each keeps its rows. None if even ``LARGEST_CLUSTER``
    devices are too few.
    """
    for more in doublings(total, LARGEST_CLUSTER):
        wide = replace(c, batch_size=max(c.batch_size, more))
        if found := fastest_layout(wide, more):
            return found
    return None


def with_depth(c: Case, n_layers: int) -> Case:
    """The case with a decoder of another depth and the same proportions.

    d_model grows with the depth and d_ff with d_model, both rounded to multiples of 128; ``d_head``
    stays, and so does the share of products in float8.
    """
    d_model = 128 * max(math.floor(c.d_model / c.n_layers * n_layers / 128 + 0.5), 1)
    d_ff = 128 * max(math.floor(c.d_ff / c.d_model * d_model / 128 + 0.5), 1)
    return replace(c, n_layers=n_layers, d_model=d_model, d_ff=d_ff)


class Largest(NamedTuple):
    """The largest decoder that a budget trains.

    Attributes:
        layout: its case, in its fastest layout; None if even two layers are too many.
        tokens: that it is trained on in the time.
        bound: why no deeper decoder is possible: ``time``, ``memory`` (none has a layout that
            divides evenly and fits) or ``depth`` (`DEEPEST`).
    """

    layout: Layout | None
    tokens: float
    bound: str


def largest(c: Case, total: int, seconds: float, tokens_per_parameter: float) -> Largest:
    """The largest decoder with the proportions of ``c`` that is trained on enough tokens in time.

    Args:
        c: whose shape gives the proportions (`with_depth`).
        total: devices.
        seconds: for training.
        tokens_per_parameter: least number of tokens, counting all parameters; 20 is Chinchilla's
            rule of thumb (arXiv 2203.15556).
    """
    best = Largest(None, 0.0, "memory")
    for n_layers in range(2, DEEPEST + 1):
        trial = with_depth(c, n_layers)
        size = parameters(trial).total
        # If no layout can hold this model, none can hold a deeper one.
        if size * (c.param_bytes + 8) / total > c.memory * c.usable:
            break
        found = fastest_layout(trial, total)
        if found is None:
            continue
        tokens = seconds / found.seconds * c.batch_size * c.seq_len
        if tokens < tokens_per_parameter * size:
            return best._replace(bound="time")
        best = Largest(found, tokens, "depth" if n_layers == DEEPEST else "memory")
    return best


class Spent(NamedTuple):
    """What a run does in a time: steps, tokens, tokens per parameter, and its price."""

    steps: float
    tokens: float
    tokens_per_parameter: float
    dollars: float


def spent(c: Case, seconds: float) -> Spent:
    """What a case does in a number of seconds."""
    tokens = step_time(c).tokens_per_s * seconds
    return Spent(
        steps=tokens / (c.batch_size * c.seq_len),
        tokens=tokens,
        tokens_per_parameter=tokens / parameters(c).total,
        dollars=seconds / 3600 * c.devices * c.usd_per_hour,
    )


class Allocation(NamedTuple):
    """An allocation of training FLOPs: parameters, tokens and the resulting loss.

    The loss is in nats per token, by `chinchilla_loss`.
    """

    parameters: float
    tokens: float
    loss: float


def allocations(
    budget: float, tokens_per_parameter: float, inference_tokens: float
) -> Mapping[str, Allocation]:
    """Allocations of ``budget`` FLOPs: by a fixed ratio, by two laws, and counting inference."""
    return {
        "rule of thumb": rule_of_thumb(budget, tokens_per_parameter),
        "Chinchilla": chinchilla(budget),
        "Kaplan": kaplan(budget),
        "over-trained": overtrained(budget, inference_tokens),
    }


def _allocation(budget: float, n: float) -> Allocation:
    """The allocation with n parameters; tokens follow from ``budget`` = 6ND FLOPs."""
    d = budget / (6 * n)
    return Allocation(n, d, chinchilla_loss(n, d))


def kaplan(budget: float) -> Allocation:
    """Kaplan et al.'s law (arXiv 2001.08361, eq. 1.7 f.) at ``budget`` FLOPs.

    N = 1.3e9 · C^0.73 with C in petaflop-days, counted without embeddings; tokens from C = 6ND.
    """
    return _allocation(budget, 1.3e9 * (budget / 8.64e19) ** 0.73)


E, A, ALPHA, B, BETA = 1.8172, 482.01, 0.3478, 2085.43, 0.3658
"""Of `chinchilla_loss`."""


def chinchilla_loss(n: float, d: float) -> float:
    """Nats per token of n parameters after d tokens: E + A/n^α + B/d^β.

    Hoffmann et al.'s form (arXiv 2203.15556, approach 3) with the constants refitted by Besiroglu
    et al. (arXiv 2404.10102). They hold for that text and tokenizer; only differences carry over.
    """
    return E + A / n**ALPHA + B / d**BETA


def chinchilla(budget: float) -> Allocation:
    """Parameters and tokens of least ``chinchilla_loss`` at ``budget`` = 6ND FLOPs."""
    ratio = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return _allocation(budget, ratio * (budget / 6) ** (BETA / (ALPHA + BETA)))


def rule_of_thumb(budget: float, tokens_per_parameter: float) -> Allocation:
    """Parameters and tokens at a fixed ratio, 6ND = ``budget``."""
    n = (budget / (6 * tokens_per_parameter)) ** 0.5
    d = tokens_per_parameter * n
    return Allocation(n, d, chinchilla_loss(n, d))


def overtrained(budget: float, inference_tokens: float) -> Allocation:
    """Parameters and tokens that are cheapest over the model's life, with 6ND = ``budget``.

    Of all models with its loss, this one needs the fewest FLOPs for training (6ND) and inference
    (2N per token) together (Sardana et al., arXiv 2401.00448, eq. 3). It is found by bisection over
    log N, where (6D + 2I)/(6N) equals the ratio of the loss's slopes.
    """
    low, high = 0.0, math.log(chinchilla(budget).parameters)
    for _ in range(100):
        middle = (low + high) / 2
        n = math.exp(middle)
        d = budget / (6 * n)
        slope = ALPHA * A / n**1.3478 / (BETA * B / d**1.3658)  # of n^(−α) and d^(−β)
        if (6 * d + 2 * inference_tokens) / (6 * n) > slope:
            high = middle
        else:
            low = middle
    return _allocation(budget, math.exp((low + high) / 2))
