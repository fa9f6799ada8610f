"""The ranges of FP8 formats, and where the probed tensors of a decoder's linears lie in them.

The tensors are the operands of products: ``input``, ``weight`` and ``output_gradient`` of every
linear.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from umup import fp8, laws
from umup.config import BLOCK_LINEARS
from umup.laws import Interval

KINDS: tuple[str, ...] = ("input", "weight", "output_gradient")
LINEARS: tuple[str, ...] = (*BLOCK_LINEARS, "readout")
MIN_NORMAL = {"e4m3": 2.0**-6, "e5m2": 2.0**-14}
LARGEST = {"e4m3": fp8.E4M3.largest, "e5m2": fp8.E5M2.largest}
SMALLEST = {"e4m3": fp8.E4M3.smallest, "e5m2": fp8.E5M2.smallest}


def of_linears(probes: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``records.probes`` for the operands of products.

    The columns module and tensor are renamed to linear and kind.
    """
    table = probes.rename(columns={"module": "linear", "tensor": "kind"})
    return table[table["linear"].isin(LINEARS) & table["kind"].isin(KINDS)]


def margin(rms: pd.Series) -> pd.Series:
    """Octaves between an RMS and the nearer end of E4M3's normal range; negative if outside."""
    above, below = np.log2(rms / MIN_NORMAL["e4m3"]), np.log2(LARGEST["e4m3"] / rms)
    return pd.Series(np.minimum(above, below), rms.index)


def extreme(table: pd.DataFrame, column: str, which: str) -> Interval:
    """The tensor (and step, if kept) whose mean over seeds is extreme: that mean's interval.

    Args:
        table: rows of ``of_linears``, with or without ``step``.
        column: the column whose mean is taken.
        which: ``largest``, ``smallest``, or ``furthest`` from 0.
    """
    by = [name for name in ("place", "kind", "step") if name in table]
    means = table.groupby(by)[column].mean()
    order = {"largest": means, "smallest": -means, "furthest": means.abs()}[which]
    chosen = dict(zip(by, order.idxmax(), strict=True))
    at = np.logical_and.reduce([table[name] == value for name, value in chosen.items()])
    return laws.mean_interval(table.loc[at, column])
