"""Correlated Gaussian pixels: every energy of every level is known, and so is what a posterior sampler should draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.diffusion.ladder import NoiseLadder, composed_ladder
from drl_dist.diffusion.noise import Purpose
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad
from drl_dist.energy.analytic import CorrelatedGaussian, Gaussian
from drl_dist.sampling.inpainting import Observation, ObservedBlockMeans, ObservedPixels, PosteriorSampler
from drl_dist.sampling.progressive import RawAtLevel

SHAPE = (1, 2, 4)
NUM_PIXELS = 8


def pixels(correlation: float = 0.8) -> CorrelatedGaussian:
    """A Gaussian over images of 2 x 4 pixels: standard deviations rise along the flattened image, correlations fall
    with the distance."""
    places = torch.arange(NUM_PIXELS, dtype=torch.float64)
    std = 0.3 + 0.07 * places
    covariance = std * std[:, None] * correlation ** (places[:, None] - places[None, :]).abs()
    return CorrelatedGaussian(torch.zeros(NUM_PIXELS, dtype=torch.float64), covariance)


@dataclass
class QuickNoise:
    """Normals from one generator, for runs whose numbers need no address."""

    seed: int

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.asked: list[tuple[Purpose, int, int]] = []
        """Purpose, level and chain step of all normals so far."""

    def normal(
        self,
        purpose: Purpose,
        sample_ids: Tensor,
        level: Tensor | int,
        chain_steps: Sequence[int],
        shape: Sequence[int],
    ) -> Tensor:
        self.asked += [(purpose, int(torch.as_tensor(level).flatten()[0]), step) for step in chain_steps]
        return torch.randn(len(chain_steps), len(sample_ids), *shape, generator=self.generator)

    def uniform(
        self, purpose: Purpose, sample_ids: Tensor, level: Tensor | int, chain_steps: Sequence[int], count: int
    ) -> Tensor:
        raise NotImplementedError


def exact_levels(
    data: CorrelatedGaussian, ladder: NoiseLadder, step_share: float, top_level: str = "marginal"
) -> Levels:
    """Levels whose chains take steps of a variance that is this share of the smallest variance of what they sample."""
    scale, std = ladder.scale[1:].clone(), ladder.std[1:]
    precision = std**-2
    if top_level == "marginal":
        scale[-1], precision[-1] = 1.0, 0.0
    largest = [
        float(torch.linalg.eigvalsh(data.level(ladder, t, float(scale[t])).precision)[-1])
        for t in range(ladder.num_levels)
    ]
    step_size = (step_share / (torch.tensor(largest, dtype=torch.float64) + precision)).sqrt()
    return Levels(scale, precision, step_size, torch.full_like(std, 2.0), torch.ones_like(std))


def exact_raw(data: CorrelatedGaussian, ladder: NoiseLadder, levels: Levels) -> RawAtLevel:
    """What a perfect network would put out."""

    def raw_at(level: Tensor) -> LogDensityAndGrad:
        t = int(level[0])
        distribution = data.level(ladder, t, float(levels.transition_scale[t]))

        def raw(y: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = distribution.log_density_and_grad(y)
            return value / levels.energy_scale[t], gradient / levels.energy_scale[t]

        return raw

    return raw_at


def posterior_sampler(
    data: CorrelatedGaussian,
    *,
    ladder: NoiseLadder | None = None,
    num_rounds: int = 1,
    num_chain_steps: int | tuple[int, ...],
    step_share: float = 1.0,
) -> tuple[PosteriorSampler, RawAtLevel]:
    """A sampler on exact energies, by default over the T6 ladder; without chain steps every level is conditional."""
    ladder = ladder or composed_ladder()
    levels = exact_levels(data, ladder, step_share, "marginal" if num_chain_steps else "conditional")
    return PosteriorSampler(levels, ladder, num_chain_steps, 1.0, num_rounds), exact_raw(data, ladder, levels)


def distribution_of_completions(
    sampler: PosteriorSampler, data: CorrelatedGaussian, projection: Tensor, x: Tensor
) -> CorrelatedGaussian:
    """What a sampler makes of x on exact energies, bias of its steps and of its number of rounds included.

    All it does is linear in Gaussian numbers, so mean and covariance of (y_t, x_{t+1}, noise of what is observed) can
    be followed exactly.

    Args:
        projection: (D, D) orthogonal projection on what is observed.
        x: (D,) the image.
    """
    size = len(x)
    eye, ladder, levels = torch.eye(size, dtype=torch.float64), sampler.ladder, sampler.levels
    rest, zero = eye - projection, torch.zeros(size, size, dtype=torch.float64)
    # In order: y, x_noisy, the noise of what is observed.
    mean, covariance = torch.zeros(3 * size, dtype=torch.float64), torch.block_diag(eye, zero, eye)
    for t in reversed(range(ladder.num_levels)):
        scale, precision = float(levels.transition_scale[t]), float(levels.recovery_precision[t])
        covariance = torch.block_diag(covariance[:size, :size], zero, eye)
        mean = torch.cat([mean[: 2 * size], 0 * x])
        step, known = float(levels.step_size[t]), scale * float(ladder.cumulative_std[t]) * projection
        drift = -data.level(ladder, t, scale).precision - precision * eye
        a_step = block(
            [[eye + step**2 / 2 * rest @ drift, step**2 / 2 * precision * rest, zero], [zero, eye, zero], [0, 0, eye]]
        )
        step_noise = torch.block_diag((step * sampler.noise_scale) ** 2 * rest, zero, zero)
        if not sampler.num_chain_steps:
            # Equation 12: from x_noisy, along the marginal's gradient alone.
            marginal = -data.level(ladder, t, scale).precision
            a_step = block([[eye + rest @ marginal / precision, zero, zero], [zero, eye, zero], [0, 0, eye]])
            step_noise = torch.block_diag((sampler.noise_scale * float(levels.normal_std[t])) ** 2 * rest, zero, zero)
        for number in range(sampler.num_rounds if precision else 1):
            if number:
                again = block([[float(ladder.scale[t + 1]) * eye, 0, 0], [0, eye, 0], [0, 0, eye]])
                mean, covariance = again @ mean, again @ covariance @ again.T
                covariance[:size, :size] += float(ladder.std[t + 1]) ** 2 * eye
            towards, spread = eye, 0.0
            if sampler.start is not None:
                towards, spread = tweedie_start(ladder, data, t, scale)
            start = block([[rest @ towards, zero, known], [eye, zero, zero], [zero, zero, eye]])
            mean, covariance = start @ mean, start @ covariance @ start.T
            covariance[:size, :size] += (sampler.noise_scale * spread) ** 2 * rest
            mean[:size] += scale * float(ladder.cumulative_scale[t]) * projection @ x
            if sampler.averages_noise:
                many, noise = averaged(a_step, step / 2 * sampler.noise_scale * rest, sampler.num_draws[t])
            else:
                many, noise = power(a_step, step_noise, sampler.num_draws[t])
            end = torch.block_diag(eye / scale, eye, eye)
            mean, covariance = end @ many @ mean, end @ (many @ covariance @ many.T + noise) @ end.T
    return CorrelatedGaussian(rest @ mean[:size] + projection @ x, rest @ covariance[:size, :size] @ rest)


def averaged(step: Tensor, half: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `power`, of steps z <- step z + (half e_before + half e, 0, ...) from a white e_before.

    Args:
        half: (D, D).
    """
    size, whole = len(half), len(step)
    # With the last noise as a further part of z.
    longer, shares = torch.zeros(whole + size, whole + size).double(), torch.zeros(whole + size, size).double()
    longer[:whole, :whole], longer[:size, whole:], shares[:size] = step, half, half
    shares[whole:] = torch.eye(size)
    factor, noise = power(longer, shares @ shares.T, count)
    total = noise + factor[:, whole:] @ factor[:, whole:].T
    return factor[:whole, :whole], total[:whole, :whole]


def tweedie_start(ladder: NoiseLadder, data: CorrelatedGaussian, t: int, scale: float) -> tuple[Tensor, float]:
    """The factor of x_{t+1} in a draw around the mean of y_t on exact energies, and the standard deviation around it.

    Args:
        scale: that of the transition, y_t = scale x_t.
    """
    std, size = float(ladder.std[t + 1]), len(data.mean)
    # There is no energy above the topmost level: x_T is taken to be white.
    white = torch.eye(size, dtype=torch.float64)
    precision = white if t + 1 == ladder.num_levels else data.level(ladder, t + 1, 1.0).precision
    spread = scale * float(ladder.cumulative_std[t]) * std / float(ladder.cumulative_std[t + 1])
    return scale / float(ladder.scale[t + 1]) * (white - std**2 * precision), spread


def block(rows: Sequence[Sequence[Tensor | float]]) -> Tensor:
    """A matrix of square blocks, of which at least one is given and 0 stands for zeros."""
    size = next(len(entry) for row in rows for entry in row if isinstance(entry, Tensor))
    zero = torch.zeros(size, size, dtype=torch.float64)
    return torch.cat([torch.cat([e if isinstance(e, Tensor) else zero for e in row], 1) for row in rows])


def power(step: Tensor, noise: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` times z <- step z + e with covariance `noise`: the factor of z, and the covariance of all e."""
    factor, total = torch.eye(len(step), dtype=torch.float64), torch.zeros_like(noise)
    while count:
        if count % 2:
            factor, total = step @ factor, step @ total @ step.T + noise
        step, noise = step @ step, step @ noise @ step.T + noise
        count //= 2
    return factor, total


def worst_score(samples: Tensor, distribution: CorrelatedGaussian, tolerance: float = 0.0) -> float:
    """How far samples (B, D) are from a Gaussian: the worst mean, variance or covariance, in standard errors.

    Args:
        tolerance: an error that is allowed, in standard deviations of the distribution.
    """
    std = distribution.covariance.diagonal().sqrt()
    count = len(samples)
    centred = (samples.double() - distribution.mean) / std
    wanted = distribution.covariance / std / std[:, None]
    # Isserlis: the variance of a product of two standard normals with correlation r is 1 + r**2.
    error = ((1 + wanted.square()) / count).sqrt()
    means = (centred.mean(0).abs() - tolerance) * count**0.5
    covariances = ((centred.T @ centred / count - wanted).abs() - 2 * tolerance) / error
    return max(float(means.max()), float(covariances.max()))


# Of the dozens of means and covariances of ten groups of correct draws, one in some hundred runs goes beyond 4.5.
LIMIT = 5.0

OBSERVED = torch.zeros(NUM_PIXELS, dtype=torch.bool).index_fill_(0, torch.tensor([0, 1, 4]), True)
EYE = torch.eye(NUM_PIXELS, dtype=torch.float64)
# Two blocks of 2 x 2 pixels, side by side.
BLOCKS = torch.tensor([[1, 1, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0, 1, 1]], dtype=torch.float64)
OBSERVATIONS: dict[str, tuple[Observation, Tensor]] = {
    "pixels": (ObservedPixels(OBSERVED.reshape(SHAPE)), EYE[OBSERVED].T @ EYE[OBSERVED]),
    "block means": (ObservedBlockMeans(2), BLOCKS.T @ BLOCKS / 4),
}
X = torch.tensor([0.9, 0.4, -0.7, 0.1, 0.3, -0.5, 0.8, 0.2], dtype=torch.float64)


def free(values: Tensor, projection: Tensor) -> Tensor:
    """The part of (B, D) that is not observed, in coordinates of its own: a distribution there has full rank."""
    basis = torch.linalg.svd(projection).Vh[int(projection.trace().round()) :]
    return values.double() @ basis.T


def free_distribution(distribution: CorrelatedGaussian, projection: Tensor) -> CorrelatedGaussian:
    """The distribution of `free` for draws of this one."""
    basis = free(EYE, projection).T
    return CorrelatedGaussian(basis @ distribution.mean, basis @ distribution.covariance @ basis.T)


def drawn(name: str, sampler: PosteriorSampler, raw_at: RawAtLevel, count: int, seed: int) -> Tensor:
    """Completions of X, (count, free dimensions)."""
    observation, projection = OBSERVATIONS[name]
    x = X.reshape(SHAPE).expand(count, *SHAPE)
    return free(sampler.complete(raw_at, QuickNoise(seed), torch.arange(count), x, observation).flatten(1), projection)


def isotropic(level: Tensor) -> LogDensityAndGrad:
    """A network that is the same normal density at every level."""
    return Gaussian(torch.tensor(0.1), 0.6).log_density_and_grad
