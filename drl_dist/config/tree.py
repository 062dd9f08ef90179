"""One typed tree that says everything about a training run.

`Experiment` is the science: two runs with equal experiments, data and seeds are the same run. `RunConfig` adds where
it runs and what it writes; those fields may change between one start of a run and the next.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from drl_dist.common.places import joined
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.import_paths import NEEDS_NEGATIVES, NETWORKS, is_timm
from drl_dist.config.rules import check_experiment

NetworkName = Literal["wide_resnet", "unet"]
"""Networks that are built in."""
ChainKernelName = Literal["langevin", "leimkuhler_matthews"]
"""Kernels of short chains, without a Metropolis step; see `drl_dist.mcmc.kernels`."""
ObjectiveName = Literal["recovery", "normal_likelihood", "dsm", "score_matching"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network of the energies: the wide ResNet of Table 5, a U-Net, a backbone of timm, or one of your own."""

    network: NetworkName | str = "wide_resnet"
    """wide_resnet: raw output summed over the image (paper); unet: an energy made of a U-Net, in nats
    (`drl_dist.energy.unet`), with group norm and SiLU, for which `activation`, `head` and what concerns
    the spectral norm are of no meaning; timm:NAME: a backbone of timm, in nats; MODULE:NAME: a torch module of your own
    (docs/own_parts.md), for both of which only resolution, channels, options and data_std mean anything."""
    options: str = "{}"
    """Further arguments of a backbone of timm or of a network of your own, as a JSON object."""
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
    spectral_norm_rule: Literal["released", "own"] = "own"
    """released: the two dense layers of the time embedding are normalised too, and a norm is `|W v|` with v of one
    power iteration (released code); own: they are not, and it is `|W^T u|`, as in all networks up to version 0.1.0."""
    head: Literal["inner_product", "dense"] = "inner_product"
    """inner_product with a vector made from the time embedding (released code), or one dense layer (Table 5)."""
    energy: Literal["inner_product", "squared_distance"] = "inner_product"
    """How a unet h makes an energy: of its inner product with the image, or of the distance between the two."""
    attention_resolutions: tuple[int, ...] = ()
    """Heights, in positions of the network, at which the blocks of a unet end with self-attention."""
    patch_size: int = 1
    """Pixels along each side of the squares that are one position of a unet; 2 makes its convolutions four times
    cheaper."""
    data_std: float | None = 0.5
    """Standard deviation of the data's pixels, which lie in [-1, 1], about zero: a unet begins as white Gaussian data
    of this and mean zero; none: that of the data, from the statistics in their index."""

    @property
    def is_built_in(self) -> bool:
        """Whether the fields of widths and blocks are the network's."""
        return self.network in NETWORKS

    @property
    def is_in_nats(self) -> bool:
        """Whether the network begins as white Gaussian data, and its output is the log-density itself."""
        return self.network == "unet" or is_timm(self.network)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The noise ladder."""

    ladder: Literal["t6", "linear", "geometric"] = "t6"
    """t6: a 1000-step linear ladder composed into `num_levels` segments (released code);
    linear: transition variances that rise linearly, as the paper prints;
    geometric: one factor between the noise-to-signal ratios of neighbours, so that all levels are equally hard."""
    num_levels: int = 6
    """T, the number of energies."""
    first_variance: float = 1e-4
    """First beta of the base ladder (t6), or first transition variance (linear)."""
    last_variance: float = 0.02
    """Last beta of the base ladder (t6), or last transition variance (linear)."""
    first_noise_to_signal: float | None = 1e-4
    """Variance of the noise in x_0 over the squared scale of the data in it (geometric); none: a grey level or more, by
    the data's standard deviation (`drl_dist.data.pixels.scales`)."""
    last_noise_to_signal: float | None = 140.0
    """The same of x_T, which must be nearly white noise (geometric); none: enough for the data's largest moment."""


@dataclass(frozen=True, kw_only=True)
class McmcConfig:
    """K Langevin steps per noise level, and their step sizes delta_t."""

    num_chain_steps: int = 30
    """K, gradient steps per chain; 0 draws once from the normal approximation (section 3.3), or where `start` says."""
    level_chain_steps: tuple[int, ...] = ()
    """K given one by one, T numbers from level 0 up; overrides `num_chain_steps`. A 0 goes with the start tweedie."""
    kernel: ChainKernelName | str = "langevin"
    """langevin: plain Langevin steps (paper), whose draws are too wide; leimkuhler_matthews: each uses half of the
    noise of the step before, which makes draws of a normal density exactly as wide as they should be, so that steps can
    be longer; MODULE:NAME: a kernel of your own (docs/own_parts.md)."""
    start: Literal["x_noisy", "tweedie"] = "x_noisy"
    """x_noisy: chains start at x_{t+1} (paper); tweedie: at a draw around the mean of y_t given x_{t+1}, which the
    energy above gives at the cost of one gradient, and from which few steps are left to make."""
    last_step: Literal["none", "tweedie"] = "none"
    """What follows the last chain of a generated image: nothing (paper), or one step without noise to the mean of the
    image given y_0, which takes the noise of x_0 away."""
    step_rule: Literal["released", "bound"] = "released"
    """released: delta_t = c_t * b * sigma_{t+1}; bound: delta_t = c / sqrt(P_t), with P_t the largest curvature that
    log p(y_t | x_{t+1}) can have, whatever the data."""
    bound_fraction: float = 0.6
    """c of the rule bound: 2 is where chains become unstable; with the kernel langevin, the variance of what they draw
    is too large by at most 1 / (1 - c**2 / 4)."""
    level_bound_fractions: tuple[float, ...] = ()
    """c of the rule bound given one by one, T numbers from level 0 up; overrides `bound_fraction`."""
    step_adaptation: Literal["none", "curvature"] = "none"
    """none: steps of the rule bound stay as they are; curvature: recovery measures at each level how curved the energy
    is where its chains move, and where that is more than P_t takes it in place of P_t. Checkpoints keep the curvatures,
    and images are generated and edited with them. Needs chains of two steps or more."""
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
    docs/deviations.md), or the output itself (paper; the only one for a unet)."""
    normal_spread: Literal["transition", "posterior"] = "transition"
    """Standard deviation of a draw of the normal approximation: sigma_{t+1} (paper), or that of y_t given x_{t+1} and
    the data, with which recovery at T = 1000 has a fixed point at the lowest levels (docs/deviations.md)."""
    antithetic: bool = False
    """Train on pairs of opposite draws, of y_pos and y_neg from the same normals; for K = 0, where this takes most of
    the noise out of the learning gradient (docs/deviations.md)."""
    noise_scale: float = 1.0
    """Factor on the Langevin noise while training."""
    sampling_noise_scale: float = 0.99
    """Factor on the Langevin noise when generating images."""
    sampling_chain_steps: int | None = None
    """K of every level when generating and editing images; none: as in training."""
    sampling_kernel: ChainKernelName | str | None = None
    """The kernel when generating and editing images; none: as in training."""
    sampling_bound_fraction: float | None = None
    """c of the rule bound, of every level, when generating and editing images; none: as in training. The densities stay
    those that were trained."""

    @property
    def chain_steps(self) -> tuple[int, ...]:
        """K of each level, or one K that all levels have."""
        return self.level_chain_steps or (self.num_chain_steps,)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """What is minimised; Adam, warm-up and the moving average."""

    objective: ObjectiveName | str = "recovery"
    """recovery: section 3.2, with negatives from a chain; normal_likelihood: of the normal approximation, without
    negatives (equation 37); dsm: denoising score matching, the score being the log-density's gradient (equation 14);
    score_matching: the same at y_t instead of x_{t+1}, where it is exact on any ladder; MODULE:NAME: one
    of your own (docs/own_parts.md)."""
    first_objective: ObjectiveName | str | None = None
    """What is minimised in the first `first_objective_steps` steps, before `objective` takes over: score_matching gives
    recovery energies from which short chains come far, at an eighth of the cost of a long chain."""
    first_objective_steps: int = 0
    """Steps of `first_objective`, fewer than train.num_steps. They stay where they are when a run is made longer."""
    learning_rate: float = 1e-4
    """Reached after `warmup_steps`."""
    switch_rate_factor: float = 1.0
    """Factor on the learning rate from the step on at which `objective` takes over from `first_objective`."""
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
    final_rate_factor: float = 1.0
    """Factor on the learning rate after the last of train.num_steps, which is approached along half a cosine; 1 keeps
    the learning rate, as in the paper."""
    ema_decay: float = 0.999
    """Decay of the moving average over every parameter and spectral-norm vector."""
    loss_weight: Literal["inverse_std", "none"] = "inverse_std"
    """inverse_std: sigma_1 / sigma_{t+1} on the raw output (released code), for the objectives without negatives every
    level's noise counts alike; none: weight 1 (Algorithm 1, equation 14). In score_matching every level counts alike
    in either case."""
    max_grad_norm: float | None = None
    """Clip the gradient to this norm; off in the paper and the released code."""

    def objective_at(self, step: int) -> str:
        """What the step after `step` steps minimises."""
        if self.first_objective is not None and step < self.first_objective_steps:
            return self.first_objective
        return self.objective

    @property
    def objectives(self) -> tuple[str, ...]:
        """All of the run, in their order."""
        return (self.objective,) if self.first_objective is None else (self.first_objective, self.objective)

    @property
    def needs_negatives(self) -> bool:
        """Whether a built-in objective of the run compares the data with the ends of chains; one of the user's own
        says so itself, when it is made."""
        return any(NEEDS_NEGATIVES.get(name, False) for name in self.objectives)


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
    """Arithmetic of chain and update; weights, chain state and optimiser stay float32. On GPUs torch lets convolutions
    in float32 use TF32 (docs/performance.md)."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Use torch.compile; auto does on CUDA, where it pays, and not on CPUs, where eager convolutions are faster."""
    cuda_graph: bool = True
    """On CUDA, capture the chain step in a graph and replay it."""
    memory: Literal["auto", "plain", "slices", "checkpointing"] = "auto"
    """plain: chains and update of all of a worker's images at once; slices: of some images at a time, the update by
    accumulating gradients; checkpointing: besides, the update keeps the inputs of blocks alone and computes what is
    within them again (of recovery, and networks that are built in); auto: on GPUs the first of these that fits into
    their memory, on CPUs plain (docs/training.md)."""
    memory_gib: float | None = None
    """Memory of a worker's device, of which tensors get 85 %; none: what is free on its GPU, and for a CPU no limit."""
    chain_images: int | None = None
    """Images whose chains are made at once; none: as many as fit, and without a limit all."""
    update_images: int | None = None
    """Images of a micro-batch of the update; none: as many as fit, and without a limit all."""
    shard: bool = False
    """Divide weights, average and moments between the workers (FSDP2), which gather the weights in each step."""
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
    decoded_mib: float = 256.0
    """Decoded images that each worker keeps in memory: a small data set is decoded once, not once an epoch."""
    ledger_dir: str | None = None
    """Folder on each node in which workers note every image that goes into a step, for audits (docs/reliability.md)."""
    on_damage: Literal["strict", "substitute"] = "strict"
    """Handling of a damaged sample or shard: strict ends the run with its name; substitute uses another
    sample, and records it in the run's log of substitutes (docs/data.md)."""
    max_substitutes: int = 10_000
    """Damaged samples over the whole run, each as often as its turn comes, after which it ends nevertheless."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept on the storage URL."""

    every_steps: int | Literal["auto"] = 5000
    """Steps between checkpoints; one is always written at the end. auto: by what a checkpoint costs, as measured in the
    run, and the lifetime of machines (docs/reliability.md)."""
    machine_lifetime_hours: float = 24.0
    """Mean time until a machine is lost, which auto assumes. A day is that of machines which may be taken away; others
    last for months."""
    keep: int | None = 3
    """Newest checkpoints kept; all of them if none is given."""


ENVIRONMENT, NO_SERVER = "environment", "none"
"""Values of `TrackingConfig.uri` that are no address."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What is logged, and where."""

    uri: str = ENVIRONMENT
    """MLflow server; environment: that of MLFLOW_TRACKING_URI; none: no server, metrics and pictures are files in the
    run's folder."""
    tensorboard: bool = False
    """Write event files for TensorBoard, too, in the run's folder."""
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
    """Feature network of the scores: inception, inception=PATH, timm:NAME, timm:NAME=PATH, torchscript:PATH or
    pixels."""
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
    condition: ConditionConfig = field(default_factory=ConditionConfig)

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
    model_name: str | None = None
    """Registered model that the checkpoints become versions of; none: that of the preset and its setting."""
    start_from: str | None = None
    """Checkpoint folder of another run on the same data with the same network to continue from, with other settings."""
    num_workers: int = 1
    """Ray Train workers, one DDP rank each. MIN:MAX is short for this and min_workers."""
    min_workers: int | None = None
    """Workers with which the run continues while machines are missing; unless it is given, it waits for num_workers."""
    max_rollbacks: int = 0
    """How often the run, when it diverges, goes back to its newest checkpoint and on with other noise."""
    use_gpu: bool = False
    """Give each worker a GPU and train over NCCL."""
    cpus_per_worker: int = 1
    """CPUs that each worker reserves."""
    spare_processes: bool = True
    """Keep a process beside each worker that has imported its libraries, which makes restarts seconds shorter."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def url(self) -> str:
        """The run's folder."""
        return joined(self.storage, self.run_name)

    @property
    def registered_model(self) -> str:
        """Name of the registered model that the checkpoints become versions of.

        By default that of the preset, to which a network of one's own adds its own name: who asks for the preset's
        newest model does not expect another network.
        """
        model, preset = self.experiment.model, self.experiment.preset
        if self.model_name or model.is_built_in:
            return self.model_name or preset
        return f"{preset}-{re.sub('[^A-Za-z0-9._-]+', '-', model.network.rpartition(':')[2])}"
