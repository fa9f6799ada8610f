"""Memory that runs out is an error of umup, and other errors pass."""

from __future__ import annotations

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from umup.coord import Coord, coord_check
from umup.errors import OutOfMemoryError, UmupError, memory_for

XLA = "RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes.\nBacktrace: …"


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError(XLA),
        MemoryError(),
        MemoryError("std::bad_alloc"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_every_sign_of_it_is_known(error):
    with pytest.raises(OutOfMemoryError) as caught, memory_for("lanes", 4, "fewer lanes"):
        raise error
    text = str(caught.value)
    assert text.startswith("lanes: received 4; allowed: fewer lanes (out of memory: ")
    assert "Backtrace" not in text and caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("INTERNAL: no kernel"),
        OSError(errno.ENOSPC, "full"),
        UmupError("a", 1, "b"),
        KeyError("memory"),
    ],
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, memory_for("lanes", 4, "fewer lanes"):
        raise error
    assert caught.value is error


def test_a_coordinate_check_names_the_width_that_does_not_fit():
    def model_fn(width, seed, eta):
        if width > 4:
            np.empty(2**62, np.int8)
        w = {"w": jnp.ones((2, width))}
        return Coord(w, lambda p, b: (jnp.sum(p["w"]), {"w": p["w"]}), optax.sgd(eta), lambda i: 0)

    with pytest.raises(OutOfMemoryError, match=r"widths: received 8; .*Unable to allocate"):
        coord_check(model_fn, widths=(4, 8, 16), etas=(0.1,), seeds=(0,), steps=(1,))
