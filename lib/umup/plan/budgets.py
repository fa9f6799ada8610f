"""What fits a machine, which layout is the fastest, and what a budget buys: formulas, as before.

The second half of `umup.plan.formulas`, in the same part of Python; the interactive page has both.
A *case* is what that module describes.
"""

from __future__ import annotations

import math

from umup.plan.formulas import devices, memory, parameters, step_time


def fits(c):
    """Bytes a device to spare, negative where the step does not fit."""
    return c["memory"] * c["usable"] - memory(c)["total"]


def splits(c):
    """Whether the layout divides the model and the batch evenly (`umup.mesh.check`)."""
    rows = c["data"] * c["fsdp"] * c["accumulate"]
    heads = c["d_model"] / c["d_head"]
    even = c["batch_size"] % rows == 0 and c["d_model"] % c["fsdp"] == 0
    whole = heads % c["tensor"] == 0 and c["d_ff"] % c["tensor"] == 0
    return even and whole and c["vocab_size"] % c["tensor"] == 0


def divisors(n):
    """Every divisor of a positive integer, in ascending order."""
    out = []
    for i in range(1, math.floor(math.sqrt(n)) + 1):
        if n % i == 0:
            out.append(i)
    count = len(out)
    for i in range(count):
        small = out[count - 1 - i]
        if small * small < n:
            out.append(n // small)
    return out


def meshes(c, total):
    """The case on every mesh of ``total`` devices that divides evenly, the batch in one part.

    Tensor ways are powers of two within a node.
    """
    out = []
    tensor = 1
    while tensor <= min(total, c["node_devices"]):
        rows = total // tensor
        # Every row of devices takes its own sequences, which few numbers of devices allow.
        if total % tensor == 0 and c["batch_size"] % rows == 0:
            ways = divisors(rows)
            for i in range(len(ways)):
                axes = {"data": rows // ways[i], "fsdp": ways[i], "tensor": tensor}
                mesh = {**c, **axes, "accumulate": 1}
                if splits(mesh):
                    out.append(mesh)
        tensor = tensor * 2
    return out


def layouts(c, total):
    """Every mesh over ``total`` devices on which the step fits, with its step time.

    Each in the fastest rematerialization and number of parts of a batch that fit.
    """
    out = []
    found = meshes(c, total)
    for i in range(len(found)):
        best = fastest(found[i])
        if best["seconds"] > 0:
            out.append(best)
    return out


def fastest(c):
    """For the mesh of ``c``, the fastest rematerialization and accumulation that fit.

    Parts of a batch are powers of two.

    ``seconds`` is 0 where none does.
    """
    best = {**c, "seconds": 0.0}
    for level in range(3):
        remat = "none" if level == 0 else ("dots" if level == 1 else "full")
        trial = {**c, "remat": remat, "accumulate": 1}
        # More parts save memory and never time: the first number that fits is the fastest.
        while splits(trial) and fits(trial) < 0:
            trial = {**trial, "accumulate": trial["accumulate"] * 2}
        if splits(trial):
            seconds = step_time(trial)["seconds"]
            if best["seconds"] == 0 or seconds < best["seconds"]:
                best = {**trial, "seconds": seconds}
    return best


def leanest(c, total):
    """The layout over ``total`` devices that takes the least memory, of those that divide evenly.

    ``bytes`` is 0 where none does.
    """
    best = {**c, "bytes": 0.0}
    found = meshes(c, total)
    for i in range(len(found)):
        trial = {**found[i], "remat": "full"}
        while splits(trial):
            need = memory(trial)["total"]
            if best["bytes"] == 0 or need < best["bytes"]:
                best = {**trial, "bytes": need}
            trial = {**trial, "accumulate": trial["accumulate"] * 2}
    return best


def enough(c, total):
    """The fastest layout over ``total`` devices, or over as few doublings of them as fit.

    Beside more devices a larger batch keeps the rows of each. ``seconds`` is 0 where 2¹⁶ do not do.
    """
    more = total
    while more <= 65536:
        best = quickest(layouts({**c, "batch_size": max(c["batch_size"], more)}, more))
        if best["seconds"] > 0:
            return best
        more = more * 2
    return {**c, "seconds": 0.0}


def shape(c, n_layers):
    """The case with a decoder of that depth in the family's proportions.

    ``aspect`` is d_model a layer, ``ff_ratio`` is d_ff over d_model; both widths are rounded to
    multiples of 128, heads are of ``d_head``.
    """
    d_model = 128 * max(math.floor(c["aspect"] * n_layers / 128 + 0.5), 1)
    d_ff = 128 * max(math.floor(c["ff_ratio"] * d_model / 128 + 0.5), 1)
    return {**c, "n_layers": n_layers, "d_model": d_model, "d_ff": d_ff}


def largest(c, total, seconds, tokens_per_parameter):
    """The largest decoder of the family that sees enough tokens in the time.

    ``tokens_per_parameter`` counts all parameters; 20 is Chinchilla's rule of thumb (arXiv
    2203.15556). Depth is 0 where not even two layers do. ``bound`` is what keeps a deeper one out:
    ``time``, ``memory`` (none has a layout that divides evenly and fits) or ``depth`` (160 layers,
    the deepest that is tried).
    """
    best = {**c, "n_layers": 0, "seconds": 0.0, "tokens": 0.0, "bound": "memory"}
    for n_layers in range(2, 161):
        trial = shape(c, n_layers)
        size = parameters(trial)["total"]
        # What no layout can hold, no deeper model's can.
        if size * (c["param_bytes"] + 8) / total > c["memory"] * c["usable"]:
            return best
        found = quickest(layouts(trial, total))
        if found["seconds"] > 0:
            tokens = seconds / found["seconds"] * c["batch_size"] * c["seq_len"]
            if tokens < tokens_per_parameter * size:
                return {**best, "bound": "time"}
            bound = "depth" if n_layers == 160 else "memory"
            best = {**found, "tokens": tokens, "bound": bound}
    return best


def quickest(found):
    """The layout with the shortest step; ``seconds`` 0 where there is none."""
    best = {"seconds": 0.0}
    for i in range(len(found)):
        if best["seconds"] == 0 or found[i]["seconds"] < best["seconds"]:
            best = found[i]
    return best


def spent(c, seconds):
    """What a case does in so many seconds: steps, tokens, dollars; tokens of each parameter."""
    tokens = step_time(c)["tokens_per_s"] * seconds
    return {
        "steps": tokens / (c["batch_size"] * c["seq_len"]),
        "tokens": tokens,
        "tokens_per_parameter": tokens / parameters(c)["total"],
        "dollars": seconds / 3600 * devices(c) * c["usd_per_hour"],
    }


def allocations(budget, tokens_per_parameter, inference_tokens):
    """How ``budget`` FLOPs are spent by a fixed ratio, by two laws, and for a model much used."""
    return {
        "rule of thumb": rule_of_thumb(budget, tokens_per_parameter),
        "Chinchilla": chinchilla(budget),
        "Kaplan": kaplan(budget),
        "over-trained": overtrained(budget, inference_tokens),
    }


def kaplan(budget):
    """Parameters and tokens of Kaplan et al. (arXiv 2001.08361, eq. 1.7 f.) at ``budget`` FLOPs.

    N = 1.3e9 · C^0.73 with C in petaflop-days, counted without embeddings; tokens from C = 6ND.
    """
    n = 1.3e9 * (budget / 8.64e19) ** 0.73
    return {
        "parameters": n,
        "tokens": budget / (6 * n),
        "loss": chinchilla_loss(n, budget / (6 * n)),
    }


def chinchilla_loss(n, d):
    """Nats a token of n parameters after d tokens: E + A/n^α + B/d^β.

    Hoffmann et al.'s form (arXiv 2203.15556, approach 3) with the constants refitted by Besiroglu
    et al. (arXiv 2404.10102): for their text and tokenizer, so that only differences carry over.
    """
    return 1.8172 + 482.01 / n**0.3478 + 2085.43 / d**0.3658


def chinchilla(budget):
    """Parameters and tokens of least ``chinchilla_loss`` at ``budget`` = 6ND FLOPs."""
    a = 0.3478
    b = 0.3658
    ratio = (a * 482.01 / (b * 2085.43)) ** (1 / (a + b))
    n = ratio * (budget / 6) ** (b / (a + b))
    d = budget / (6 * n)
    return {"parameters": n, "tokens": d, "loss": chinchilla_loss(n, d)}


def rule_of_thumb(budget, tokens_per_parameter):
    """Parameters and tokens at a fixed ratio, 6ND = ``budget``."""
    n = (budget / (6 * tokens_per_parameter)) ** 0.5
    d = tokens_per_parameter * n
    return {"parameters": n, "tokens": d, "loss": chinchilla_loss(n, d)}


def overtrained(budget, inference_tokens):
    """Parameters and tokens that are cheapest over a life, 6ND = ``budget`` of it for training.

    Of all models as good as this one, this one costs the fewest FLOPs in training (6ND) and
    inference (2N a token) together (Sardana et al., arXiv 2401.00448, eq. 3), found where
    (6D + 2I)/(6N) equals the ratio of the loss's slopes; by bisection over N.
    """
    low = 0.0
    high = math.log(chinchilla(budget)["parameters"])
    for _ in range(100):
        middle = (low + high) / 2
        n = math.exp(middle)
        d = budget / (6 * n)
        slope = 0.3478 * 482.01 / n**1.3478 / (0.3658 * 2085.43 / d**1.3658)
        if (6 * d + 2 * inference_tokens) / (6 * n) > slope:
            high = middle
        else:
            low = middle
    n = math.exp((low + high) / 2)
    d = budget / (6 * n)
    return {"parameters": n, "tokens": d, "loss": chinchilla_loss(n, d)}
