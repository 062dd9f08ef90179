"""Images that stand for a data set, wherever its classes lie."""

from __future__ import annotations

import numpy as np
import pytest

from drl_dist.data.subset import representative


@pytest.mark.parametrize(("num_samples", "count"), [(1, 1), (64, 64), (65, 64), (1797, 64), (10**9, 64)])
def test_places_increase_and_lie_in_the_data(num_samples: int, count: int) -> None:
    places = representative(num_samples, count)
    assert len(places) == count and places[0] >= 0 and places[-1] < num_samples
    assert (np.diff(places) > 0).all() and np.array_equal(places, representative(num_samples, count))


def test_the_places_are_always_the_same() -> None:
    assert representative(1000, 5).tolist() == [60, 332, 460, 798, 809]


@pytest.mark.parametrize("in_turn", [False, True])
def test_every_class_is_there(in_turn: bool) -> None:
    # 640 images of 10 classes, in blocks as folders are, or in turn: every tenth image is of one class.
    places = representative(640, 64)
    counts = np.bincount(places % 10 if in_turn else places // 64, minlength=10)
    assert counts.min() >= 2 and counts.max() <= 14
