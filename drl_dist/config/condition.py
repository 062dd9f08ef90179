"""What energies know of an image besides its noise level: the class that it is of, or its attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ConditionKind = Literal["none", "class", "attributes"]
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """Labels that the energies are given; one network has those of every label, f(y, t, c), and of none, f(y, t)."""

    kind: ConditionKind = "none"
    """none: energies of images alone (paper); class: one of several names for each image; attributes: each of several
    names is true, false or unknown of an image."""
    names: tuple[str, ...] = ()
    """Of the classes or attributes, in the order of the data's labels; none given: those of the data."""
    dropout: float = 0.1
    """Share of the training images whose label the network is not given, from which it learns f(y, t); of the others
    with attributes, it is given a part of them, from none to all."""

    @property
    def size(self) -> int:
        """Numbers that a label is to the network, one for each name."""
        return len(self.names)


def condition_rules(condition: ConditionConfig) -> Sequence[tuple[str, object, str, bool]]:
    """What holds of every `ConditionConfig`: field, value, what is expected, and whether it is."""
    kind, names, dropout = condition.kind, condition.names, condition.dropout
    return [
        (
            "condition.names",
            names,
            "none where condition.kind is none",
            kind != "none" or not names,
        ),
        ("condition.names", names, "different names, none of them empty", len({*names, ""}) == len(names) + 1),
        ("condition.dropout", dropout, "a number in [0, 1)", 0 <= dropout < 1),
    ]


def shown(names: Sequence[str]) -> str:
    """Names of labels for a message, the first of many."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
