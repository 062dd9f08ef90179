"""Options of ``jobs/long_run.py``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from drl_dist.common.validation import Rule, model_rule, place_rule, refuse_broken, refuse_missing
from drl_dist.mcmc.settings import AdaptationConfig, KernelName, Start

MAX_IMAGES = 10**6
MAX_STEPS = 10**6


@dataclass(frozen=True, kw_only=True)
class LongRunOptions:
    """Options of ``jobs/long_run.py``."""

    model: str = ""
    """models:/NAME@latest, models:/NAME/VERSION, or the URL of a checkpoint, of a run folder or of a saved
    model."""
    kernel: KernelName = "hmc"
    """What moves the chains (docs/samplers.md); NUTS takes the step sizes of HMC."""
    steps_per_level: str = "1,10,100"
    """Chain lengths, each a run of its own: steps per level, a draw from the normal approximation included."""
    num_images: int = 64
    """Chains of each length."""
    seed: int = 0
    """Keys all noise: image i of a seed starts from the same noise at every length."""
    out: str = ""
    """URL of the folder for images, pictures, step sizes and diagnostics; the same command resumes there."""
    schedule: str | None = None
    """URL of a folder with the step_sizes.json of this model; by default they are adapted first, and kept in --out."""
    start: Start | Literal["auto"] = "auto"
    """Where the chains of a level begin: at a draw from the normal approximation, or at x_noisy itself where levels are
    few and large; auto looks at the ladder."""
    num_leapfrog_steps: int = 2
    """Leapfrog steps of an HMC proposal."""
    max_tree_depth: int = 8
    """Depth of the trees of NUTS: a trajectory has at most 2 to this power leapfrog steps."""
    batch_size: int = 64
    """Images that are computed together."""
    precision: Literal["float64", "float32"] = "float64"
    """Arithmetic of network and chains; float32 resolves log-densities only below some 10**5 nats."""
    use_gpu: bool = False
    """Compute on the GPU."""
    threads: int | None = None
    """CPU threads; by default what torch chooses."""
    tracking_uri: str | None = None
    """MLflow server; by default the environment's MLFLOW_TRACKING_URI. Only models:/ addresses need it."""
    allow_code: tuple[str, ...] = ()
    """Import paths, MODULE:NAME, of a network, kernel or objective that is not part of drl_dist, which the model may
    import (docs/own_parts.md)."""
    adapt: AdaptationConfig = field(default_factory=AdaptationConfig)
    """How step sizes are adapted."""

    @property
    def chain_lengths(self) -> tuple[int, ...]:
        """`steps_per_level` as numbers."""
        return tuple(int(text) for text in self.steps_per_level.split(","))

    @property
    def num_batches(self) -> int:
        """Batches of each chain length."""
        return -(-self.num_images // self.batch_size)


def check_options(options: LongRunOptions) -> None:
    """Raise `UserError` for options that no job can have."""
    refuse_missing({"--model": options.model, "--out": options.out})
    is_list = re.fullmatch(r"\d{1,7}(,\d{1,7})*", options.steps_per_level) is not None
    lengths = options.chain_lengths if is_list else ()
    rules: list[Rule] = [
        (
            "--steps-per-level",
            options.steps_per_level,
            f"different numbers from 1 to {MAX_STEPS}, separated by commas",
            is_list and min(lengths) >= 1 and max(lengths) <= MAX_STEPS and len(set(lengths)) == len(lengths),
        ),
        ("--num-images", options.num_images, f"1 to {MAX_IMAGES}", 1 <= options.num_images <= MAX_IMAGES),
        ("--seed", options.seed, "a number in [0, 2**63)", 0 <= options.seed < 2**63),
        ("--num-leapfrog-steps", options.num_leapfrog_steps, "at least 1", options.num_leapfrog_steps >= 1),
        ("--max-tree-depth", options.max_tree_depth, "1 to 12", 1 <= options.max_tree_depth <= 12),
        ("--batch-size", options.batch_size, "at least 1", options.batch_size >= 1),
        ("--threads", options.threads, "at least 1", options.threads is None or options.threads >= 1),
    ]
    rules += [place_rule("--out", options.out), place_rule("--schedule", options.schedule), model_rule(options.model)]
    refuse_broken(rules)
