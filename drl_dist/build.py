"""Building the objects of the method from a config."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from drl_dist.common.errors import UserError
from drl_dist.config.from_data import known, known_names
from drl_dist.config.import_paths import TIMM, imported, is_import_path, is_timm, made
from drl_dist.config.tree import DiffusionConfig, Experiment, McmcConfig, ModelConfig
from drl_dist.diffusion.ladder import NoiseLadder, composed_ladder, geometric_ladder, linear_ladder
from drl_dist.diffusion.recovery import Levels, LogDensityAndGrad
from drl_dist.energy.check import check_network
from drl_dist.energy.condition import ConditionEmbedding
from drl_dist.energy.network import EnergyNetwork
from drl_dist.energy.own import OwnNetwork, takes_condition, takes_log_snr
from drl_dist.energy.unet import EnergyUNet
from drl_dist.energy.wide_resnet import WideResNet
from drl_dist.mcmc.kernel import Kernel, check_kernel
from drl_dist.sampling.inpainting import PosteriorSampler
from drl_dist.sampling.progressive import ProgressiveSampler
from drl_dist.sampling.tweedie import Tweedie


def build_ladder(config: DiffusionConfig) -> NoiseLadder:
    """The noise ladder of a config.

    Raises:
        UserError: it leaves a number to the data.
    """
    if config.ladder == "geometric":
        first = known(config.first_noise_to_signal, "diffusion.first_noise_to_signal")
        return geometric_ladder(
            config.num_levels, first, known(config.last_noise_to_signal, "diffusion.last_noise_to_signal")
        )
    build = composed_ladder if config.ladder == "t6" else linear_ladder
    return build(config.num_levels, config.first_variance, config.last_variance)


def build_levels(experiment: Experiment, ladder: NoiseLadder) -> Levels:
    """Step sizes, scales and weights of every noise level, float64 (T,)."""
    mcmc = experiment.mcmc
    std = ladder.std[1:]
    transition_scale, precision = ladder.scale[1:].clone(), std**-2
    if mcmc.top_level == "marginal":
        transition_scale[-1], precision[-1] = 1.0, 0.0
    if mcmc.step_rule == "bound":
        fraction = mcmc.level_bound_fractions or (mcmc.bound_fraction,)
        bound = curvature_bound(ladder, transition_scale, precision)
        step_size = torch.tensor(fraction, dtype=torch.float64) * bound**-0.5
    else:
        step_size = _level_scale(mcmc, ladder) * mcmc.step_scale_squared**0.5 * std
    energy_scale = {
        "step_size": step_size**-2,
        "transition_variance": std**-2,
        "unit": torch.ones_like(step_size),
    }[mcmc.energy_scale]
    loss_weight = ladder.std[1] / std if experiment.optim.loss_weight == "inverse_std" else energy_scale
    noise_precision = ladder.noise_in_y(transition_scale) ** -2 if mcmc.normal_spread == "posterior" else None
    return Levels(transition_scale, precision, step_size, energy_scale, loss_weight, noise_precision)


def curvature_bound(ladder: NoiseLadder, transition_scale: Tensor, recovery_precision: Tensor) -> Tensor:
    """The largest curvature that log p(y_t | x_{t+1}) can have, float64 (T,): no data make log p(y_t) more curved than
    its noise does.

    Args:
        ladder: the noise.
        transition_scale, recovery_precision: (T,), as in `Levels`.
    """
    return recovery_precision + ladder.noise_in_y(transition_scale) ** -2


MAX_CONDITION_NUMBER = 100.0
"""Of a level, above which few steps of one size for all directions do not come far."""


def stiff_level(experiment: Experiment, ladder: NoiseLadder) -> str | None:
    """A sentence about the worst level that chains by the rule bound cannot serve; None if they serve all.

    The condition number of a conditional density is at most its largest precision by the rule bound times
    sigma_{t+1}**2, which is the growth of the noise-to-signal variance in the transition. At the topmost level it says
    nothing: x_T is white whatever the data.
    """
    if experiment.mcmc.step_rule != "bound" or ladder.num_levels == 1:
        return None
    noise_to_signal = ladder.cumulative_std / ladder.cumulative_scale
    growth = (noise_to_signal[1:-1] / noise_to_signal[:-2]).square()
    t = int(growth.argmax())
    if growth[t] <= MAX_CONDITION_NUMBER:
        return None
    remedy = "more levels (--diffusion.num-levels)"
    if experiment.diffusion.ladder != "geometric":
        remedy = "--diffusion.ladder geometric"
    number = float(growth[t])
    return (
        f"mcmc.step_rule bound with a condition number of {number:.0f} at level {t}, where the noise over the signal "
        f"grows {number**0.5:.0f}-fold in one transition: no step size serves all directions there; use {remedy}"
    )


def _level_scale(mcmc: McmcConfig, ladder: NoiseLadder) -> Tensor:
    """c_t of the released step sizes, float64 (T,)."""
    if mcmc.level_scale_values:
        return torch.tensor(mcmc.level_scale_values, dtype=torch.float64)
    ratio = ladder.cumulative_std[:-1] / ladder.cumulative_std[0]
    return mcmc.level_scale_multiplier * ratio**mcmc.level_scale_power


def build_network(experiment: Experiment, dtype: torch.dtype = torch.float32) -> EnergyNetwork:
    """The network at its initial weights, which the seed determines."""
    network = _made(experiment, torch.Generator().manual_seed(experiment.train.seed))
    network.to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network


def weight_shapes(experiment: Experiment) -> dict[str, tuple[int, ...]]:
    """The shape of everything that a checkpoint keeps of this network, by name; no memory is taken for a built-in one.

    Raises:
        RuntimeError: there is no network of such sizes.
    """
    # Other people's modules may need numbers where they are made.
    with torch.device("meta" if experiment.model.is_built_in else "cpu"):
        network = _made(experiment, None)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _made(experiment: Experiment, generator: torch.Generator | None) -> EnergyNetwork:
    if not experiment.model.is_built_in:
        network = build_own_network(experiment, is_checked=generator is not None)
    else:
        build = build_unet if experiment.model.network == "unet" else build_wide_resnet
        network = build(experiment, generator)
        network.condition = build_condition(experiment, experiment.model.time_hidden_dim)
    if experiment.mcmc.step_adaptation == "curvature":
        network.curvature = torch.ones(experiment.diffusion.num_levels)
    return network


def build_condition(experiment: Experiment, width: int) -> ConditionEmbedding | None:
    """What labels add to an embedding of `width` numbers, float32; None for energies without labels.

    Raises:
        UserError: the names of the labels are left to the data.
    """
    condition = experiment.condition
    if condition.kind == "none":
        return None
    return ConditionEmbedding(condition.kind, len(known_names(experiment)), width)


def build_wide_resnet(experiment: Experiment, generator: torch.Generator | None = None) -> WideResNet:
    """The wide ResNet, float32."""
    model = experiment.model
    return WideResNet(
        **_sizes(model),
        activation=model.activation,
        spectral_norm=model.spectral_norm,
        norm_rule=model.spectral_norm_rule,
        head=model.head,
        generator=generator,
    )


def build_own_network(experiment: Experiment, *, is_checked: bool = True) -> EnergyNetwork:
    """A backbone of timm, or a network that the config names by import path, float32.

    Args:
        is_checked: try it on images.

    Raises:
        UserError: it cannot be imported or made, or is no energy.
    """
    model, levels = experiment.model, experiment.diffusion.num_levels
    # Modules of other people draw their initial weights from torch's own generator.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(experiment.train.seed)
        module = _timm_energy(experiment) if is_timm(model.network) else _own_module(experiment)
    size = 0 if experiment.condition.kind == "none" else len(known_names(experiment))
    if size and not takes_condition(module):
        raise UserError(
            f"network {model.network}",
            got="a forward(y, t) that is given no labels",
            expected=f"a third argument called condition, since condition.kind is {experiment.condition.kind}",
            remedy="add it (docs/own_parts.md), or leave labels out with --condition.kind none",
        )
    if isinstance(module, EnergyNetwork):
        network = module
    else:
        log_snr = None
        if takes_log_snr(module):
            noise, signal = _stds_in_y(experiment)
            log_snr = 2 * (signal / noise).log()
        shape = (model.channels, model.resolution, model.resolution)
        network = OwnNetwork(module, image_shape=shape, num_levels=levels, log_snr=log_snr, condition_size=size)
    if is_checked:
        network.float()
        is_matched = any(name != "recovery" for name in experiment.optim.objectives)
        uses_all = check_network(network, model.network, levels, is_matched=is_matched, condition_size=size)
        network.gradient_uses_all_parameters = uses_all
    return network


def _timm_energy(experiment: Experiment) -> nn.Module:
    model = experiment.model
    try:
        from drl_dist.energy.timm_backbone import EMBEDDING_DIM, TimmEnergy
    except ModuleNotFoundError as error:
        raise UserError(
            f"config field model.network {model.network}",
            got=f"no package {error.name}",
            expected="timm",
            remedy="pip install 'drl_dist[evaluation]'",
        ) from error
    noise, signal = _stds_in_y(experiment)
    return TimmEnergy(
        model.network.removeprefix(TIMM),
        channels=model.channels,
        resolution=model.resolution,
        noise_std=noise,
        signal_std=signal,
        options=json.loads(model.options),
        condition=build_condition(experiment, EMBEDDING_DIM),
    )


def _own_module(experiment: Experiment) -> nn.Module:
    model, field = experiment.model, "model.network"
    offered = {
        "channels": model.channels,
        "resolution": model.resolution,
        "num_levels": experiment.diffusion.num_levels,
    }
    module = made(imported(model.network, field), model.network, field, offered, json.loads(model.options))
    if not isinstance(module, nn.Module):
        raise UserError(
            f"config field {field}",
            got=f"{model.network}, which makes a {type(module).__name__}",
            expected="a torch.nn.Module",
            remedy="name a class of modules, or a function that makes one",
        )
    return module


def _stds_in_y(experiment: Experiment) -> tuple[Tensor, Tensor]:
    """(T,) standard deviation of the noise, and of the data, in y_t; float64."""
    ladder = build_ladder(experiment.diffusion)
    scale = build_levels(experiment, ladder).transition_scale
    return ladder.noise_in_y(scale), known(experiment.model.data_std, "model.data_std") * ladder.signal_in_y(scale)


def build_kernel(name: str, field: str = "mcmc.kernel") -> Callable[..., Kernel[Any]] | None:
    """What makes a kernel of the user's from ``density``, ``step_size`` (B,) and ``noise_scale``; None for one that is
    built in.

    Raises:
        UserError: it cannot be imported or made, or is no kernel.
    """
    if not is_import_path(name):
        return None
    maker = imported(name, field)

    def kernel(density: LogDensityAndGrad, step_size: Tensor, noise_scale: float) -> Kernel[Any]:
        offered = {"density": density, "step_size": step_size, "noise_scale": noise_scale}
        return made(maker, name, field, offered, {})

    check_kernel(kernel, name, field)
    return kernel


def build_unet(experiment: Experiment, generator: torch.Generator | None = None) -> EnergyUNet:
    """The U-Net, float32 but for its constants, which are float64 until the network is given a dtype."""
    noise, signal = _stds_in_y(experiment)
    return EnergyUNet(**unet_sizes(experiment.model), noise_std=noise, signal_std=signal, generator=generator)


def unet_sizes(model: ModelConfig) -> dict[str, Any]:
    """Every argument of `EnergyUNet` that follows from the model's fields alone."""
    return {
        **_sizes(model),
        "energy": model.energy,
        "attention_resolutions": model.attention_resolutions,
        "patch_size": model.patch_size,
    }


def _sizes(model: ModelConfig) -> dict[str, Any]:
    """What both networks have."""
    return {
        "resolution": model.resolution,
        "channels": model.channels,
        "width": model.width,
        "width_multipliers": model.width_multipliers,
        "num_res_blocks": model.num_res_blocks,
        "time_embedding_dim": model.time_embedding_dim,
        "time_hidden_dim": model.time_hidden_dim,
    }


def build_sampler(experiment: Experiment, curvature: Tensor | None = None) -> ProgressiveSampler:
    """Algorithm 2 for this experiment, with the `EnergyNetwork.curvature` of the network that is sampled."""
    ladder, mcmc = build_ladder(experiment.diffusion), experiment.mcmc
    levels, num_chain_steps = _sampling_chains(experiment, ladder, curvature)
    tweedie = Tweedie(levels, ladder)
    return ProgressiveSampler(
        levels=levels,
        num_chain_steps=num_chain_steps,
        noise_scale=mcmc.sampling_noise_scale,
        start=tweedie if mcmc.start == "tweedie" else None,
        end=tweedie if mcmc.last_step == "tweedie" else None,
        averages_noise=(mcmc.sampling_kernel or mcmc.kernel) == "leimkuhler_matthews",
        own_kernel=_sampling_kernel(mcmc),
    )


def build_posterior_sampler(
    experiment: Experiment, num_rounds: int = 4, curvature: Tensor | None = None
) -> PosteriorSampler:
    """Inpainting, super-resolution and denoising for this experiment, with the network's `EnergyNetwork.curvature`.

    Raises:
        UserError: at some level the experiment has a start of chains alone, and no chain.
    """
    ladder, mcmc = build_ladder(experiment.diffusion), experiment.mcmc
    levels, num_chain_steps = _sampling_chains(experiment, ladder, curvature)
    fewest = num_chain_steps if isinstance(num_chain_steps, int) else min(num_chain_steps)
    if mcmc.start == "tweedie" and fewest == 0:
        raise UserError(
            "model with mcmc.start tweedie",
            got=f"chain steps {num_chain_steps}",
            expected="chains, which alone can be held to an observation, at every level",
            remedy="give --num-chain-steps of 1 or more, or use a model that was trained with chains at every level",
        )
    tweedie = Tweedie(levels, ladder)
    return PosteriorSampler(
        levels=levels,
        ladder=ladder,
        num_chain_steps=num_chain_steps,
        noise_scale=mcmc.sampling_noise_scale,
        num_rounds=num_rounds,
        start=tweedie if mcmc.start == "tweedie" else None,
        end=tweedie if mcmc.last_step == "tweedie" else None,
        averages_noise=(mcmc.sampling_kernel or mcmc.kernel) == "leimkuhler_matthews",
        own_kernel=_sampling_kernel(mcmc),
    )


def _sampling_kernel(mcmc: McmcConfig) -> Callable[..., Kernel[Any]] | None:
    if mcmc.sampling_kernel is None:
        return build_kernel(mcmc.kernel)
    return build_kernel(mcmc.sampling_kernel, "mcmc.sampling_kernel")


def _sampling_chains(
    experiment: Experiment, ladder: NoiseLadder, curvature: Tensor | None
) -> tuple[Levels, int | tuple[int, ...]]:
    """The levels with the step sizes of sampling, and K: one number, or T."""
    mcmc, levels = experiment.mcmc, build_levels(experiment, ladder)
    if mcmc.sampling_bound_fraction is not None:
        longer = replace(mcmc, bound_fraction=mcmc.sampling_bound_fraction, level_bound_fractions=())
        # Step sizes alone: an energy scale that was trained with others belongs to the density.
        levels = replace(levels, step_size=build_levels(replace(experiment, mcmc=longer), ladder).step_size)
    if curvature is not None:
        levels = levels.shortened(curvature.cpu())
    if mcmc.sampling_chain_steps is not None:
        return levels, mcmc.sampling_chain_steps
    return levels, mcmc.level_chain_steps or mcmc.num_chain_steps
