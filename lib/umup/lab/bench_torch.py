"""The reference for speed: `unit_scaling`'s decoder and AdamW in PyTorch.

PyTorch, which only the extra `bench` installs, is imported when it is first used. It runs on a GPU
if it sees one, else on the CPU.
"""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

PACKAGES = ("torch", "unit-scaling")


def versions() -> dict[str, str]:
    """Package → version, for the installed ones of `PACKAGES`."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def missing() -> str:
    """Why the reference cannot run here, or an empty string if it can."""
    absent = [package for package in PACKAGES if package not in versions()]
    return f"{' and '.join(absent)} not installed (pip install 'umup[bench]')" if absent else ""


def device() -> str:
    """PyTorch's device: ``cuda`` if it sees a GPU, else ``cpu``."""
    import torch  # pyright: ignore[reportMissingImports]

    return "cuda" if torch.cuda.is_available() else "cpu"


def wait(_: object = None) -> None:
    """Wait until the device has finished its work."""
    import torch  # pyright: ignore[reportMissingImports]

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Step:
    """Training steps of `unit_scaling.TransformerDecoder`.

    They run as users run them: zero the gradients, forward, backward, `unit_scaling.optim.AdamW`.
    The decoder has no rotary embedding, and its loss leaves out the last of the T positions.

    Args:
        width, layers, heads, vocab_size: shape; its MLP is SwiGLU with d_ff = 4·width.
        batch_size, seq_len: of the token windows, drawn once and used in turn.
        threads: number of threads that PyTorch may use on a CPU.
        dtype: of weights and activations. With ``bfloat16`` the weights are bfloat16 too, which
            saves the casts of our float32 weights.
        compiled: whether `torch.compile` compiles the loss and its gradient, during the first
            step. The optimizer stays eager, as its `foreach` kernels are fused.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        vocab_size: int,
        batch_size: int,
        seq_len: int,
        threads: int,
        dtype: str = "float32",
        compiled: bool = False,
    ):
        import torch  # pyright: ignore[reportMissingImports]
        import unit_scaling  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.decoder = unit_scaling.TransformerDecoder(
            hidden_size=width, vocab_size=vocab_size, layers=layers, heads=heads
        ).to(device(), getattr(torch, dtype))
        self.optimizer = unit_scaling.optim.AdamW(
            self.decoder.parameters(), lr=2.0**-1, weight_decay=2.0**-13
        )
        self.loss: Any = torch.compile(self.decoder.loss) if compiled else self.decoder.loss
        ids = np.random.default_rng(0).integers(0, vocab_size, (8, batch_size, seq_len))
        self.batches, self.done = torch.from_numpy(ids).to(device()), 0

    def seconds(self, steps: int) -> float:
        """Wall time of ``steps`` training steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.loss(self.batches[self.done % len(self.batches)])
            loss.backward()
            self.optimizer.step()
            self.done += 1
        loss.item()
        wait()
        return time.perf_counter() - start


def matmul(size: int, threads: int, dtype: str = "float32"):
    """A function without arguments that multiplies two (size, size) matrices."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    shape = {"device": device(), "dtype": getattr(torch, dtype)}
    a, b = torch.rand(size, size, **shape), torch.rand(size, size, **shape)
    return lambda: torch.mm(a, b)
