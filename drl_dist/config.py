"""One typed tree that says everything about a training run.

`Experiment` is the science: two runs with equal experiments, data and seeds are the same run. `RunConfig` adds where
it runs and what it writes; those fields may change between one start of a run and the next.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from drl_dist.errors import UserError

MAX_LEVELS = 4096
"""What the counters of the noise can tell apart."""
BASE_STEPS = 1000
"""Of the base ladder that the t6 ladder is composed of."""
MAX_SIGNAL = 0.05
"""Share of the data's variance that may be left in x_T."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The wide ResNet of Table 5."""

    resolution: int = 32
    """Height and width of the images, in pixels."""
    channels: int = 3
    """Colour channels: 1 or 3."""
    width: int = 128
    """Channels after the first convolution."""
    width_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each resolution level as multiples of `width`; 2x2 pooling between levels."""
    num_res_blocks: int = 8
    """N, the residual blocks per resolution level."""
    time_embedding_dim: int = 128
    """Length of the sinusoidal embedding of the noise level t."""
    time_hidden_dim: int = 512
    """Width of the two dense layers behind the embedding."""
    activation: Literal["leaky_relu", "silu"] = "leaky_relu"
    """leaky_relu has slope 0.2; silu is smooth, which T = 1000 needs."""
    spectral_norm: bool = True
    """Divide weights by their largest singular value (one power iteration a step)."""
    head: Literal["inner_product", "dense"] = "inner_product"
    """inner_product with a vector made from the time embedding (released code), or one dense layer (Table 5)."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise ladder."""

    ladder: Literal["t6", "linear"] = "t6"
    """t6: a 1000-step linear ladder composed into `num_levels` segments (released code);
    linear: transition variances that rise linearly, as the paper prints."""
    num_levels: int = 6
    """T, the number of energies."""
    first_variance: float = 1e-4
    """First beta of the base ladder (t6), or first transition variance (linear)."""
    last_variance: float = 0.02
    """Last beta of the base ladder (t6), or last transition variance (linear)."""


@dataclass(frozen=True, kw_only=True)
class McmcConfig:
    """K Langevin steps per noise level, with step sizes delta_t = c_t * b * sigma_{t+1}."""

    num_chain_steps: int = 30
    """K, gradient steps per chain; 0 draws once from the normal approximation (section 3.3)."""
    step_scale_squared: float = 2e-4
    """b squared."""
    level_scale_power: float = 0.5
    """c_t = multiplier * (cumulative std_t / cumulative std_0) ** power; 0.5 as released, 0 in equation 17."""
    level_scale_multiplier: float = 1.0
    """A factor on c_t at every level."""
    level_scale_values: tuple[float, ...] = ()
    """c_t given one by one, T numbers; overrides the power and the multiplier."""
    top_level: Literal["marginal", "conditional"] = "marginal"
    """marginal: no recovery term and scale 1 at the top (released code); conditional: like the others (paper)."""
    energy_scale: Literal["step_size", "transition_variance", "unit"] = "step_size"
    """log-density = raw network output / delta_t**2 (released code), / sigma_{t+1}**2 (what makes T = 1000 trainable:
    docs/deviations.md), or the output itself (paper)."""
    antithetic: bool = False
    """Train on pairs of opposite draws, of y_pos and of y_neg; for K = 0, where this takes most of the noise out of the
    learning gradient (docs/deviations.md)."""
    noise_scale: float = 1.0
    """Factor on the Langevin noise while training."""
    sampling_noise_scale: float = 0.99
    """Factor on the Langevin noise when generating images."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """What is minimised; Adam, warm-up and the moving average."""

    objective: Literal["recovery", "normal_likelihood", "dsm"] = "recovery"
    """recovery: section 3.2, with negatives from a chain; normal_likelihood: of the normal approximation, without
    negatives (equation 37); dsm: denoising score matching, the score being the log-density's gradient (equation 14)."""
    learning_rate: float = 1e-4
    """Reached after `warmup_steps`."""
    beta1: float = 0.9
    """Table 6."""
    beta2: float = 0.999
    """Second-moment decay."""
    epsilon: float = 1e-7
    """Added to the root of the second moment."""
    warmup_steps: int = 1000
    """Steps over which the learning rate rises linearly from 0."""
    half_life_steps: int | None = None
    """Steps after the warm-up in which the learning rate halves, again and again; constant if none is given, as in the
    paper. For short runs, which begin at a learning rate that would not stay stable."""
    ema_decay: float = 0.999
    """Decay of the moving average over every parameter and spectral-norm vector."""
    loss_weight: Literal["inverse_std", "none"] = "inverse_std"
    """inverse_std: sigma_1 / sigma_{t+1} on the raw output (released code), for the objectives without negatives every
    level's noise counts alike; none: weight 1 (Algorithm 1, equation 14)."""
    max_grad_norm: float | None = None
    """Clip the gradient to this norm; off in the paper and the released code."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how many, from which seed."""

    batch_size: int = 256
    """Images per step over all workers."""
    num_steps: int = 240_000
    """Training steps in all."""
    seed: int = 0
    """Keys the initial weights, the data order and all noise."""
    horizontal_flip: bool = True
    """Flip half of the images left to right."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a step is computed. Nothing here changes what is computed beyond rounding."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of chain and update; weights, chain state and optimiser stay float32."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Use torch.compile; auto does on CUDA, where it pays, and not on CPUs, where eager convolutions are faster."""
    cuda_graph: bool = True
    """On CUDA, capture the chain step in a graph and replay it."""
    threads_per_worker: int | None = None
    """CPU threads of each worker; by default the CPUs that Ray gives it."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How shards reach the step."""

    cache_dir: str | None = None
    """Node-local folder for shards; by default a folder of its own under the system's temporary one."""
    cache_gib: float = 20.0
    """Size the cache is kept under."""
    window_shards: int = 4
    """Shards that are shuffled together; this many more are fetched ahead."""
    prefetch_batches: int = 4
    """Batches decoded ahead of the step."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept on the storage URL."""

    every_steps: int = 5000
    """Steps between checkpoints; one is always written at the end."""
    keep: int | None = 3
    """Newest checkpoints kept; all of them if none is given."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What is told to MLflow."""

    uri: str | None = None
    """MLflow server; by default the environment's MLFLOW_TRACKING_URI."""
    experiment: str = "drl_dist"
    """MLflow experiment the run belongs to."""
    log_every_steps: int = 1
    """Steps between logged metrics."""
    sample_every_steps: int = 5000
    """Steps between sample grids; one is always drawn at the end."""
    num_samples: int = 64
    """Images per sample grid."""
    score_every_steps: int | None = None
    """Steps between scores (FID, KID) of freshly generated images; none are computed unless it is given."""
    score_features: str = "inception"
    """Feature network of the scores: inception, inception=PATH, timm:NAME, timm:NAME=PATH or torchscript:PATH."""
    score_num_images: int = 1024
    """Images, generated and real, of each score."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The science of a run: what a checkpoint must agree with to be resumed."""

    preset: str
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    mcmc: McmcConfig = field(default_factory=McmcConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_experiment(self)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run: an experiment, its data, its name, and the machines it has."""

    experiment: Experiment
    data: str = ""
    """URL of a shard folder (file://, gs://, s3:// or a path)."""
    run_name: str = ""
    """The run's name; the same name resumes the run."""
    storage: str = ""
    """URL below which checkpoints are kept."""
    num_workers: int = 1
    """Ray Train workers, one DDP rank each."""
    use_gpu: bool = False
    """Give each worker a GPU and train over NCCL."""
    cpus_per_worker: int = 1
    """CPUs that each worker reserves."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def check_experiment(experiment: Experiment) -> None:
    """Raise `UserError` for settings that no run can have."""
    model, mcmc, train, optim = experiment.model, experiment.mcmc, experiment.train, experiment.optim
    levels = experiment.diffusion.num_levels
    pools = len(model.width_multipliers) - 1
    rules: list[tuple[str, object, str, bool]] = [
        (
            "model.resolution",
            model.resolution,
            f"a positive multiple of {2**pools} (one halving per level)",
            model.resolution > 0 and model.resolution % 2**pools == 0,
        ),
        ("model.channels", model.channels, "1 or 3", model.channels in (1, 3)),
        ("model.width", model.width, "a positive number", model.width > 0),
        (
            "model.width_multipliers",
            model.width_multipliers,
            "one or more positive numbers",
            bool(model.width_multipliers) and min(model.width_multipliers) > 0,
        ),
        ("model.num_res_blocks", model.num_res_blocks, "at least 1", model.num_res_blocks >= 1),
        (
            "model.time_embedding_dim",
            model.time_embedding_dim,
            "an even number of at least 4",
            model.time_embedding_dim >= 4 and model.time_embedding_dim % 2 == 0,
        ),
        ("diffusion.num_levels", levels, f"1 to {MAX_LEVELS}", 1 <= levels <= MAX_LEVELS),
        (
            "diffusion.first_variance and last_variance",
            (experiment.diffusion.first_variance, experiment.diffusion.last_variance),
            "0 < first <= last < 1",
            0 < experiment.diffusion.first_variance <= experiment.diffusion.last_variance < 1,
        ),
        ("mcmc.num_chain_steps", mcmc.num_chain_steps, "at least 0", mcmc.num_chain_steps >= 0),
        (
            "mcmc.top_level",
            mcmc.top_level,
            "conditional, since a marginal top level has no normal approximation (mcmc.num_chain_steps 0, or "
            f"optim.objective {optim.objective})",
            mcmc.top_level == "conditional" or (mcmc.num_chain_steps > 0 and optim.objective == "recovery"),
        ),
        (
            "mcmc.antithetic",
            mcmc.antithetic,
            f"off for chains of Langevin steps (mcmc.num_chain_steps {mcmc.num_chain_steps})",
            not mcmc.antithetic or mcmc.num_chain_steps == 0,
        ),
        ("mcmc.step_scale_squared", mcmc.step_scale_squared, "a positive number", mcmc.step_scale_squared > 0),
        (
            "mcmc.level_scale_values",
            mcmc.level_scale_values,
            f"none, or {levels} positive numbers (one per level)",
            not mcmc.level_scale_values
            or (len(mcmc.level_scale_values) == levels and min(mcmc.level_scale_values) > 0),
        ),
        (
            "mcmc.level_scale_multiplier",
            mcmc.level_scale_multiplier,
            "a positive number",
            mcmc.level_scale_multiplier > 0,
        ),
        ("optim.learning_rate", optim.learning_rate, "a positive number", optim.learning_rate > 0),
        ("optim.beta1", optim.beta1, "a number in [0, 1)", 0 <= optim.beta1 < 1),
        ("optim.beta2", optim.beta2, "a number in [0, 1)", 0 <= optim.beta2 < 1),
        (
            "optim.half_life_steps",
            optim.half_life_steps,
            "none, or at least 1",
            optim.half_life_steps is None or optim.half_life_steps >= 1,
        ),
        ("optim.ema_decay", optim.ema_decay, "a number in [0, 1)", 0 <= optim.ema_decay < 1),
        (
            "optim.max_grad_norm",
            optim.max_grad_norm,
            "none, or a positive number",
            optim.max_grad_norm is None or optim.max_grad_norm > 0,
        ),
        ("train.batch_size", train.batch_size, "at least 1", train.batch_size >= 1),
        ("train.num_steps", train.num_steps, "at least 1", train.num_steps >= 1),
        ("train.seed", train.seed, "a number in [0, 2**63)", 0 <= train.seed < 2**63),
    ]
    for name, got, expected, holds in rules:
        if not holds:
            raise UserError(f"config field {name}", got=got, expected=expected, remedy="correct the field")
    _check_ladder(experiment.diffusion)


def _check_ladder(diffusion: DiffusionConfig) -> None:
    """Raise `UserError` for a ladder whose top is not white noise, which sampling starts from."""
    first, last, levels = diffusion.first_variance, diffusion.last_variance, diffusion.num_levels
    if diffusion.ladder == "t6":
        if levels >= BASE_STEPS:
            raise UserError(
                "config field diffusion.num_levels",
                got=f"{levels} with the t6 ladder",
                expected=f"at most {BASE_STEPS - 1}, the base steps that it is composed of",
                remedy="use --diffusion.ladder linear",
            )
        return
    kept = math.prod(1 - (first + (last - first) * step / levels) for step in range(levels + 1))
    if kept > MAX_SIGNAL:
        raise UserError(
            "config field diffusion.last_variance",
            got=f"{last} with {levels} linear levels, which leave {kept:.0%} of the data's variance in x_T",
            expected=f"a ladder that ends in white noise (at most {MAX_SIGNAL:.0%})",
            remedy="raise diffusion.last_variance or diffusion.num_levels, or use --diffusion.ladder t6",
        )


def check_run(run: RunConfig, *, complete: bool = True) -> None:
    """Raise `UserError` for a run that cannot be started.

    Args:
        complete: also ask for the data, the run name and the storage, which a dry run may leave out.
    """
    rules: list[tuple[str, object, str, bool]] = [
        ("num_workers", run.num_workers, "at least 1", run.num_workers >= 1),
        ("cpus_per_worker", run.cpus_per_worker, "at least 1", run.cpus_per_worker >= 1),
        ("checkpoint.every_steps", run.checkpoint.every_steps, "at least 1", run.checkpoint.every_steps >= 1),
        (
            "checkpoint.keep",
            run.checkpoint.keep,
            "none, or at least 1",
            run.checkpoint.keep is None or run.checkpoint.keep >= 1,
        ),
        ("tracking.log_every_steps", run.tracking.log_every_steps, "at least 1", run.tracking.log_every_steps >= 1),
        (
            "tracking.sample_every_steps",
            run.tracking.sample_every_steps,
            "at least 1",
            run.tracking.sample_every_steps >= 1,
        ),
        ("tracking.num_samples", run.tracking.num_samples, "at least 1", run.tracking.num_samples >= 1),
        (
            "tracking.score_every_steps",
            run.tracking.score_every_steps,
            "none, or at least 1",
            run.tracking.score_every_steps is None or run.tracking.score_every_steps >= 1,
        ),
        (
            "tracking.score_num_images",
            run.tracking.score_num_images,
            "at least 10",
            run.tracking.score_num_images >= 10,
        ),
        ("loader.window_shards", run.loader.window_shards, "at least 1", run.loader.window_shards >= 1),
        ("loader.prefetch_batches", run.loader.prefetch_batches, "at least 1", run.loader.prefetch_batches >= 1),
        ("loader.cache_gib", run.loader.cache_gib, "a positive number", run.loader.cache_gib > 0),
        (
            "engine.threads_per_worker",
            run.engine.threads_per_worker,
            "none, or at least 1",
            run.engine.threads_per_worker is None or run.engine.threads_per_worker >= 1,
        ),
        (
            "run_name",
            run.run_name,
            "letters, digits, '.', '_' and '-', beginning with a letter or a digit",
            not run.run_name or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run.run_name) is not None,
        ),
    ]
    for name, place in (("data", run.data), ("storage", run.storage)):
        # A job's working directory is a copy that goes away with the job.
        rules.append((name, place, "a URL or an absolute path", not place or "://" in place or place.startswith("/")))
    for name, got, expected, holds in rules:
        if not holds:
            raise UserError(f"config field {name}", got=got, expected=expected, remedy="correct the field")
    batch_size = run.experiment.train.batch_size
    if batch_size % run.num_workers:
        raise UserError(
            "config field train.batch_size",
            got=f"{batch_size} for {run.num_workers} workers",
            expected="a multiple of the number of workers",
            remedy="change one of the two",
        )
    missing = [name for name in ("data", "run_name", "storage") if not getattr(run, name)]
    if complete and missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise UserError(
            "command line", got=f"no {flags}", expected="--data, --run-name and --storage", remedy=f"add {flags}"
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dictionaries, lists and numbers: what it is after a round trip through JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"model": {"width": 8}}`` as ``{"model.width": 8}``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``field: old -> new`` for every dotted field in which two config dictionaries differ."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
