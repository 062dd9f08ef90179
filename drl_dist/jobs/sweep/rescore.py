"""The final scores of the best trials: more images, the same seeds for all."""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.exceptions import RayTaskError

from drl_dist.checkpoints.storage import newest_checkpoint
from drl_dist.common.errors import UserError
from drl_dist.common.waiting import Waiting
from drl_dist.config.tree import RunConfig
from drl_dist.data.index import ShardIndex, open_index
from drl_dist.evaluation.feature_cache import cached_features
from drl_dist.evaluation.feature_spec import default_cache_dir, parse_features
from drl_dist.evaluation.networks import load_network
from drl_dist.jobs.common.device import device_name, prepare_device
from drl_dist.jobs.evaluate.driver import score
from drl_dist.jobs.sample.driver import sample_run
from drl_dist.jobs.sample.options import SampleOptions
from drl_dist.jobs.sweep.record import Rescore, SweepFolder, Trial, read, write
from drl_dist.jobs.sweep.trial import trial_config

BATCH_SIZE = 64
"""Images that go through the feature network together."""
LARGEST_SHARD = 1024


def rescore_name(seed: int) -> str:
    """Name of the record of a final score."""
    return f"rescore-{seed}.json"


def kept_rescores(folder: SweepFolder, number: int, num_images: int) -> tuple[Rescore, ...]:
    """A trial's final scores by the options' seeds, as far as they are made."""
    features = folder.plan.base.tracking.score_features
    found = [read(folder.trial_url(number), rescore_name(seed), Rescore) for seed in folder.plan.options.rescore_seeds]
    # Another number of images or other features make another score.
    return tuple(one for one in found if one and (one.num_images, one.features) == (num_images, features))


def rescore_trial(
    folder: SweepFolder, trial: Trial, index: ShardIndex, num_images: int, missing: Sequence[int]
) -> None:
    """Make a trial's final scores for some seeds: images by the sampling job, which resumes, then their scores.

    Args:
        trial: has made all its steps.
        index: the real images.
        num_images: of each seed, generated and real.
        missing: seeds.

    Raises:
        UserError: the storage, the feature network or the cluster is not what it should be.
    """
    url, run = folder.trial_url(trial.number), trial_config(folder, trial)
    newest = newest_checkpoint(url)
    assert newest is not None, "a trial that has made all its steps has written its last checkpoint"
    for seed in missing:
        out = f"{url}/rescore-images-{seed}-{num_images}"
        sample_run(
            SampleOptions(
                model=newest.url,
                num_images=num_images,
                seed=seed,
                out=out,
                num_workers=run.num_workers,
                use_gpu=run.use_gpu,
                cpus_per_worker=run.cpus_per_worker,
                shard_size=min(LARGEST_SHARD, -(-num_images // run.num_workers)),
                # No larger than a training batch, whose memory is known to be there.
                batch_size=max(1, run.experiment.train.batch_size // run.num_workers),
                tracking_uri=run.tracking.uri,
            )
        )
        with Waiting(f"trial {trial.number}") as waiting:
            waiting.begin("a worker starts, imports libraries and scores the images", is_told=False)
            scores = _scores_on_a_worker(run, out, index.url, num_images)
        record = Rescore(
            seed=seed,
            num_images=num_images,
            step=newest.step,
            features=run.tracking.score_features,
            data_fingerprint=index.fingerprint,
            scores=scores,
        )
        write(url, rescore_name(seed), record)


def score_images_of(
    features: str, samples: str, data: str, num_images: int, use_gpu: bool, threads: int | None = None
) -> dict[str, float]:
    """All scores of generated images against real ones, by metric name.

    Args:
        features: see `drl_dist.evaluation.feature_spec.parse_features`.
        samples, data: URLs of shard folders.
        num_images: of each.
        threads: CPU threads; by default what torch chooses.
    """
    device = prepare_device(device_name(use_gpu), threads=threads)
    network = load_network(parse_features(features), device)
    made, real = (
        cached_features(
            open_index(url), num_images, network, cache_dir=default_cache_dir(), batch_size=BATCH_SIZE, what=what
        )
        for url, what in ((samples, "samples"), (data, "real images"))
    )
    return score(made, real).metrics()


def _scores_on_a_worker(run: RunConfig, samples: str, data: str, num_images: int) -> dict[str, float]:
    """In a task: the driver may be on a machine without GPUs."""
    cpus = run.cpus_per_worker

    def work() -> dict[str, float]:
        return score_images_of(run.tracking.score_features, samples, data, num_images, run.use_gpu, cpus)

    task = ray.remote(work).options(num_cpus=cpus, num_gpus=int(run.use_gpu))
    try:
        return ray.get(task.remote())
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
