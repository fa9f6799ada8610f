"""Frozen configurations: unknown or bad fields are errors that name field, value and range."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from umup.errors import ConfigError

NUMERICS = 1
"""Version of the numbers umup computes. A golden-trajectory test guards it: change the numbers
on purpose and bump it; records of an older version are then shown as stale, never as current."""


FILE_PREFIX = "file:"
"""Begins the name of a user's own text, ``file:PATH``. Which text it is, its digest says."""

PROBE_STATS = (
    "rms", "mean", "max", "e4m3_clipped", "e4m3_flushed", "e5m2_clipped", "e5m2_flushed",
)  # fmt: skip
"""What a probe says of a tensor; ``umup.probe`` computes them."""


@dataclass(frozen=True)
class Range:
    """Allowed values of a number. ``lo`` is exclusive when ``open_lo``."""

    lo: float = -math.inf
    hi: float = math.inf
    open_lo: bool = False

    def __str__(self) -> str:
        if self.hi == math.inf:
            return f"a finite number {'>' if self.open_lo else '>='} {self.lo:g}"
        return f"a number in {'(' if self.open_lo else '['}{self.lo:g}, {self.hi:g}]"

    def __contains__(self, value: float) -> bool:
        above = value > self.lo if self.open_lo else value >= self.lo
        return above and value <= self.hi and abs(value) < math.inf


POSITIVE = Range(0.0, open_lo=True)
COUNT = Range(1)
FRACTION = Range(0.0, 1.0)


def _fits(value: Any, annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(annotation))
    if annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple:
        args = typing.get_args(annotation)
        return isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    return isinstance(value, annotation)


def _type_name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)


def later(default: Any) -> Any:
    """A field that a configuration got when records existed, whose keys must not change."""
    return dataclasses.field(default=default, metadata={"later": True})


_hints = functools.cache(typing.get_type_hints)
"""A class's annotations as types; evaluating their text takes most of a configuration's making."""


class Config:
    """Base of the configurations: type and range checks, exact round trip to plain data.

    Subclasses are frozen dataclasses; ``RANGES`` maps a field to its ``Range`` or to the tuple of
    its allowed values. Tuples are checked element by element.
    """

    RANGES: ClassVar[Mapping[str, Range | tuple]] = {}

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, annotation = getattr(self, field.name), hints[field.name]
            if not _fits(value, annotation):
                raise ConfigError(field.name, value, f"a value of type {_type_name(annotation)}")
            items = value if isinstance(value, tuple) else (value,)
            if any(isinstance(item, int) and not -(2**63) <= item < 2**63 for item in items):
                raise ConfigError(field.name, value, "an integer that 64 bits can hold")
            if annotation is float and type(value) is int:
                value = float(value)  # YAML's 2 and 2.0 are one value and one digest
                object.__setattr__(self, field.name, value)
            allowed = self.RANGES.get(field.name)
            if allowed is None or value is None:
                continue
            for item in items:
                if item not in allowed:
                    one_of = isinstance(allowed, tuple)
                    options = " | ".join(map(str, allowed)) if one_of else str(allowed)
                    raise ConfigError(field.name, value, options)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain data (YAML, JSON, papermill parameters).

        Raises:
            ConfigError: a key is unknown, or a value has a wrong type or is out of range. A field
                of a group is named with it, such as ``optim.steps``.
        """
        hints = _hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        plain = {}
        for key, value in values.items():
            if key not in names:
                allowed = f"one of the fields of {cls.__name__}: {', '.join(names)}"
                if not str(key).isascii():  # a Greek or Cyrillic letter may look like a Latin one
                    allowed += f", in these letters ({key!a} in ASCII)"
                raise ConfigError(key, value, allowed)
            kind = hints[key]
            if isinstance(kind, type) and issubclass(kind, Config) and isinstance(value, Mapping):
                try:
                    value = kind.from_dict(value)
                except ConfigError as error:
                    field = f"{key}.{error.field}"
                    raise ConfigError(field, error.received, error.allowed) from None
            plain[key] = tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            optional = {field.default, field.default_factory} != {dataclasses.MISSING}
            if not optional and field.name not in plain:
                raise ConfigError(field.name, "nothing", f"a {_type_name(hints[field.name])}")
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, nested; the inverse of ``from_dict``."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_spec(self) -> dict[str, Any]:
        """As ``to_dict``, for the specification of a point: without `later` fields at defaults."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        later = {f.name: f.default for f in fields if "later" in f.metadata}
        return {k: v for k, v in self.to_dict().items() if k not in later or v != later[k]}

    def essence(self) -> dict[str, Any]:
        """Plain data without the fields at their defaults.

        What digests are made of: a field added later, neutral by default, leaves the keys of old
        records valid. Changing a default does not, and asks for a new ``NUMERICS``.
        """
        out = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != field.default:
                out[field.name] = value.essence() if isinstance(value, Config) else value
        return out


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal data give equal text."""
    plain = value.to_dict() if isinstance(value, Config) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """A stable 16-digit hexadecimal digest of a configuration or of plain data."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def corpus_identity(name: str) -> str:
    """What of a corpus' name is part of a run's identity: all but the path of one's own text."""
    return FILE_PREFIX if name.startswith(FILE_PREFIX) else name


RECIPES = ("plain", "bf16", "fp8_seed", "fp8_e5m2_grad", "fp8_current", "fp8_delayed")
"""``plain``: the model's dtype. ``bf16``: operands in bfloat16. ``fp8_seed``: all E4M3, but E5M2
inputs of the attention-out and FFN-down projections (u-μP paper, Appendix E.2).
``fp8_e5m2_grad``: E4M3 forward, E5M2 gradients, those two projections in bfloat16 (the paper's
later scheme). ``fp8_current``, ``fp8_delayed``: E4M3 forward, E5M2 gradients, each tensor scaled
by its largest magnitude, now or lately: what unit scaling makes unnecessary."""

BLOCK_LINEARS = ("attn.qkv", "attn.out", "mlp.gate_up", "mlp.down")


@dataclass(frozen=True)
class ModelConfig(Config):
    """Shape of the Llama-style decoder: everything that changes the compiled program.

    ``base_*`` are the shapes at which μP equals SP. ``unroll`` is how many layers of the scan over
    depth are unrolled (0: all): faster on a CPU, longer to compile. None leaves it to the library,
    see ``model.layers_unrolled``. ``recipe``, ``keep_bf16`` and
    ``accumulation`` say how the linears cast their operands, see ``umup.fp8``.

    ``dtype`` is that of the activations, ``params_dtype`` that in which weights are kept (their
    optimizer state is float32). ``remat`` is what of a block is computed again on the way back:
    nothing, all but matrix products (``dots``), or all (``full``). ``attention`` names the
    implementation, see ``ops.attention``. ``qk_norm``, ``depth_scaled_init`` and ``z_loss`` are
    defences against instability: RMS norm of q and k, init of each branch's last weight divided
    by √(2N), and the weight of mean log² Z (PaLM, arXiv 2204.02311, §5).
    """

    d_model: int = 256
    n_layers: int = 4
    d_head: int = 64
    d_ff: int = 1024
    vocab_size: int = 256
    seq_len: int = 256
    base_width: int = 256
    base_depth: int = 4
    base_d_head: int = 64
    depth_convention: str = "branches"
    tau_convention: str = "derived"
    rope: bool = True
    rope_theta: float = 10_000.0
    dtype: str = "float32"
    unroll: int | None = None
    recipe: str = "plain"
    keep_bf16: tuple[str, ...] = ()
    accumulation: str = "fast"
    params_dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    qk_norm: bool = False
    depth_scaled_init: bool = False
    z_loss: float = 0.0

    RANGES = {
        "d_model": COUNT, "n_layers": COUNT, "d_head": COUNT, "d_ff": COUNT,
        "vocab_size": Range(2), "seq_len": COUNT,
        "base_width": COUNT, "base_depth": COUNT, "base_d_head": COUNT,
        "depth_convention": ("branches", "layers"),
        "tau_convention": ("derived", "library", "printed"),
        "rope_theta": POSITIVE, "dtype": ("float32", "bfloat16"), "unroll": Range(0),
        "recipe": RECIPES, "accumulation": ("fast", "precise"),
        "params_dtype": ("float32", "bfloat16"), "remat": ("none", "dots", "full"),
        "attention": ("xla", "blocked", "cudnn"), "z_loss": Range(0.0),
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_model % self.d_head:
            raise ConfigError("d_head", self.d_head, f"a divisor of d_model = {self.d_model}")
        if self.rope and self.d_head % 2:
            raise ConfigError("d_head", self.d_head, "an even number when rope is on")
        if self.attention == "cudnn" and (self.dtype != "bfloat16" or self.d_head % 8):
            raise ConfigError("attention", "cudnn", "xla, or dtype bfloat16 and d_head in eights")
        for name in self.keep_bf16:
            if not self._has_linear(name):
                allowed = f"{', '.join(BLOCK_LINEARS)}, one of these after blocks.0. to "
                allowed += f"blocks.{self.n_layers - 1}., or readout"
                raise ConfigError("keep_bf16", name, allowed)

    def essence(self) -> dict[str, Any]:
        """As of every configuration; one layer at a time was the default once, and has its key."""
        essence = super().essence()
        if self.unroll == 1:
            del essence["unroll"]
        return essence

    def _has_linear(self, name: str) -> bool:
        """True of the name of a linear: of one block, of all blocks at once, or the readout."""
        if one := re.fullmatch(r"blocks\.(0|[1-9][0-9]*)\.(.+)", name):
            return int(one[1]) < self.n_layers and one[2] in BLOCK_LINEARS
        return name in ("readout", *BLOCK_LINEARS)

    def step_flops(self, batch_size: int) -> int:
        """Floating-point operations of one training step: 6·weights·tokens, and attention's.

        Weights are those that multiply: all but the embedding, which is a lookup. q·kᵀ and the
        weighted sum of values cost 4·T·d_model per token and layer forward, three times that with
        the backward pass, counted over the full T × T square as PaLM does (arXiv 2204.02311,
        Appendix B). Norms, softmax, loss, optimizer and what is computed again to save memory are
        not counted.
        """
        weights = self.n_params - self.vocab_size * self.d_model
        square = 12 * self.n_layers * self.seq_len * self.d_model
        return batch_size * self.seq_len * (6 * weights + square)

    @property
    def n_heads(self) -> int:
        """Number of attention heads."""
        return self.d_model // self.d_head

    @property
    def n_params(self) -> int:
        """Number of trained parameters."""
        per_block = 4 * self.d_model**2 + 3 * self.d_model * self.d_ff
        return 2 * self.vocab_size * self.d_model + self.n_layers * per_block


SCHEDULES = ("cosine", "linear", "wsd", "wsd_sqrt", "two_step")
"""Decays after the warm-up, see ``umup.optim.schedule``."""


@dataclass(frozen=True)
class OptimConfig(Config):
    """AdamW and its schedule (seed 001, Table 6: linear warm-up, cosine to ``final_lr_ratio``).

    ``decay`` is ``independent`` (per step λ·schedule, free of η) or ``coupled`` (λ·η_w·schedule).
    ``decay_steps`` is the length of the decay that ends a warm-up-stable-decay run. ``clip``
    bounds the global norm of the unscaled gradient, see ``train.step`` (0: no bound).
    ``accumulate`` is into how many parts a batch is cut, one after another, to save memory.
    ``loss_scale`` multiplies the loss before the backward pass and divides the weights' gradients
    after it, so that only casts see it (Micikevicius et al., arXiv 1710.03740, §3.2); a power of
    two changes nothing else.
    """

    steps: int = 8192
    batch_size: int = 64
    warmup_steps: int = 2000
    final_lr_ratio: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decay: str = "independent"
    schedule: str = "cosine"
    decay_steps: int = 0
    clip: float = 0.0
    accumulate: int = 1
    loss_scale: float = later(1.0)

    RANGES = {
        "steps": COUNT, "batch_size": COUNT, "warmup_steps": Range(0), "final_lr_ratio": FRACTION,
        "beta1": FRACTION, "beta2": FRACTION, "eps": POSITIVE, "decay": ("independent", "coupled"),
        "schedule": SCHEDULES, "decay_steps": Range(0), "clip": Range(0.0), "accumulate": COUNT,
        "loss_scale": POSITIVE,
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps > self.steps:
            raise ConfigError("warmup_steps", self.warmup_steps, f"at most steps = {self.steps}")
        if max(self.beta1, self.beta2) == 1.0:
            field = "beta1" if self.beta1 == 1.0 else "beta2"
            raise ConfigError(field, 1.0, "a number in [0, 1)")
        self._check_decay()
        if self.batch_size % self.accumulate:
            allowed = f"a divisor of batch_size = {self.batch_size}"
            raise ConfigError("accumulate", self.accumulate, allowed)

    def _check_decay(self) -> None:
        """A decay belongs to warm-up-stable-decay, and fits between its warm-up and its end."""
        room = self.steps - self.warmup_steps
        if not self.schedule.startswith("wsd"):
            if self.decay_steps:
                raise ConfigError("decay_steps", self.decay_steps, "0, or schedule wsd | wsd_sqrt")
        elif not 1 <= self.decay_steps <= room:
            allowed = f"1 to {room}, what {self.steps} steps leave after warmup_steps"
            raise ConfigError("decay_steps", self.decay_steps, allowed)


@dataclass(frozen=True)
class HPs(Config):
    """Hyperparameters: traced values, so that one compiled program serves every setting.

    Names follow the u-μP paper; which of them a scheme has is in ``rules.SCHEMES[...].hps``.
    """

    eta: float = 1.0
    eta_emb: float = 1.0
    sigma_init: float = 1.0
    alpha_emb: float = 1.0
    alpha_output: float = 1.0
    alpha_attn_softmax: float = 1.0
    alpha_residual: float = 1.0
    alpha_residual_attn_ratio: float = 1.0
    alpha_ffn_act: float = 1.0
    alpha_loss_softmax: float = 1.0
    weight_decay: float = 2.0**-13

    RANGES = {
        "eta": POSITIVE, "eta_emb": POSITIVE, "sigma_init": POSITIVE, "alpha_emb": POSITIVE,
        "alpha_output": POSITIVE, "alpha_attn_softmax": POSITIVE, "alpha_residual": POSITIVE,
        "alpha_residual_attn_ratio": POSITIVE, "alpha_ffn_act": POSITIVE,
        "alpha_loss_softmax": POSITIVE,
        "weight_decay": Range(0.0),
    }  # fmt: skip


@dataclass(frozen=True)
class MeshConfig(Config):
    """How many devices along each axis; see ``umup.mesh``.

    ``data`` replicates the weights and splits the batch, ``fsdp`` splits both, ``tensor`` splits
    heads, feed-forward features and vocabulary. Their product is the number of devices.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    RANGES = {"data": COUNT, "fsdp": COUNT, "tensor": COUNT}

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.data * self.fsdp * self.tensor

    def __str__(self) -> str:
        return f"{self.data}×{self.fsdp}×{self.tensor}"


@dataclass(frozen=True)
class RunConfig(Config):
    """One training run, whole: its digest together with ``NUMERICS`` is the record's key.

    At each of ``probe_steps`` the model is observed before that update, or at the end where it
    equals ``optim.steps``; training goes on as if it were not.
    """

    scheme: str
    model: ModelConfig
    optim: OptimConfig
    hps: HPs
    seed: int
    corpus: str
    tokenizer: str
    data_digest: str
    eval_batches: int = 16
    probe_steps: tuple[int, ...] = ()

    RANGES = {"seed": Range(0, 2**31 - 1), "eval_batches": COUNT, "probe_steps": Range(0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.probe_steps
        if list(steps) != sorted(set(steps)) or (steps and steps[-1] > self.optim.steps):
            allowed = f"rising steps, 0 to {self.optim.steps}"
            raise ConfigError("probe_steps", steps, allowed)

    def essence(self) -> dict[str, Any]:
        """As of every configuration; of one's own text without its path, which may change."""
        return super().essence() | {"corpus": corpus_identity(self.corpus)}

    def key(self) -> str:
        """Digest of the specification and of the numerics version."""
        return digest({"spec": self.essence(), "numerics": NUMERICS})

    @property
    def shape(self) -> tuple:
        """What one compiled program serves: runs of equal shape may be lanes of one group."""
        return (self.scheme, self.model, self.optim, self.data_digest, self.eval_batches,
                self.probe_steps)  # fmt: skip
