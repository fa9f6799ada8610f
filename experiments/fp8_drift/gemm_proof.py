"""Which products are FP8 as compiled, and what they gain: a table, on this machine.

    python experiments/fp8_drift/gemm_proof.py
    python experiments/fp8_drift/gemm_proof.py --any-device --width 64 --sizes 128 --steps 64

Needs jax, flax and optax, no network and no data. Exit status: 0, or 1 if a product that a recipe
casts to FP8 is not FP8 as compiled, or 2 if the device has no FP8 units (then ``--any-device``
prints what there is).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from umup.lab.folders import code

proof = code(Path(__file__).parent).proof


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=4096, help="of the block that is read")
    parser.add_argument("--tokens", type=int, default=8192, help="a batch of the linears")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[1024, 2048, 4096, 8192],
        help="of single products, timed",
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs="*",
        default=[1024, 2048, 4096],
        help="widths of training steps, timed",
    )
    parser.add_argument("--out", help="file for the rows as JSON")
    parser.add_argument("--any-device", action="store_true", help="go on without FP8 units")
    return proof.run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
