"""Options of ``jobs/sample.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from drl_dist.common.validation import Rule, model_rule, place_rule, refuse_broken, refuse_missing
from drl_dist.jobs.common.chains import ChainKernelName, chain_rules
from drl_dist.jobs.common.labels import LabelOptions

MAX_IMAGES = 10**9
MAX_SHARDS = 100_000


@dataclass(frozen=True, kw_only=True)
class SampleOptions(LabelOptions):
    """Options of ``jobs/sample.py``."""

    model: str = ""
    """models:/NAME@latest, models:/NAME/VERSION, or the URL of a checkpoint, of a run folder or of a saved
    model."""
    num_images: int = 64
    """Images to generate."""
    seed: int = 0
    """Keys all noise: image i of a seed starts from the same noise in every job."""
    out: str = ""
    """URL of the folder for shards, manifest and pictures; the same command resumes there."""
    num_workers: int = 1
    """Ray actors; at most one per shard is started."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: int = 1
    """CPUs, and threads, of each worker."""
    shard_size: int = 256
    """Images per shard, which is what a worker makes at a time."""
    batch_size: int = 64
    """Images that a worker computes together."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network; bfloat16 is faster and gives slightly other images."""
    noise_scale: float | None = None
    """Factor on the Langevin noise; by default the model's mcmc.sampling_noise_scale."""
    num_chain_steps: int | None = None
    """K, chain steps of every level; by default the model's mcmc.sampling_chain_steps, or those of its training."""
    bound_fraction: float | None = None
    """c of steps by mcmc.step_rule bound; by default the model's mcmc.sampling_bound_fraction, or that of its
    training."""
    chain_kernel: ChainKernelName | None = None
    """Kernel of the chains; by default the model's mcmc.sampling_kernel, or that of its training."""
    real: str | None = None
    """URL of image shards, some of which are shown beside the generated ones, and whose labels --labels data draws."""
    tracking_uri: str | None = None
    """MLflow server; by default the environment's MLFLOW_TRACKING_URI. Only models:/ addresses need it."""
    allow_code: tuple[str, ...] = ()
    """Import paths, MODULE:NAME, of a network, kernel or objective that is not part of drl_dist, which the model may
    import (docs/own_parts.md)."""


def check_options(options: SampleOptions) -> None:
    """Raise `UserError` for options that no job can have."""
    refuse_missing({"--model": options.model, "--out": options.out})
    smallest_shard = max(1, -(-options.num_images // MAX_SHARDS))
    rules: list[Rule] = [
        ("--num-images", options.num_images, f"1 to {MAX_IMAGES}", 1 <= options.num_images <= MAX_IMAGES),
        ("--seed", options.seed, "a number in [0, 2**63)", 0 <= options.seed < 2**63),
        ("--num-workers", options.num_workers, "at least 1", options.num_workers >= 1),
        ("--cpus-per-worker", options.cpus_per_worker, "at least 1", options.cpus_per_worker >= 1),
        ("--shard-size", options.shard_size, f"at least {smallest_shard}", options.shard_size >= smallest_shard),
        ("--batch-size", options.batch_size, "at least 1", options.batch_size >= 1),
    ]
    rules += chain_rules(options)
    rules += [place_rule("--out", options.out), place_rule("--real", options.real), model_rule(options.model)]
    refuse_broken(rules)
