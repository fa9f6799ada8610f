"""Loss spikes: found from per-step numbers, and the record of what was done about them.

The procedure is that of PaLM (Chowdhery et al. 2022, section 5.1): go back to a checkpoint before
the spike and train on without the batches around it. A spike is told as OLMo 2 (2024, section 3)
tells one, as values many deviations above a running estimate, which is robust here (median and
median absolute deviation) and, for gradient norms, in logarithms, since these scatter by factors.

Nothing here knows of chunks, time or devices: the same numbers give the same decisions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from umup.checked import Config, Count, CountOrZero, Positive, PositiveOrZero, Range
from umup.errors import CheckpointError, ConfigError

_MAD_TO_DEVIATION = 1.4826  # of a normal distribution: 1 / Φ⁻¹(3/4)


@dataclass(frozen=True)
class RecoveryConfig(Config):
    """When a run is taken to have spiked, and what is done then.

    A step is suspicious when its loss, or the logarithm of its gradient norm, lies more than a
    threshold of deviations above the median of the steps before it that were not. The run goes
    back to a checkpoint before the onset and leaves out the batches around it. PaLM's own numbers
    are of the order of a margin of 100 and 200 to 500 batches left out.

    The defaults were checked on noise about a falling power law, 10 runs of 100,000 steps a kind,
    loss and log gradient norm alike: no alarm in normal, log-normal and Student's t noise of 3 and
    of 4 degrees of freedom, nor in normal noise of autocorrelation 0.7; two, one by each number,
    with t of 4 degrees and autocorrelation 0.5. Losses of small models have near normal noise of
    no autocorrelation, and their gradient norms lone outliers up to 19 deviations: no alarm in
    15,000 real steps at η from 1, the best of them, to 64.
    """

    on: bool = True
    """Whether spikes are looked for."""
    window: Annotated[int, Range(8)] = 128
    """Steps that were not suspicious over which median and deviation are taken."""
    warmup: CountOrZero = 200
    """Steps before which only non-finite losses are a spike."""
    loss_threshold: PositiveOrZero = 7.0
    """Deviations of the loss above its median (0: never)."""
    grad_threshold: PositiveOrZero = 10.0
    """Deviations of the logarithm of the gradient norm above its median (0: never)."""
    loss_floor: Positive = 0.01
    """A deviation of the loss is never taken as less, nats."""
    grad_floor: Positive = 0.1
    """A deviation of the logarithm of the gradient norm is never taken as less, nats."""
    patience: Count = 4
    """Suspicious steps in a row that are a spike."""
    max_nonfinite: Count = 8
    """Non-finite steps in a row that are a spike."""
    lead: Count = 1
    """Batches left out before the onset: the update before the first bad loss is the first
    suspect."""
    trail: CountOrZero = 0
    """Batches left out after the detection."""
    margin: Count = 100
    """Steps that the checkpoint lies before the onset, at least."""
    eta_factor: Annotated[float, Range(0.0, 1.0, open_lo=True)] = 1.0
    """Multiplies η at each intervention."""
    max_interventions: CountOrZero = 10
    """Interventions after which the next spike ends the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience > self.window // 2:
            allowed = f"at most half the window of {self.window} steps"
            raise ConfigError("patience", self.patience, allowed)
        if self.margin < self.lead:
            allowed = f"at least lead = {self.lead}: the batches left out are behind the checkpoint"
            raise ConfigError("margin", self.margin, allowed)


@dataclass(frozen=True)
class Spike:
    """A spike: first bad step, the step whose numbers settled it, and what they were.

    ``value``, ``median`` and ``deviation`` are nats: of the loss, or of the logarithm of the
    gradient norm. ``value`` is the largest of the suspicious steps. All are None for ``reason``
    "non-finite".
    """

    onset: int
    detected: int
    reason: str
    value: float | None = None
    median: float | None = None
    deviation: float | None = None


class Detector:
    """Watches loss and gradient norm step by step.

    Suspicious values stay out of the running estimate, so that a spike cannot hide itself by
    growing slowly. A level that has shifted for good is told from a spike by its length: once more
    than half of the last ``window`` steps were suspicious, these steps are the new estimate.
    Until then one spike is reported once.
    """

    def __init__(self, config: RecoveryConfig):
        self._config = config
        self._loss = _Track("loss", config.loss_threshold, config.loss_floor, config)
        self._grad = _Track("grad_norm", config.grad_threshold, config.grad_floor, config)
        self._nonfinite = 0  # in a row

    def update(self, step: int, loss: float, grad_norm: float, ok: bool) -> Spike | None:
        """Take in one step, and say whether it settles that there is a spike.

        Args:
            step: number of the update; each is one more than the last.
            loss: before the update, nats a token.
            grad_norm: global norm of the gradient.
            ok: whether the update was finite and applied.
        """
        config = self._config
        if not config.on:
            return None
        if not (ok and math.isfinite(loss) and math.isfinite(grad_norm)):
            self._nonfinite += 1
            if self._nonfinite == config.max_nonfinite:
                return Spike(step - self._nonfinite + 1, step, "non-finite")
            return None
        self._nonfinite = 0
        log_grad = math.log(max(float(grad_norm), 1e-300))
        by_loss = self._loss.update(step, float(loss))
        by_grad = self._grad.update(step, log_grad)
        return by_loss or by_grad

    def state(self) -> dict[str, Any]:
        """All that later decisions rest on, as plain JSON; a checkpoint carries it."""
        tracks = {"loss": self._loss.state(), "grad_norm": self._grad.state()}
        return {**tracks, "nonfinite": self._nonfinite}

    @classmethod
    def restore(cls, config: RecoveryConfig, state: Mapping[str, Any]) -> Self:
        """The detector that had this ``state()``: it decides as the first would have.

        Raises:
            CheckpointError: this is not the state of a detector.
        """
        self = cls(config)
        try:
            self._loss.restore(state["loss"])
            self._grad.restore(state["grad_norm"])
            self._nonfinite = int(state["nonfinite"])
        except (KeyError, TypeError, ValueError) as error:
            allowed = f"what Detector.state() gave ({type(error).__name__}: {error})"
            raise CheckpointError("detector", state, allowed) from error
        return self


class _Track:
    """The running estimate of one number, and the streak of suspicious steps it is in."""

    def __init__(self, reason: str, threshold: float, floor: float, config: RecoveryConfig):
        self.reason, self.threshold, self.floor, self.config = reason, threshold, floor, config
        self.kept: deque[float] = deque(maxlen=config.window)
        self.recent: deque[tuple[int, float, bool]] = deque(maxlen=config.window)
        self.streak = 0  # suspicious finite steps in a row
        self.reported = False

    def update(self, step: int, value: float) -> Spike | None:
        config = self.config
        median, deviation = self._estimate()
        ready = step >= config.warmup and len(self.kept) >= config.window // 2
        limit = median + self.threshold * deviation
        suspicious = ready and self.threshold > 0 and value > limit
        self.recent.append((step, value, suspicious))
        if not suspicious:
            self.kept.append(value)
            self.streak, self.reported = 0, False
            return None
        self.streak += 1
        if sum(flag for _, _, flag in self.recent) > config.window // 2:
            self._rebase()
            return None
        if self.streak < config.patience or self.reported:
            return None
        self.reported = True
        streak = [v for _, v, _ in list(self.recent)[-self.streak :]]
        onset = self._onset(median + self.threshold / 2 * deviation)
        return Spike(onset, step, self.reason, max(streak), median, deviation)

    def _estimate(self) -> tuple[float, float]:
        if not self.kept:
            return 0.0, self.floor
        median = _median(self.kept)
        mad = _median([abs(value - median) for value in self.kept])
        return median, max(_MAD_TO_DEVIATION * mad, self.floor)

    def _onset(self, above: float) -> int:
        """The first step of the streak, or of the rise above half the threshold it began with."""
        steps = list(self.recent)
        first = len(steps) - self.streak
        while first > 0 and steps[first - 1][1] > above:
            first -= 1
        return steps[first][0]

    def _rebase(self) -> None:
        self.kept.extend(value for _, value, _ in self.recent)
        self.recent = deque(
            ((step, value, False) for step, value, _ in self.recent), maxlen=self.config.window
        )
        self.streak, self.reported = 0, False

    def state(self) -> dict[str, Any]:
        recent = [list(entry) for entry in self.recent]
        return {
            "kept": list(self.kept),
            "recent": recent,
            "streak": self.streak,
            "reported": self.reported,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.kept.extend(float(value) for value in state["kept"])
        self.recent.extend((int(s), float(v), bool(flag)) for s, v, flag in state["recent"])
        self.streak, self.reported = int(state["streak"]), bool(state["reported"])


def _median(values: Sequence[float] | deque[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@dataclass(frozen=True)
class Intervention(Config):
    """What was done about one spike; ``to_dict`` is its record.

    ``rolled_back_to`` is the step of the checkpoint that training went on from; ``first_batch`` to
    ``last_batch`` are the batch indices left out from then on, both included; ``eta_scale`` is the
    factor on η at the end of the run.
    """

    detected: int
    onset: int
    rolled_back_to: int
    first_batch: int
    last_batch: int
    eta_scale: float
    reason: str
    value: float | None = None
    median: float | None = None
    deviation: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Why a run ended without having been healed."""

    reason: str
    verdict: str = "gave up"


@dataclass(frozen=True)
class Interventions:
    """The interventions of a run so far, and what they make of every step.

    Step s trains on the s-th batch index that is not left out, counted from 0. So indices rise
    with the steps, none that was left out ever comes back, and a new intervention changes no step
    before the first batch that it leaves out, however many overlap.
    """

    config: RecoveryConfig
    done: tuple[Intervention, ...] = ()

    def plan(self, spike: Spike, checkpoints: Sequence[int]) -> Intervention | Verdict:
        """What to do about ``spike``; ``after`` then takes it into account.

        Args:
            spike: as the detector found it under these interventions.
            checkpoints: steps one can go back to, in any order; 0 where the run can start anew.
        """
        config, at = self.config, f"a spike ({spike.reason}) at step {spike.onset}"
        if len(self.done) >= config.max_interventions:
            return Verdict(f"{at} after {len(self.done)} interventions, the most allowed")
        latest = max(spike.onset - config.margin, 0)
        before = [step for step in checkpoints if step <= latest]
        if not before:
            return Verdict(f"{at}, and no checkpoint at or before step {latest}")
        first = max(spike.onset - config.lead, 0)
        return Intervention(
            **dataclasses.asdict(spike),
            rolled_back_to=max(before),
            first_batch=self.batch_at(first),
            last_batch=self.batch_at(spike.detected) + config.trail,
            eta_scale=config.eta_factor ** (len(self.done) + 1),
        )

    def after(self, intervention: Intervention) -> Interventions:
        """These interventions and one more."""
        return dataclasses.replace(self, done=(*self.done, intervention))

    @functools.cached_property
    def skips(self) -> tuple[tuple[int, int], ...]:
        """(step, count), by step: from update ``step`` on, the shift is larger by ``count``."""
        merged: list[list[int]] = []  # disjoint, [first, one past the last]
        for first, last in sorted((i.first_batch, i.last_batch) for i in self.done):
            if merged and first <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], last + 1)
            else:
                merged.append([first, last + 1])
        skips, shift = [], 0
        for first, end in merged:
            skips.append((first - shift, end - first))
            shift += end - first
        return tuple(skips)

    def shift_at(self, step: int) -> int:
        """How many batches were left out before update ``step``."""
        return sum(count for start, count in self.skips if start <= step)

    def batch_at(self, step: int) -> int:
        """The batch index that update ``step`` trains on."""
        return step + self.shift_at(step)

    def eta_scale_at(self, step: int) -> float:
        """The factor on η at ``step``: lowered from ``margin`` steps before each onset.

        Not from ``rolled_back_to``, which depends on what checkpoints there happened to be.
        """
        return self.config.eta_factor ** sum(lowered <= step for lowered in self._lowered)

    @functools.cached_property
    def _lowered(self) -> tuple[int, ...]:
        """Steps from which η is lower, one for each intervention."""
        return tuple(max(i.onset - self.config.margin, 0) for i in self.done)

    def to_list(self) -> list[dict[str, Any]]:
        """The interventions as plain JSON."""
        return [i.to_dict() for i in self.done]

    @classmethod
    def from_list(cls, config: RecoveryConfig, done: Sequence[Mapping[str, Any]]) -> Self:
        """The inverse of ``to_list``.

        Raises:
            ConfigError: an intervention has an unknown, missing or malformed field.
        """
        return cls(config, tuple(Intervention.from_dict(i) for i in done))
