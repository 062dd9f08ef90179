"""The ways that are compared, by name, in groups."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.chains.model import BasisName
from benchmarks.chains.moves import Adjusted, Averaged, Frozen, Langevin, Underdamped
from benchmarks.chains.sampler import Way

_BASES: tuple[BasisName, ...] = ("pixels", "cosines", "components")
_NUM_LEVELS = 10


def _split(low: int, high: int, border: int) -> tuple[int, ...]:
    """K of the levels below a border and from it on."""
    return (low,) * border + (high,) * (_NUM_LEVELS - border)


def _langevin() -> Mapping[str, Way]:
    ways = {"Tweedie start, K = 0": Way(0)}
    for steps in (1, 2, 3, 4, 5):
        for c in (0.6, 0.9, 1.2, 1.5):
            ways[f"Tweedie start, K = {steps}, c = {c}"] = Way(steps, Langevin(c))
    return ways


def _without_start() -> Mapping[str, Way]:
    # As many gradients as K - 1 steps from a Tweedie start.
    settings = [(1, 0.9), (2, 0.9), (3, 0.9), (4, 0.9), (6, 0.9), (2, 1.2), (4, 1.2)]
    return {f"start x_noisy, K = {k}, c = {c}": Way(k, Langevin(c), starts_by_tweedie=False) for k, c in settings}


def _underdamped() -> Mapping[str, Way]:
    settings = [(k, 1.2, keep) for k in (1, 2, 3, 5) for keep in (0.0, 0.5, 0.8)]
    settings += [(k, c, keep) for k in (1, 3) for c, keep in ((0.8, 0.0), (1.6, 0.0), (1.6, 0.5))]
    return {f"BAOAB, K = {k}, c = {c}, keeps {keep}": Way(k, Underdamped(c, keep)) for k, c, keep in settings}


def _averaged() -> Mapping[str, Way]:
    settings = [(k, c) for k in (1, 2, 3) for c in (0.9, 1.2, 1.4, 1.6)]
    return {f"noise averaged, K = {k}, c = {c}": Way(k, Averaged(c)) for k, c in settings}


def _preconditioned() -> Mapping[str, Way]:
    ways = {f"start in {basis}, K = 0": Way(0, start_basis=basis) for basis in _BASES}
    for basis in _BASES:
        for steps, c in ((1, 0.6), (1, 0.9), (3, 0.6), (3, 0.9), (3, 1.2)):
            ways[f"moves in {basis}, K = {steps}, c = {c}"] = Way(steps, Langevin(c, basis))
    ways["start and moves in components, K = 1, c = 0.9"] = Way(
        1, Langevin(0.9, "components"), start_basis="components"
    )
    ways["BAOAB in components, K = 1, c = 1.2, keeps 0.0"] = Way(1, Underdamped(1.2, 0.0, "components"))
    ways["start in components, K = 1, c = 0.9"] = Way(1, Langevin(0.9), start_basis="components")
    return ways


def _reused() -> Mapping[str, Way]:
    ways = {f"start by the chain's last gradient, K = {k}, c = 0.9": Way(k, reuses=True) for k in (1, 2, 3, 4)}
    for steps, c, moves in ((1, 0.9, 2), (2, 0.9, 2), (3, 0.9, 2), (1, 0.6, 4)):
        ways[f"{moves} moves a gradient, K = {steps}, c = {c}"] = Way(steps, Frozen(c, moves))
    return ways


def _adjusted() -> Mapping[str, Way]:
    settings = [(1, 0.9), (2, 0.9), (3, 0.9), (2, 1.2), (4, 0.9)]
    return {f"MALA, K = {k}, c = {c}": Way(k, Adjusted(c), reuses=True) for k, c in settings}


def _ends() -> Mapping[str, Way]:
    ways = {f"no last step, K = {k}": Way(k, has_end=False) for k in (1, 3)}
    ways |= {f"noise x .97, K = {k}": Way(k, noise_scale=0.97) for k in (0, 1, 3)}
    ways |= {f"noise x .97, K = 3, c = {c}": Way(3, Langevin(c), noise_scale=0.97) for c in (1.2, 1.5)}
    return ways


def _levels() -> Mapping[str, Way]:
    return {
        "K = 2 below level 5, 0 above": Way(_split(2, 0, 5)),
        "K = 0 below level 5, 2 above": Way(_split(0, 2, 5)),
        "K = 3 below level 3, 0 above": Way(_split(3, 0, 3)),
        "K = 3 at levels 3 to 6, 0 elsewhere": Way((0, 0, 0, 3, 3, 3, 3, 0, 0, 0)),
        "K = 6 below level 5, 0 above": Way(_split(6, 0, 5)),
    }


GROUPS: Mapping[str, Mapping[str, Way]] = {
    "Langevin": _langevin(),
    "starts": _without_start(),
    "averaged": _averaged(),
    "momentum": _underdamped(),
    "bases": _preconditioned(),
    "reuse": _reused(),
    "adjusted": _adjusted(),
    "ends": _ends(),
    "levels": _levels(),
}
"""Name of a group -> label -> way."""
