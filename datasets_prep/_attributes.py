"""Attributes of images: several properties, each of which is true of an image, false, or unknown."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets_prep._listing import printable, utf8
from datasets_prep._source import digest_of
from drl_dist.common.amounts import counted
from drl_dist.data.index import ATTRIBUTES

DIGEST = "attribute_values"
"""Name of the digest of all values among the parameters of a source."""


@dataclass(frozen=True)
class Attributes:
    """Attributes of a source's images."""

    names: tuple[str, ...] = ()
    """In the order of the values."""
    of: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """Of each image, by its name in the source: 1 (true), -1 (false) or 0 (unknown) for each attribute."""
    digest: str = ""
    """Of all values: those of other values are other data."""

    @staticmethod
    def of_images(names: Sequence[str], values: Mapping[str, tuple[int, ...]]) -> Attributes:
        """The attributes with these names and values."""
        entries = (f"{utf8(image)} {' '.join(map(str, row))}".encode() for image, row in sorted(values.items()))
        return Attributes(tuple(names), values, digest_of(entries))

    @property
    def parameters(self) -> dict[str, Any]:
        """What distinguishes outputs; nothing without attributes."""
        return {ATTRIBUTES: list(self.names), DIGEST: self.digest} if self.names else {}


def report_attributes(names: Sequence[str]) -> None:
    """Print what the attributes are."""
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        shown = ", ".join(map(printable, names[:8]))
        print(f"{counted(len(names), 'attribute')}: {shown}{more}.", file=sys.stderr)
