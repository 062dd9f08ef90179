"""Fields that a config can leave to the data: none until the driver has seen them, numbers in all that is recorded."""

from __future__ import annotations

from drl_dist.common.errors import UserError
from drl_dist.config.tree import Experiment

FROM_DATA = ("model.data_std", "diffusion.first_noise_to_signal", "diffusion.last_noise_to_signal")
"""By their dotted names; `drl_dist.data.pixels.scales` gives them numbers."""


def left_to_data(experiment: Experiment) -> tuple[str, ...]:
    """Those of `FROM_DATA` that are none."""
    parts = (name.split(".") for name in FROM_DATA)
    return tuple(".".join((part, field)) for part, field in parts if getattr(getattr(experiment, part), field) is None)


def known_names(experiment: Experiment) -> tuple[str, ...]:
    """Names of the labels of a config whose energies know any.

    Raises:
        UserError: they are still left to the data.
    """
    if not experiment.condition.names:
        raise UserError(
            "config field condition.names",
            got="none, which leaves them to the data",
            expected="names, since no data are seen here",
            remedy="give condition.names, or let drl_dist.data.labels take them from the data",
        )
    return experiment.condition.names


def known(value: float | None, name: str) -> float:
    """A field's number.

    Args:
        name: of the field, one of `FROM_DATA`.

    Raises:
        UserError: it is still none.
    """
    if value is None:
        raise UserError(
            f"config field {name}",
            got="none, which leaves it to the data",
            expected="a number, since no data are seen here",
            remedy=f"give {name} a number, or let drl_dist.data.pixels.scales take it from the data",
        )
    return value
