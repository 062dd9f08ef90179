"""How a training worker takes up where the run was left."""

from __future__ import annotations

import shutil

import ray.train
from ray.train.collective import broadcast_from_rank_zero

from drl_dist.checkpoints.format import PARTS, read_checkpoint
from drl_dist.checkpoints.storage import fetch_checkpoint
from drl_dist.checkpoints.verify import newest_sound_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.config.tree import RunConfig, differences, to_dict
from drl_dist.data.filesystem import Folder
from drl_dist.training.state import TrainState


def restore(state: TrainState, run: RunConfig, run_url: str, fingerprint: str) -> None:
    """Load the newest checkpoint that verifies; a collective call of all ranks.

    Storage, not Ray's list of what it knows about, says which that is, and rank 0 says it to the others.

    Args:
        state: takes the tensors and the step; left alone if there is no checkpoint to go on from.
        run: the run.
        run_url: its folder.
        fingerprint: of its data.

    Raises:
        UserError: the storage does not answer, no finished checkpoint verifies, or it is one of another run.
    """
    is_first = ray.train.get_context().get_world_rank() == 0
    newest = newest_sound_checkpoint(run_url) if is_first else None
    url = broadcast_from_rank_zero(newest.url if newest else run.start_from)
    if url is None:
        return
    folder = fetch_checkpoint(url, PARTS)
    checkpoint = read_checkpoint(folder, PARTS)
    # Another run's checkpoint was looked at before anything was started.
    changed = [
        line
        for line in differences(to_dict(checkpoint.experiment), to_dict(run.experiment))
        if url != run.start_from and not line.startswith("train.num_steps:")
    ]
    if changed or checkpoint.state.data_fingerprint != fingerprint:
        raise UserError(
            f"checkpoint {url}",
            got="; ".join(changed) or "a checkpoint of a run on other data",
            expected="a checkpoint of this run",
            remedy="give the run a name of its own",
        )
    state.load_tensors(checkpoint.tensors, checkpoint.state.step)
    if is_first:
        print(f"resuming after step {state.step} from {url}", flush=True)
    if Folder(url).local is None:
        shutil.rmtree(folder)
