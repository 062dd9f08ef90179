"""Starting from a checkpoint of another run: of the same network, step adaptation, batch size and data."""

from __future__ import annotations

import shutil

from drl_dist.checkpoints.format import read_checkpoint
from drl_dist.checkpoints.storage import checkpoint_name, fetch_checkpoint, is_complete
from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.nested import differences, to_dict
from drl_dist.common.places import joined
from drl_dist.config.tree import Experiment
from drl_dist.data.filesystem import Folder


def starting_point(url: str, experiment: Experiment, data_fingerprint: str) -> str:
    """The checkpoint folder that a run continues from.

    Args:
        url: a checkpoint folder, or a run folder, whose newest checkpoint is taken.
        experiment: of the run that begins there.
        data_fingerprint: of its data.

    Raises:
        UserError: no checkpoint is there, it is damaged, of another network or on other data, or it has made as many
            steps as the run is to make.
    """
    folder = fetch_checkpoint(url, ())
    try:
        checkpoint = read_checkpoint(folder, ())
    finally:
        if Folder(url).local is None:
            shutil.rmtree(folder)
    # The place in the stream of samples is the number of steps times the batch size.
    before, after = (
        {
            "model": to_dict(one.model),
            "condition": _labels(one, experiment),
            # Whose checkpoints hold the curvatures, too.
            "mcmc": {"step_adaptation": one.mcmc.step_adaptation},
            "train": {"batch_size": one.train.batch_size},
        }
        for one in (checkpoint.experiment, experiment)
    )
    others = differences(before, after)
    if others or checkpoint.state.data_fingerprint != data_fingerprint:
        raise UserError(
            f"--start-from {url}",
            got="; ".join(others) or "a checkpoint of a run on other data",
            expected="a checkpoint of the same network, step adaptation and batch size on the same data",
            remedy="give another checkpoint, or start from the beginning",
        )
    step = checkpoint.state.step
    if step >= experiment.train.num_steps:
        raise UserError(
            f"--start-from {url}",
            got=f"{counted(step, 'step')} made",
            expected=f"fewer than the {experiment.train.num_steps} of this run",
            remedy="ask for more with --train.num-steps",
        )
    return url if is_complete(url) else joined(url, checkpoint_name(step))


def _labels(start: Experiment, run: Experiment) -> list[object]:
    """What must be equal of the labels: nothing where the start knows none, for its network can learn any."""
    condition = run.condition if start.condition.kind == "none" else start.condition
    return [condition.kind, list(condition.names)]
