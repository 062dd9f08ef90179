"""The report of a likelihood job: log Z and bits per dimension, with warnings where they are unreliable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from drl_dist.diffusion.ladder import NoiseLadder
from drl_dist.diffusion.recovery import Levels
from drl_dist.likelihood.bits import bits_per_dim, log_density_of_data
from drl_dist.likelihood.partition import LogZ, annealed_log_density, lower_bound, upper_bound
from drl_dist.likelihood.weights import MIN_SAMPLES, curve, curve_sizes

LARGEST_RMS = 1.5
"""Root mean square per pixel above which chains have left the range of images: data in [-1, 1] with any of the ladder's
noise stays at 1 or below."""
WIDE_GAP = 0.05
"""Bits per dimension between the estimates above which neither is close to the likelihood."""
NEGATIVE = "negative bits/dim"
_STANDARD_ERRORS = 3.0

Chains = Mapping[str, Tensor]
"""``log_weight``, ``acceptance_rate`` and ``root_mean_square``, (T, M), of M chains; of upward chains also ``at_x_0``,
(M,), f(y_0, 0) at their start."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Mean estimate of log Z by number of chains (Figure 7, right)."""

    num_chains: tuple[int, ...]
    log_z: tuple[float, ...]
    """Mean estimate for each of these numbers, in nats."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """log Z from chains of one length."""

    steps_per_level: int
    lower: LogZ
    upper: LogZ
    lower_curve: Curve
    upper_curve: Curve
    annealed_bits_per_dim: float
    """Bits per dimension of x_0 under the distribution in which downward chains end (RAISE); too large on average."""
    annealed_standard_error: float


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Bits per dimension of the images by the longest chains' estimates of log Z, which bound it on average."""

    lower: float
    """Bits per dimension from the lower estimate of log Z: too small on average."""
    lower_standard_error: float
    """Standard error over images and chains."""
    upper: float
    """Bits per dimension from the upper estimate of log Z: too large on average, if its chains began at draws of the
    model."""
    upper_standard_error: float
    mean_log_density: float
    """f(y_0, 0) averaged over the images, in nats."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All results of a likelihood job."""

    why_unknown: tuple[str, ...]
    """Why the numbers of bits per dimension cannot be the likelihood; empty if nothing shows that they cannot."""
    at_data: Bits
    """Bits at y_0 = a_0 a_1 x of dequantised images x, as in section 4.2."""
    at_x_0: Bits
    """Bits at y_0 = a_1 x_0 with the ladder's first noise, on which the model is trained."""
    upper_from: Literal["images", "draws"]
    """Where the chains began from which the upper estimates of log Z come: images, or draws of the model."""
    estimates: tuple[Estimate, ...]
    """Estimates by length of the chains, the shortest first."""
    warnings: tuple[str, ...]


def report(
    at_data: Tensor,
    at_x_0: Tensor,
    chains: Mapping[int, tuple[Chains, Chains, Chains | None]],
    levels: Levels,
    ladder: NoiseLadder,
    num_dims: int,
    of_model: Sequence[str] = (),
) -> Report:
    """Compute the report.

    Args:
        at_data: (N,) f(y_0, 0) of dequantised images, nats.
        at_x_0: (N,) the same with the ladder's first noise.
        chains: by steps per level, chains downward, upward from images, and, if the upper estimate is to come from
            these, upward from draws of the model; of all lengths or of none.
        levels: levels of the model.
        ladder: ladder of the model.
        num_dims: D.
        of_model: warnings that follow from the model alone, of `drl_dist.likelihood.trust.model_warnings`.
    """
    estimates = tuple(
        _estimate(length, *chains[length], levels=levels, ladder=ladder, num_dims=num_dims) for length in sorted(chains)
    )
    best, upper_from = estimates[-1], "images" if any(one[2] is None for one in chains.values()) else "draws"
    # x_0 = a_0 x + noise and y_0 = a_1 x_0; the noise changes no volume.
    scale = float(ladder.cumulative_scale[0]) * float(levels.transition_scale[0])
    of_data, of_x_0 = (_bits(values, best, scale, num_dims) for values in (at_data, at_x_0))
    return Report(
        why_unknown=why_unknown((of_data, of_x_0), best, num_dims),
        at_data=of_data,
        at_x_0=of_x_0,
        upper_from=upper_from,
        estimates=estimates,
        warnings=(*of_model, *_warnings(best, num_dims, upper_from)),
    )


def unknown_first(report: Report, numbers: str) -> str:
    """Bits per dimension as text, after ``not known`` and the reasons if they cannot be the likelihood."""
    return f"not known ({', '.join(report.why_unknown)}); {numbers}" if report.why_unknown else numbers


def summary(report: Report) -> str:
    """The result in one line, for the head of the printed report, the picture's caption and MLflow."""
    bits = report.at_data
    numbers = f"estimates that bound it on average: {bits.lower:.4f} and {bits.upper:.4f}"
    return f"bits/dim of the images: {unknown_first(report, numbers)}"


def whole_metrics(report: Report) -> dict[str, float]:
    """Metrics of the longest chains."""
    best = report.estimates[-1]
    return {
        "likelihood/is_unknown": float(bool(report.why_unknown)),
        "likelihood/log_z_lower": best.lower.log_z,
        "likelihood/log_z_upper": best.upper.log_z,
        "likelihood/log_z_limit_lower": best.lower.limit,
        "likelihood/log_z_limit_upper": best.upper.limit,
        "likelihood/ess_lower": best.lower.effective_sample_size,
        "likelihood/ess_upper": best.upper.effective_sample_size,
        "likelihood/bits_per_dim_lower": report.at_data.lower,
        "likelihood/bits_per_dim_upper": report.at_data.upper,
        "likelihood/bits_per_dim_x0_lower": report.at_x_0.lower,
        "likelihood/bits_per_dim_x0_upper": report.at_x_0.upper,
        "likelihood/bits_per_dim_x0_annealed": best.annealed_bits_per_dim,
    }


def level_metrics(report: Report) -> list[tuple[str, int, float]]:
    """Metrics of the longest chains by level: name, level, value."""
    return [
        (f"likelihood/{name}_{side}", row.level, value)
        for side, bound in (("lower", report.estimates[-1].lower), ("upper", report.estimates[-1].upper))
        for row in bound.levels
        for name, value in (
            ("level_log_z_ratio", row.log_z_ratio),
            ("level_ess", row.effective_sample_size),
            ("level_acceptance_rate", row.acceptance_rate),
        )
    ]


def _estimate(
    length: int,
    down: Chains,
    up: Chains,
    up_from_draws: Chains | None,
    *,
    levels: Levels,
    ladder: NoiseLadder,
    num_dims: int,
) -> Estimate:
    of_upper = up if up_from_draws is None else up_from_draws
    lower, upper = (
        bound(way["log_weight"], way["acceptance_rate"], way["root_mean_square"], levels, num_dims)
        for bound, way in ((lower_bound, down), (upper_bound, of_upper))
    )
    per_image = annealed_log_density(up["at_x_0"], up["log_weight"].sum(0), num_dims)
    bits = bits_per_dim(per_image + num_dims * math.log(float(ladder.cumulative_scale[0])), num_dims)
    return Estimate(
        steps_per_level=length,
        lower=lower,
        upper=upper,
        lower_curve=_curve(down["log_weight"].sum(0), lower.log_z, 1.0),
        upper_curve=_curve(of_upper["log_weight"].sum(0), upper.log_z, -1.0),
        annealed_bits_per_dim=float(bits.mean()),
        annealed_standard_error=float(bits.std()) / math.sqrt(len(bits)),
    )


def _curve(total: Tensor, log_z: float, sign: float) -> Curve:
    """The curve, shifted so that it ends at log_z: `total` lacks the part that is known exactly."""
    sizes = curve_sizes(len(total))
    values = curve(total, sizes)
    return Curve(num_chains=tuple(sizes), log_z=tuple(log_z + sign * (value - values[-1]) for value in values))


def _bits(unnormalised: Tensor, best: Estimate, scale: float, num_dims: int) -> Bits:
    def bits(log_z: LogZ) -> tuple[float, float]:
        values = bits_per_dim(log_density_of_data(unnormalised, log_z.log_z, scale, num_dims), num_dims)
        of_images = float(values.std()) / math.sqrt(len(values))
        return float(values.mean()), math.hypot(of_images, log_z.standard_error / (num_dims * math.log(2)))

    (lower, lower_error), (upper, upper_error) = bits(best.lower), bits(best.upper)
    return Bits(
        lower=lower,
        lower_standard_error=lower_error,
        upper=upper,
        upper_standard_error=upper_error,
        mean_log_density=float(unnormalised.mean()),
    )


def why_unknown(bits: Sequence[Bits], best: Estimate, num_dims: int) -> tuple[str, ...]:
    """Why bits per dimension cannot be the likelihood, or rest on too little to tell; empty if nothing speaks against.

    They cannot be negative: the probability of an image of 256 grey levels is at most 1.
    """
    numbers = [number for one in bits for number in (one.lower, one.upper)]
    effective = min(best.lower.effective_sample_size, best.upper.effective_sample_size)
    reasons = (
        (f"fewer than {MIN_SAMPLES:g} effective chains", not effective >= MIN_SAMPLES),
        ("the two estimates contradict each other", _contradict(best, num_dims)),
        (NEGATIVE, min([*numbers, best.annealed_bits_per_dim]) < 0),
    )
    return tuple(text for text, holds in reasons if holds)


def _gap(best: Estimate, num_dims: int) -> float:
    """The upper estimate less the lower one, in bits per dimension."""
    return (best.upper.log_z - best.lower.log_z) / (num_dims * math.log(2))


def _contradict(best: Estimate, num_dims: int) -> bool:
    """Whether the upper estimate lies below the lower one by more than chance explains."""
    error = math.hypot(best.upper.standard_error, best.lower.standard_error) / (num_dims * math.log(2))
    gap = _gap(best, num_dims)
    return gap < -_STANDARD_ERRORS * error or not math.isfinite(gap)


def _warnings(best: Estimate, num_dims: int, upper_from: Literal["images", "draws"]) -> list[str]:
    """Reasons to distrust the numbers of the longest chains, one sentence each."""
    warnings: list[str] = []
    for name, bound in (("lower", best.lower), ("upper", best.upper)):
        if bound.is_carried_by_few:
            warnings.append(
                f"the {name} estimate of log Z rests on {bound.effective_sample_size:.1f} effective of "
                f"{bound.num_chains} chains: it may be far from the truth; take more steps per level"
            )
        levels = [row.level for row in bound.levels if row.is_carried_by_few]
        if levels:
            warnings.append(
                f"the ratios of the {name} estimate at {len(levels)} of {len(bound.levels)} levels "
                f"({_listed(levels)}) each rest on few chains"
            )
        far = [row.level for row in bound.levels if row.root_mean_square > LARGEST_RMS]
        if far:
            warnings.append(
                f"chains of the {name} estimate left the range of images (rms above {LARGEST_RMS:g}) at levels "
                f"{_listed(far)}: the density there may have no finite Z"
            )
    gap = _gap(best, num_dims)
    if gap > WIDE_GAP:
        warnings.append(f"the estimates are {gap:.3g} bits/dim apart: the likelihood is not known any better")
    if _contradict(best, num_dims):
        needed = {
            "images": "images that are draws of the model, and these are not; see --upper-from draws",
            "draws": "draws of the model, and the resampled ends are none; take more steps per level",
        }[upper_from]
        warnings.append(f"the upper estimate lies {-gap:.3g} bits/dim below the lower one: it needs {needed}")
    return warnings


def _listed(levels: list[int], most: int = 6) -> str:
    return ", ".join(map(str, levels[:most])) + (", ..." if len(levels) > most else "")
