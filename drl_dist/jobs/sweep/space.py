"""The search space of a sweep: fields of the config by their dotted names, and c_t under a name of its own."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from drl_dist.common.errors import UserError
from drl_dist.common.nested import flatten, to_dict
from drl_dist.config.rules import check_run
from drl_dist.config.tree import Experiment, RunConfig

LEVEL_SCALE = "mcmc.level_scale"
"""c_t in one of its three forms; see `fields_of`."""
_MULTIPLIER, _POWER, _VALUES = (f"{LEVEL_SCALE}_{part}" for part in ("multiplier", "power", "values"))
_BY_LEVEL = {
    "mcmc.num_chain_steps": "mcmc.level_chain_steps",
    "mcmc.bound_fraction": "mcmc.level_bound_fractions",
}
"""Fields of all levels, and those of one number per level that take their place."""
_RANGES = ("uniform", "loguniform", "integer")
_FORMS = 'a list of values, {"uniform": [low, high]}, {"loguniform": [low, high]} or {"integer": [low, high]}'
# What the sweep sets itself, what would change a trial's length or place, and what is no setting of a trial.
_OWN = (
    "data",
    "storage",
    "run_name",
    "start_from",
    "model_name",
    "num_workers",
    "min_workers",
    "max_rollbacks",
    "use_gpu",
    "cpus_per_worker",
    "spare_processes",
    "preset",
    "train.num_steps",
)
_OWN_PARTS = ("tracking.", "checkpoint.")

Values = dict[str, Any]
"""One point of a space: JSON values by the space's names."""


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, which belong to it."""

    kind: Literal["uniform", "loguniform", "integer"]
    low: float
    high: float


@dataclass(frozen=True)
class Space:
    """What is varied, by name, in the order in which it was given."""

    dimensions: Mapping[str, Choice | Range]

    def as_json(self) -> dict[str, Any]:
        """The space as `parse_space` reads it."""
        return {
            name: list(one.values) if isinstance(one, Choice) else {one.kind: [one.low, one.high]}
            for name, one in self.dimensions.items()
        }

    def corners(self) -> Iterator[Values]:
        """Points that name every value of every choice and both ends of every range at least once."""
        first = {name: _samples(one)[0] for name, one in self.dimensions.items()}
        for name, one in self.dimensions.items():
            for value in _samples(one):
                yield first | {name: value}


def default_space(run: RunConfig) -> dict[str, Any]:
    """N around the preset's, beta1 of Table 6, and the step sizes: factors on the preset's c_t, and a constant one
    (equation 17), or fractions of the bound where that sets them, unless every level has its own.
    """
    blocks = run.experiment.model.num_res_blocks
    half = max(1, blocks // 2)
    space: dict[str, Any] = {
        "model.num_res_blocks": sorted({half, blocks, blocks + half}),
        "optim.beta1": [0.5, 0.9],
    }
    mcmc = run.experiment.mcmc
    if mcmc.step_rule == "released":
        return space | {LEVEL_SCALE: [0.5, 1.0, 2.0, {"power": 0.0}]}
    fractions = [0.6, 0.9, 1.2] if mcmc.kernel == "langevin" else [1.1, 1.4, 1.7]
    return space if mcmc.level_bound_fractions else space | {"mcmc.bound_fraction": fractions}


def parse_space(given: object, run: RunConfig) -> Space:
    """A space from JSON values, every value of it checked against the config's types and rules.

    Args:
        given: ``{"optim.beta1": [0.5, 0.9], "optim.learning_rate": {"loguniform": [1e-5, 1e-3]}, ...}``.
        run: what the values are put into.

    Raises:
        UserError: no such field, a field that the sweep sets itself, a value of another type or outside its range.
    """
    if not isinstance(given, dict) or not given:
        raise UserError(
            "space",
            got=_short(given),
            expected="an object of dotted field names and what to try for each",
            remedy='write it like {"optim.beta1": [0.5, 0.9]}',
        )
    known = {name.removeprefix("experiment.") for name in flatten(to_dict(run))}
    for name in given:
        _check_name(str(name), known)
    space = Space({str(name): _dimension(str(name), _in_whole_numbers(name, value)) for name, value in given.items()})
    overlapping = {_MULTIPLIER, _POWER, _VALUES} & given.keys()
    if LEVEL_SCALE in given and overlapping:
        raise UserError(
            "space",
            got=f"{LEVEL_SCALE} and {', '.join(sorted(overlapping))}",
            expected="c_t given once",
            remedy=f"leave out {LEVEL_SCALE} or the others",
        )
    for name, by_level in _BY_LEVEL.items():
        section, _, field = by_level.partition(".")
        if name in given and (by_level in given or getattr(getattr(run.experiment, section), field)):
            raise UserError(
                "space",
                got=f"{name}, whose place {by_level} takes",
                expected="one of the two",
                remedy=f"vary {by_level} alone, or leave it out of the space and the options",
            )
    for values in space.corners():
        apply(values, run)
    return space


def apply(values: Mapping[str, Any], run: RunConfig) -> RunConfig:
    """The run at a point of the space.

    Raises:
        UserError: the values are not of the fields' types, or no run can have them together.
    """
    from drl_dist.checkpoints.configs import config_from_dict

    tree = to_dict(run)
    for name, value in values.items():
        for field, plain in fields_of(name, value).items():
            # Fields of the experiment are named without it, as on the command line.
            *parents, last = field.split(".")
            node = tree["experiment"] if (parents or [last])[0] in tree["experiment"] else tree
            for parent in parents:
                node = node[parent]
            node[last] = plain
    try:
        made = config_from_dict(RunConfig, tree, source="space")
        check_run(made, complete=False)
    except UserError as error:
        raise UserError(
            "space, " + error.what.removeprefix("space, ").removeprefix("config ").replace("experiment.", ""),
            got=_short(error.got),
            expected=error.expected,
            remedy=f"correct the space (tried {_short(dict(values), 300)})",
        ) from error
    return made


def fields_of(name: str, value: Any) -> dict[str, Any]:
    """The config fields that one entry of a point sets.

    All are fields by their own names but ``mcmc.level_scale``, which is c_t = multiplier * (cumulative std_t /
    cumulative std_0) ** power: a number is the multiplier (with the run's power), ``{"power": p}`` the power, with the
    multiplier 1 unless ``"multiplier"`` is given as well, and a list is c_t of every level.

    Raises:
        UserError: c_t has another form.
    """
    if name != LEVEL_SCALE:
        return {name: value}
    if _is_number(value):
        return {_MULTIPLIER: value, _VALUES: []}
    if isinstance(value, list) and value and all(_is_number(one) for one in value):
        return {_VALUES: value}
    if isinstance(value, dict) and "power" in value and value.keys() <= {"power", "multiplier"}:
        return {_POWER: value["power"], _MULTIPLIER: value.get("multiplier", 1.0), _VALUES: []}
    raise UserError(
        f"space, field {LEVEL_SCALE}",
        got=_short(value),
        expected='a number, {"power": p}, {"power": p, "multiplier": m} or a list of one number per level',
        remedy="correct the space",
    )


def _in_whole_numbers(name: str, given: object) -> object:
    """What to try for a field, with ``8.0`` and ``1e1`` as whole numbers where the field is one, as options have it."""
    if isinstance(given, dict):
        return {kind: _whole(ends) if kind == "integer" else ends for kind, ends in given.items()}
    return _whole(given) if _is_whole_field(name) else given


def _whole(value: object) -> object:
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_whole_field(name: str) -> bool:
    """Whether a field holds whole numbers, or none, by its type."""
    first, *_ = parts = name.split(".")
    kind: Any = Experiment if first in get_type_hints(Experiment) else RunConfig
    for part in parts:
        kind = get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
    return kind is int or {*get_args(kind)} in ({int, type(None)}, {int, ...})


def _dimension(name: str, given: object) -> Choice | Range:
    if isinstance(given, list) and given:
        if len({json.dumps(value, sort_keys=True) for value in given}) < len(given):
            raise UserError(
                f"space, field {name}", got=_short(given), expected="every value once", remedy="leave out the repeated"
            )
        return Choice(tuple(given))
    if isinstance(given, dict) and len(given) == 1:
        ((kind, ends),) = given.items()
        if kind in _RANGES and isinstance(ends, Sequence) and len(ends) == 2 and all(map(_is_number, ends)):
            low, high = ends
            is_fit = low < high and (kind != "loguniform" or low > 0)
            is_fit = is_fit and (kind != "integer" or (isinstance(low, int) and isinstance(high, int)))
            if is_fit:
                return Range(kind, low, high)
    raise UserError(f"space, field {name}", got=_short(given), expected=_FORMS, remedy="correct the space")


def _check_name(name: str, known: set[str]) -> None:
    if name in _OWN or name.startswith(_OWN_PARTS):
        raise UserError(
            "space",
            got=f"the field {name}",
            expected="a field that is not the sweep's own",
            remedy=f"give it as an option of the sweep, --{name.replace('_', '-')}, if there is one",
        )
    if name != LEVEL_SCALE and name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(
            "space",
            got=f"the field {name}",
            expected="a dotted field of the config",
            remedy=f"write {near[0]} if that is meant" if near else "--dry-run shows all of them",
        )


def _samples(one: Choice | Range) -> tuple[Any, ...]:
    if isinstance(one, Choice):
        return one.values
    # A fraction from within, which a field of whole numbers does not take.
    inside = () if one.kind == "integer" else (one.low + (one.high - one.low) / 2**0.5,)
    return (one.low, one.high, *inside)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: object, length: int = 120) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= length else text[: length - 3] + "..."
