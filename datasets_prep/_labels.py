"""Labels of images on their way into shards: in each sample's JSON, counted in the record of its shard, and the sum of
these in the index.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from datasets_prep._attributes import DIGEST
from datasets_prep._listing import printable
from datasets_prep._source import Item, Source, SourceDefaults
from drl_dist.data.index import (
    ATTRIBUTE_COUNTS,
    ATTRIBUTES,
    CLASS_COUNTS,
    CLASSES,
    STANDARD_CLASS_COUNTS,
    STANDARD_CLASSES,
)


class NamedClasses(SourceDefaults):
    """Defaults for sources whose digest covers their content and whose images all have a class with a name.

    Earlier versions wrote the same samples, but no names into the index.
    """

    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their labels."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """See `datasets_prep._source.Source.parameters`."""
        return {STANDARD_CLASSES: list(self.classes)} if self.classes else {}

    def as_earlier(self) -> Source | None:
        """The same without names."""
        if not self.classes:
            return None
        other: Any = copy.copy(self)
        other.classes, other.lacks = (), "names of its classes"
        return other


def facts_of(item: Item) -> dict[str, Any]:
    """What the JSON of a sample says of its image."""
    label = {} if item.label is None else {"label": item.label}
    return {"source": item.source} | label | ({} if item.attributes is None else {"attributes": list(item.attributes)})


class LabelCounts:
    """How many images of a shard have each label, for its record."""

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()
        self._attributes: list[int] | None = None

    def add(self, item: Item) -> None:
        """Count an image that could be read."""
        if item.label is not None:
            self._classes[item.label] += 1
        if item.attributes is not None:
            before = self._attributes or [0] * len(item.attributes)
            self._attributes = [count + (value == 1) for count, value in zip(before, item.attributes, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """The counts under their names in a record; nothing for images without labels."""
        classes = {"labels": {str(label): count for label, count in sorted(self._classes.items())}}
        attributes = {} if self._attributes is None else {"attributes": self._attributes}
        return (classes if self._classes else {}) | attributes


def check_counts(record: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Return if the counts in the record of a shard can be those of its images.

    Args:
        record: of a shard of at least one image, or of none.
        identity: with which the output was begun.

    Raises:
        ValueError: they cannot; and other errors of values that are no counts.
    """
    if not all(count > 0 and int(label) >= 0 for label, count in record.get("labels", {}).items()):
        raise ValueError("labels that are no numbers of classes")
    expected = len(identity.get(ATTRIBUTES, ())) if record["row"] else 0
    counts = record.get("attributes", [])
    if len(counts) != expected or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("counts of other attributes")


def label_counts(source: Source, records: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    """What the index says of how its images are labelled: a number for each class and for each attribute.

    Args:
        source: of the images; nothing is said unless its classes or attributes have names.
        records: of all shards.
    """
    records = list(records)
    counts: dict[str, list[int]] = {}
    for of_names, of_counts in ((CLASSES, CLASS_COUNTS), (STANDARD_CLASSES, STANDARD_CLASS_COUNTS)):
        if (names := source.parameters.get(of_names)) is not None:
            total: Counter[str] = Counter()
            for record in records:
                total.update(record.get("labels", {}))
            counts[of_counts] = [total[str(label)] for label in range(len(names))]
    if (names := source.parameters.get(ATTRIBUTES)) is not None:
        sums = np.zeros(len(names), np.int64)
        for record in records:
            sums += np.array(record.get("attributes", 0))
        counts[ATTRIBUTE_COUNTS] = sums.tolist()
    return counts


def in_words(found: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two identities of outputs for a message: where labels differ, a few names in place of all, and no digests."""
    for name in ("labels", DIGEST):
        if found.get(name) != wanted.get(name):
            found = found | {name: "others" if name in found else "none"}
            wanted = wanted | {name: "those found now" if name in wanted else "none"}
    found, wanted = (
        {CLASSES if name == STANDARD_CLASSES else name: value for name, value in one.items()} for one in (found, wanted)
    )
    for name in (CLASSES, ATTRIBUTES):
        old, new = found.get(name, []), wanted.get(name, [])
        if old != new and isinstance(old, list) and isinstance(new, list):
            start = next((place for place, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), 0)
            found, wanted = found | {name: _some(old, start)}, wanted | {name: _some(new, start)}
    return found, wanted


def _some(names: list[str], start: int) -> str:
    """The number of names, and the first of those from a place on."""
    shown = ["…"] * (start > 0) + names[start : start + 4] + ["…"] * (len(names) > start + 4)
    return f"{len(names)} ({printable(', '.join(map(str, shown)))})" if names else "none"
