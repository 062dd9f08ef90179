"""The scales of a data set that a network and a noise ladder start from, where a config leaves them to the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from drl_dist.common.errors import UserError
from drl_dist.config.from_data import left_to_data
from drl_dist.config.tree import Experiment
from drl_dist.data.pixels.statistics import PixelStatistics

GREY_LEVEL = 2 / 255
"""Distance of two grey levels in the scale [-1, 1]."""
FIRST_SHARE = 4e-4
"""Variance of the noise in x_0 over that of the data, where a grey level is not more: 1e-4 at a standard deviation of
.5. The noise is a fiftieth of the contrast, which the eye hardly sees and the last step to the mean takes away."""
LAST_MULTIPLE = 5
"""Noise-to-signal ratio of x_T over the largest second moment of the data, L. Sampling starts from white noise instead
of x_T, which is at most about cumulative_scale**2 L / 2 nats away along that direction: a tenth. On `digits`, where 140
was found to do, it gives 136."""
LAST_RANGE = (20.0, 1e5)
"""Of that ratio: at least what `drl_dist.config.rules` asks of any ladder; at most what ten levels reach from 1e-4 with
a factor of eight between neighbours, for at larger factors chains of few steps do not come far."""
_DIGITS = 4


def scaled_to(experiment: Experiment, statistics: Callable[[], PixelStatistics | None], data: str) -> Experiment:
    """The experiment with numbers in all fields that it leaves to the data.

    Args:
        experiment: as the command describes it.
        statistics: of the data, asked for only if they are needed; None where an index does not have them.
        data: URL of the data, for messages.

    Raises:
        UserError: the data have no statistics, all their pixels are equal, or the numbers do not go with those given.
    """
    names = left_to_data(experiment)
    if not names:
        return experiment
    found = statistics()
    if found is None:
        flags = " ".join(f"--{name.replace('_', '-')} NUMBER" for name in names)
        raise UserError(
            f"data {data}",
            got=f"an index without statistics of the pixels, from which {', '.join(names)} would follow",
            expected="an index with them",
            remedy=f"run its datasets_prep command again, which adds them, or give {flags}",
        )
    if found.std == 0:
        raise UserError(
            f"data {data}",
            got="images whose pixels are all equal",
            expected="images to learn from",
            remedy="check the source that they were prepared from",
        )
    model, diffusion = experiment.model, experiment.diffusion
    if model.data_std is None:
        model = dataclasses.replace(model, data_std=_rounded(found.root_mean_square))
    assert model.data_std is not None
    first, last = diffusion.first_noise_to_signal, diffusion.last_noise_to_signal
    if first is None:
        first = _rounded(first_noise_to_signal(model.data_std))
    if last is None:
        last = _rounded(last_noise_to_signal(found.largest_variance))
    diffusion = dataclasses.replace(diffusion, first_noise_to_signal=first, last_noise_to_signal=last)
    return dataclasses.replace(experiment, model=model, diffusion=diffusion)


def first_noise_to_signal(data_std: float) -> float:
    """Variance of the noise in x_0 over its squared scale.

    Stored pixels lie on grey levels. With less noise than one of them the density of x_0 would have a spike at each,
    which is nothing to learn; with more than a small share of the contrast there would be less of the images.

    Args:
        data_std: root mean square of the pixels in [-1, 1].
    """
    return max(GREY_LEVEL**2, FIRST_SHARE * data_std**2)


def last_noise_to_signal(largest_variance: float) -> float:
    """Variance of the noise in x_T over its squared scale, with which next to nothing of the data is left there.

    Args:
        largest_variance: largest second moment of the data along a direction; see `PixelStatistics`.
    """
    low, high = LAST_RANGE
    return min(max(LAST_MULTIPLE * largest_variance, low), high)


def _rounded(value: float) -> float:
    """To four digits: a number that can be typed, and that no last bit of another machine's arithmetic changes."""
    return float(f"{value:.{_DIGITS}g}")
