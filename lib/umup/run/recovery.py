"""Loss spikes: their detection from per-step numbers, and the record of what was done about them.

The procedure is that of PaLM (Chowdhery et al. 2022, section 5.1): go back to a checkpoint before
the spike and continue without the batches around it. As in OLMo 2 (2024, section 3), a spike is a
value many deviations above a running estimate. The estimate here is robust (median and median
absolute deviation) and, for gradient norms, logarithmic, since they vary by factors.

Nothing here depends on chunks, time or devices: equal numbers give equal decisions.
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
    """When a run counts as having spiked, and what is done then.

    A step is suspicious when its loss, or the logarithm of its gradient norm, lies more than a
    given number of deviations above the median of earlier steps that were not suspicious. The run
    goes back to a checkpoint before the onset and leaves out the batches around it. PaLM's margin
    is of the order of 100 steps, and it left out 200 to 500 batches.

    The defaults were checked on noise around a decreasing power law, in 10 runs of 100,000 steps
    per kind, for loss and log gradient norm alike: no alarm in normal noise, log-normal noise,
    Student's t noise with 3 or 4 degrees of freedom, or normal noise with autocorrelation 0.7; two
    alarms, one for each number, in t noise with 4 degrees of freedom and autocorrelation 0.5. The
    losses of small models have nearly normal noise without autocorrelation, and their gradient
    norms have isolated outliers of up to 19 deviations: no alarm in 15,000 real steps at η from 1,
    the best, to 64.
    """

    on: bool = True
    """Whether spikes are detected."""
    window: Annotated[int, Range(8)] = 128
    """Number of steps, none of them suspicious, over which median and deviation are taken."""
    warmup: CountOrZero = 200
    """Number of first steps in which only non-finite losses count as a spike."""
    loss_threshold: PositiveOrZero = 7.0
    """Threshold of the loss, in deviations above its median (0: never)."""
    grad_threshold: PositiveOrZero = 10.0
    """Threshold of the log gradient norm, in deviations above its median (0: never)."""
    loss_floor: Positive = 0.01
    """Least deviation of the loss, nats."""
    grad_floor: Positive = 0.1
    """Least deviation of the log gradient norm, nats."""
    patience: Count = 4
    """Number of consecutive suspicious steps that count as a spike."""
    max_nonfinite: Count = 8
    """Number of consecutive non-finite steps that count as a spike."""
    lead: Count = 1
    """Batches left out before the onset: the update before the first bad loss is the likeliest
    cause."""
    trail: CountOrZero = 0
    """Batches left out after the detection."""
    margin: Count = 100
    """Least number of steps from the checkpoint to the onset."""
    eta_factor: Annotated[float, Range(0.0, 1.0, open_lo=True)] = 1.0
    """Factor on η at each intervention."""
    max_interventions: CountOrZero = 10
    """Number of interventions after which the next spike ends the run."""

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
    """A spike: its first bad step, the step at which it was detected, and the numbers there.

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
    growing slowly. A permanent shift of the level is distinguished from a spike by its length: once
    more than half of the last ``window`` steps were suspicious, the estimate is taken from them.
    Until then each spike is reported once.
    """

    def __init__(self, config: RecoveryConfig):
        self._config = config
        self._loss = _Track("loss", config.loss_threshold, config.loss_floor, config)
        self._grad = _Track("grad_norm", config.grad_threshold, config.grad_floor, config)
        self._nonfinite = 0  # in a row

    def update(self, step: int, loss: float, grad_norm: float, ok: bool) -> Spike | None:
        """Take in one step; returns a spike if this step completes its detection.

        Args:
            step: number of the update; each is one more than the last.
            loss: before the update, nats per token.
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
        """Everything that later decisions depend on, as plain JSON for a checkpoint."""
        tracks = {"loss": self._loss.state(), "grad_norm": self._grad.state()}
        return {**tracks, "nonfinite": self._nonfinite}

    @classmethod
    def restore(cls, config: RecoveryConfig, state: Mapping[str, Any]) -> Self:
        """The detector restored from ``state()``: it decides as the original would have.

        Raises:
            CheckpointError: the argument is not the state of a detector.
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
    """The running estimate of one number, and its current streak of suspicious steps."""

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
        """The first step of the streak, or of the rise above half the threshold that began it."""
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
    """The reaction to one spike; ``to_dict`` is its record.

    ``rolled_back_to`` is the step of the checkpoint that training resumed from; ``first_batch`` to
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
    """The interventions of a run so far, and their effect on every step.

    Step s trains on the s-th batch index that is not left out, counted from 0. So indices increase
    with the steps, a batch left out never returns, and a new intervention changes no step before
    the first batch that it leaves out, however many interventions overlap.
    """

    config: RecoveryConfig
    done: tuple[Intervention, ...] = ()

    def plan(self, spike: Spike, checkpoints: Sequence[int]) -> Intervention | Verdict:
        """The reaction to ``spike``; pass it to ``after`` to take it into account.

        Args:
            spike: as the detector found it under these interventions.
            checkpoints: steps of the checkpoints, in any order; 0 if the run can start again.
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
        """(step, count) in order: from update ``step`` on, the shift is larger by ``count``."""
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
        """Number of batches left out before update ``step``."""
        return sum(count for start, count in self.skips if start <= step)

    def batch_at(self, step: int) -> int:
        """The batch index that update ``step`` trains on."""
        return step + self.shift_at(step)

    def eta_scale_at(self, step: int) -> float:
        """The factor on η at ``step``: lowered from ``margin`` steps before each onset.

        It does not depend on ``rolled_back_to``, which depends on the checkpoints available.
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
