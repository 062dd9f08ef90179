"""Options of ``jobs/likelihood.py``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from drl_dist.common.validation import Rule, model_rule, place_rule, refuse_broken, refuse_missing
from drl_dist.mcmc.settings import AdaptationConfig

UpperFrom = Literal["images", "draws"]
MAX_CHAINS = 1 << 24
MAX_STEPS = 4096


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    """Options of ``jobs/likelihood.py``."""

    model: str = ""
    """models:/NAME@latest, models:/NAME/VERSION, or the URL of a checkpoint, of a run folder or of a saved
    model."""
    data: str = ""
    """URL of the images whose likelihood is asked for, at best a test set: a shard folder (docs/data.md)."""
    out: str = ""
    """URL of the folder for likelihood.json, log_z.png, step sizes and weights; the same command resumes there."""
    steps_per_level: str = "4,16,64"
    """Chain lengths, each an estimate of its own: HMC steps, and densities, between one noise level and the next. The
    longest gives bits per dimension. With T = 1000 levels 1 is enough."""
    num_chains: int = 256
    """Chains of each length that go down from white noise; as many go up from images, if there are as many."""
    upper_from: UpperFrom = "images"
    """Where the chains of the upper estimate of log Z begin: at the images, which are draws only of a perfect model, or
    at draws of the model itself, which are ends of further chains from white noise, resampled by their weights."""
    num_images: int | None = None
    """Images of the data, evenly spread over it; by default all."""
    seed: int = 0
    """Keys all noise."""
    schedule: str | None = None
    """URL of a folder with the step_sizes.json that a likelihood job found for this model; by default they are adapted
    first, and kept in --out."""
    num_leapfrog_steps: int = 2
    """Leapfrog steps of an HMC proposal."""
    batch_size: int = 32
    """Chains that a worker makes at a time, and computes together."""
    precision: Literal["float64", "float32"] = "float64"
    """Arithmetic of network and chains; float32 resolves log-densities only below some 10**5 nats."""
    num_workers: int = 1
    """Ray actors."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: int = 1
    """CPUs, and threads, of each worker."""
    tracking_uri: str | None = None
    """MLflow server; by default the environment's MLFLOW_TRACKING_URI. Only models:/ addresses need it."""
    allow_code: tuple[str, ...] = ()
    """Import paths, MODULE:NAME, of a network, kernel or objective that is not part of drl_dist, which the model may
    import (docs/own_parts.md)."""
    adapt: AdaptationConfig = field(default_factory=lambda: AdaptationConfig(num_chains=64, num_steps=20))
    """How step sizes are adapted."""

    @property
    def chain_lengths(self) -> tuple[int, ...]:
        """`steps_per_level` as numbers, the shortest first."""
        return tuple(sorted(int(text) for text in self.steps_per_level.split(",")))


def check_options(options: LikelihoodOptions) -> None:
    """Raise `UserError` for options that no job can have."""
    refuse_missing({"--model": options.model, "--data": options.data, "--out": options.out})
    is_list = re.fullmatch(r"\d{1,7}(,\d{1,7})*", options.steps_per_level) is not None
    lengths = options.chain_lengths if is_list else ()
    count = options.num_images
    rules: list[Rule] = [
        (
            "--steps-per-level",
            options.steps_per_level,
            f"different numbers from 1 to {MAX_STEPS}, separated by commas",
            is_list and min(lengths) >= 1 and max(lengths) <= MAX_STEPS and len(set(lengths)) == len(lengths),
        ),
        ("--num-chains", options.num_chains, f"2 to {MAX_CHAINS}", 2 <= options.num_chains <= MAX_CHAINS),
        ("--num-images", count, "none, or at least 2", count is None or count >= 2),
        ("--seed", options.seed, "a number in [0, 2**63)", 0 <= options.seed < 2**63),
        ("--num-leapfrog-steps", options.num_leapfrog_steps, "at least 1", options.num_leapfrog_steps >= 1),
        ("--batch-size", options.batch_size, "at least 1", options.batch_size >= 1),
        ("--num-workers", options.num_workers, "at least 1", options.num_workers >= 1),
        ("--cpus-per-worker", options.cpus_per_worker, "at least 1", options.cpus_per_worker >= 1),
    ]
    rules += [
        place_rule("--data", options.data),
        place_rule("--out", options.out),
        place_rule("--schedule", options.schedule),
        model_rule(options.model),
    ]
    refuse_broken(rules)
