"""How many images of each class shards have, for an index whose classes have names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from datasets_prep._source import Source
from drl_dist.data.index import CLASS_COUNTS, CLASSES


def class_counts(source: Source, records: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    """What the index says of how its images are labelled: a number for each class, in the order of their labels.

    Args:
        source: of the images; nothing is said unless its classes have names.
        records: of all shards.
    """
    if (names := source.parameters.get(CLASSES)) is None:
        return {}
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.get("labels", {}))
    return {CLASS_COUNTS: [total[str(label)] for label in range(len(names))]}
