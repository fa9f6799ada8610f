"""The proof that FP8 products are FP8: ``experiments/fp8_drift/gemm_proof.py`` calls ``run``.

It needs no records, tables or network, so that it runs on a bare machine with a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from umup import text
from umup.config import RECIPES

from . import measures as gemm

STEP = {
    "n_layers": 4,
    "d_head": 64,
    "seq_len": 1024,
    "batch_size": 8,
    "steps": 50,
    "dtype": "bfloat16",
}
TINY = {
    "n_layers": 2,
    "d_head": 16,
    "seq_len": 32,
    "batch_size": 2,
    "steps": 10,
    "dtype": "float32",
}
"""What a training step measures, on a device with FP8 units and on any other."""


def run(chosen: argparse.Namespace) -> int:
    """Measure, print Markdown, write JSON.

    Args:
        chosen: width, tokens, sizes, steps, out, any_device, as the script's arguments.

    Returns:
        The script's exit status.
    """
    here = gemm.device()
    if not here["capable"] and not chosen.any_device:
        found = f"{here['device_kind']} {here['compute_capability']}".strip()
        print(
            f"{found} has no FP8 units (an NVIDIA GPU of compute capability 8.9 or above has): "
            "nothing to prove. --any-device prints what there is.",
            file=sys.stderr,
        )
        return 2
    print(f"# FP8 products on {here['device_kind']} {here['compute_capability']}\n")
    linears = list(linear_rows(chosen.width, chosen.tokens))
    print(f"Linears of width {chosen.width}, {chosen.tokens} tokens, as compiled:\n")
    print(markdown(linears, ("recipe", "linear", "y", "dx", "dw", "y_kind", "verdict")), "\n")
    sizes, steps = [], []
    if chosen.sizes:
        sizes = list(gemm_rows(chosen.sizes))
        print(
            markdown(sizes, ("size", "kind", "accumulation", "tflops", "error", "products")), "\n"
        )
    if chosen.steps:
        steps = list(step_rows(chosen.steps, STEP if here["capable"] else TINY))
        print(
            markdown(
                steps,
                (
                    "d_model",
                    "recipe",
                    "accumulation",
                    "seconds",
                    "tflops",
                    "loss",
                    "loss_minus_bf16",
                    "fp8_products",
                    "expected",
                ),
            ),
            "\n",
        )
    if chosen.out:
        rows = {"device": here, "linear": linears, "gemm": sizes, "step": steps}
        Path(chosen.out).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    refused = [row for row in linears if row["claims"] and not row["native"]]
    short = [row for row in steps if row["fp8_products"] < row["expected"]]
    if here["capable"] and (refused or short):
        print(f"{len(refused)} linears and {len(short)} steps are not FP8 as compiled.")
        return 1
    return 0


def linear_rows(width: int, tokens: int) -> Iterable[dict[str, Any]]:
    """The compiled products of every linear of a block and of the readout, under each recipe."""
    for recipe in RECIPES[1:]:
        for linear, (fan_in, fan_out) in gemm.shapes(width).items():
            row = gemm.linear_products(recipe, linear, fan_in, fan_out, tokens, "bfloat16")
            refused = "RED: not FP8" if row["capable"] else "no FP8 units"
            verdict = "–" if not row["claims"] else "native" if row["native"] else refused
            yield {"recipe": recipe, "linear": linear, "verdict": verdict} | row


def gemm_rows(sizes: Iterable[int]) -> Iterable[dict[str, Any]]:
    """Speeds of single products, fast and precise."""
    for size in sizes:
        for kind in gemm.KINDS:
            for accumulation in ("fast", "precise")[: 1 if kind == "bf16" else 2]:
                found = gemm.gemm(size, kind, accumulation)
                yield {"size": size, "kind": kind, "accumulation": accumulation} | found


def step_rows(widths: Iterable[int], shape: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Training steps under each recipe, with the difference of the loss from bfloat16's."""
    for width in widths:
        base = float("nan")
        for recipe in RECIPES[1:]:
            for accumulation in ("fast", "precise")[: 2 if recipe == "fp8_seed" else 1]:
                found = gemm.step(width, recipe, accumulation=accumulation, **shape)
                base = found["loss"] if recipe == "bf16" else base
                yield {
                    "d_model": width,
                    "recipe": recipe,
                    "accumulation": accumulation,
                    "loss_minus_bf16": found["loss"] - base,
                } | found


def markdown(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> str:
    """Rows as a Markdown table, numbers to four digits."""
    cells = ([row[name] for name in columns] for row in rows)
    return text.markdown(
        columns, ([f"{c:.4g}" if isinstance(c, float) else c for c in r] for r in cells)
    )
