"""The reference that `umup bench` measures beside: `unit_scaling`'s decoder and AdamW in PyTorch.

Nothing is imported until it is asked for: PyTorch comes with the extra `bench` only.
"""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np

PACKAGES = ("torch", "unit-scaling")


def versions() -> dict[str, str]:
    """Package → version of those of `PACKAGES` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def missing() -> str:
    """Why the reference cannot run here, or an empty string when it can."""
    absent = [package for package in PACKAGES if package not in versions()]
    return f"{' and '.join(absent)} not installed (pip install 'umup[bench]')" if absent else ""


class Step:
    """Training steps of `unit_scaling.TransformerDecoder`, eager and in float32, on the CPU.

    As its users run it: zero the gradients, forward, backward, `unit_scaling.optim.AdamW`. Its
    decoder has no rotary embedding, and its loss leaves out the last of the T positions.

    Args:
        width, layers, heads, vocab_size: shape; its MLP is SwiGLU with d_ff = 4·width.
        batch_size, seq_len: of the token windows, drawn once and used in turn.
        threads: how many PyTorch may use.
    """

    def __init__(
        self, *, width: int, layers: int, heads: int, vocab_size: int, batch_size: int,
        seq_len: int, threads: int,
    ):  # fmt: skip
        import torch  # pyright: ignore[reportMissingImports]
        import unit_scaling  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.decoder = unit_scaling.TransformerDecoder(
            hidden_size=width, vocab_size=vocab_size, layers=layers, heads=heads
        )
        self.optimizer = unit_scaling.optim.AdamW(
            self.decoder.parameters(), lr=2.0**-1, weight_decay=2.0**-13
        )
        ids = np.random.default_rng(0).integers(0, vocab_size, (8, batch_size, seq_len))
        self.batches, self.done = torch.from_numpy(ids), 0

    def seconds(self, steps: int) -> float:
        """Wall time of ``steps`` training steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.decoder.loss(self.batches[self.done % len(self.batches)])
            loss.backward()
            self.optimizer.step()
            self.done += 1
        loss.item()
        return time.perf_counter() - start


def matmul(size: int, threads: int):
    """A function without arguments that multiplies two float32 (size, size) matrices."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    a, b = torch.rand(size, size), torch.rand(size, size)
    return lambda: torch.mm(a, b)
