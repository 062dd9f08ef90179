"""What a run will take, for commands that tell it before the run starts or while it is under way."""

from __future__ import annotations

import sys

from drl_dist.common.errors import UserError
from drl_dist.common.imports import no_collection
from drl_dist.common.waiting import Waiting
from drl_dist.config.rules import ARRAY_SUFFIX
from drl_dist.config.tree import RunConfig


def estimate_lines(run: RunConfig, *, tflops: float | None = None) -> list[str]:
    """Parameters, operations, memory and duration of a run, and its epochs where its data are at hand.

    It needs neither Ray nor a tracking server; torch is imported here, which takes seconds.

    What it does is said on stderr.

    Args:
        run: its data may be missing or out of reach, which a line then says.
        tflops: operations that a worker makes in a second, in 10**12.

    Raises:
        UserError: the experiment can only be sampled from, or its network cannot be traced without numbers.
    """
    with Waiting("estimate", stream=sys.stderr) as waiting:
        waiting.begin("following one training step on tensors without numbers, which takes seconds")
        with no_collection():
            from drl_dist.training.estimate import estimate
        made = estimate(run)
        if run.data:
            waiting.begin(f"counting the images of {run.data}", is_told=False)
        num_images, missing = _num_images(run)
    lines = made.lines(tflops=tflops, num_images=num_images)
    if missing:
        # Before the line of the whole run, where epochs would be.
        lines.insert(-1, f"data: steps of an epoch are not known ({missing})")
    return lines


def _num_images(run: RunConfig) -> tuple[int | None, str]:
    """The images of the data, or why they are not known."""
    if not run.data:
        return None, "give --data"
    from drl_dist.data.index import open_index
    from drl_dist.data.pixels.array_file import read_array_file

    try:
        if run.data.endswith(ARRAY_SUFFIX):
            return len(read_array_file(run.data)[0]), ""
        return open_index(run.data, check_shards=False).num_samples, ""
    except UserError as error:
        return None, str(error).rstrip(".")
