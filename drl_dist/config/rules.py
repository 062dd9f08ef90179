"""Every rule on the values of a config, each with its error message of one sentence."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.validation import local_rule, place_rule
from drl_dist.config.chain_rules import Rule, chain_rules, chain_steps_field
from drl_dist.config.condition import condition_rules
from drl_dist.config.import_paths import import_path_rules, is_timm

if TYPE_CHECKING:
    # The tree checks itself with these rules when it is made.
    from drl_dist.config.tree import DiffusionConfig, EngineConfig, Experiment, ModelConfig, RunConfig

MAX_LIFETIME_HOURS = 1_000_000
"""Of a machine; a century."""
MAX_LEVELS = 4096
"""As `drl_dist.diffusion.noise.MAX_LEVELS`, which cannot be had without importing torch; commands answer at once."""
BASE_STEPS = 1000
"""Levels of the base ladder that the t6 ladder is composed of."""
ARRAY_SUFFIX = ".npy"
"""End of the name of a file that holds all images, which training without Ray takes too."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_SIGNAL = 0.05
"""Share of the data's variance that may be left in x_T."""


def check_experiment(experiment: Experiment) -> None:
    """Raise `UserError` for settings that no run can have."""
    model, mcmc, train, optim = experiment.model, experiment.mcmc, experiment.train, experiment.optim
    levels, kind = experiment.diffusion.num_levels, "backbone of timm" if is_timm(model.network) else model.network
    pools = len(model.width_multipliers) - 1
    side = model.patch_size * 2**pools if model.is_built_in else 1
    of_patches = f" of patches of {model.patch_size}" if model.patch_size > 1 else ""
    resolutions = [model.resolution // max(1, model.patch_size) >> pool for pool in range(pools + 1)]
    rules: list[Rule] = [
        *import_path_rules(experiment),
        *condition_rules(experiment.condition),
        (
            "model.patch_size",
            model.patch_size,
            "1 for a wide_resnet, and a positive number for a unet",
            model.patch_size == 1 or (model.patch_size > 1 and model.network == "unet"),
        ),
        (
            "model.resolution",
            model.resolution,
            f"a positive multiple of {side} (one halving per level{of_patches})" + _nearest(model.resolution, side)
            if model.is_built_in
            else "positive",
            model.resolution > 0 and side > 0 and model.resolution % side == 0,
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
        (
            "model.attention_resolutions",
            model.attention_resolutions,
            f"none for a wide_resnet, and for a unet some of {', '.join(map(str, resolutions))}",
            set(model.attention_resolutions) <= (set(resolutions) if model.network == "unet" else set()),
        ),
        (
            "model.data_std",
            model.data_std,
            "none, or a positive number",
            model.data_std is None or 0 < model.data_std < math.inf,
        ),
        (
            "mcmc.energy_scale",
            mcmc.energy_scale,
            f"unit, since the output of a {kind} (model.network) is the log-density itself",
            mcmc.energy_scale == "unit" or not model.is_in_nats,
        ),
        ("diffusion.num_levels", levels, f"1 to {MAX_LEVELS}", 1 <= levels <= MAX_LEVELS),
        (
            "diffusion.first_variance and last_variance",
            (experiment.diffusion.first_variance, experiment.diffusion.last_variance),
            "0 < first <= last < 1",
            0 < experiment.diffusion.first_variance <= experiment.diffusion.last_variance < 1,
        ),
        (
            "diffusion.first_noise_to_signal and last_noise_to_signal",
            (experiment.diffusion.first_noise_to_signal, experiment.diffusion.last_noise_to_signal),
            "0 < first < last < infinity, or none",
            _is_rising(experiment.diffusion.first_noise_to_signal, experiment.diffusion.last_noise_to_signal),
        ),
        *chain_rules(experiment),
        (
            "optim.first_objective",
            optim.first_objective,
            f"none, or another one than optim.objective {optim.objective}",
            optim.first_objective != optim.objective,
        ),
        (
            "optim.first_objective_steps",
            optim.first_objective_steps,
            "0 without optim.first_objective, at least 1 with it",
            (optim.first_objective_steps >= 1) if optim.first_objective else (optim.first_objective_steps == 0),
        ),
        ("optim.switch_rate_factor", optim.switch_rate_factor, "a positive number", optim.switch_rate_factor > 0),
        (
            "optim.loss_weight",
            optim.loss_weight,
            f"none for recovery with a {kind} (model.network), whose log-density is in nats at every level",
            optim.loss_weight == "none" or not model.is_in_nats or not optim.needs_negatives,
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
        (
            "optim.final_rate_factor",
            optim.final_rate_factor,
            "a number in (0, 1]",
            0 < optim.final_rate_factor <= 1,
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


def memory_rules(engine: EngineConfig, model: ModelConfig, num_workers: int) -> list[Rule]:
    """The rules of how a step fits into memory."""
    is_sliced = engine.memory in ("slices", "checkpointing")
    found: list[Rule] = [
        (
            "engine.memory",
            engine.memory,
            f"another one for {model.network}, of which nobody knows what blocks it has",
            engine.memory != "checkpointing" or model.is_built_in,
        ),
        (
            "engine.memory_gib",
            engine.memory_gib,
            "none, or a positive number",
            engine.memory_gib is None or 0 < engine.memory_gib < math.inf,
        ),
        (
            "engine.shard",
            str(engine.shard).lower(),
            "false with one worker, which has nobody to share its state with",
            not engine.shard or num_workers > 1,
        ),
    ]
    for name in ("chain_images", "update_images"):
        images: int | None = getattr(engine, name)
        expected = "none, or at least 1" if is_sliced else f"none beside engine.memory {engine.memory}"
        found.append((f"engine.{name}", images, expected, images is None or (is_sliced and images >= 1)))
    return found


def _nearest(number: int, step: int) -> str:
    """The multiples around a number, for a message."""
    if step <= 0:
        return ""
    below = max(0, number) // step * step
    return f", such as {below} or {below + step}" if below > 0 else f", such as {step}"


def check_training(experiment: Experiment) -> None:
    """Raise `UserError` for what cannot be trained; a trained model may draw its samples in ways that none is trained
    in.
    """
    mcmc, optim = experiment.mcmc, experiment.optim
    if optim.needs_negatives and mcmc.start == "tweedie" and min(mcmc.chain_steps) == 0:
        name, given = chain_steps_field(mcmc)
        raise UserError(
            f"config field {name}",
            got=given,
            expected="at least 1 for recovery from the start tweedie, which the energy itself has no part in",
            remedy="correct the field",
        )
    steps = experiment.train.num_steps
    if optim.first_objective_steps >= steps:
        # The preset's own schedule is lost where its run is shortened; what is left of it is for the user to say.
        fewer = f"set optim.first_objective_steps to {3 * steps // 4 or 1} (three quarters of them), or "
        raise UserError(
            "config field optim.first_objective_steps",
            got=f"{optim.first_objective_steps} of the {counted(steps, 'step')} of train.num_steps",
            expected=f"fewer, since the rest is for optim.objective {optim.objective}",
            remedy=(fewer if steps > 1 else "") + f"raise train.num_steps above {optim.first_objective_steps}",
        )


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
    if diffusion.ladder == "geometric":
        if diffusion.last_noise_to_signal is None:
            return
        kept = 1 / (1 + diffusion.last_noise_to_signal)
        if kept > MAX_SIGNAL:
            raise UserError(
                "config field diffusion.last_noise_to_signal",
                got=f"{diffusion.last_noise_to_signal}, which leaves {kept:.0%} of the data's variance in x_T",
                expected=f"a ladder that ends in white noise (at most {MAX_SIGNAL:.0%})",
                remedy=f"raise diffusion.last_noise_to_signal to {1 / MAX_SIGNAL - 1:.0f} or more",
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


def _is_rising(first: float | None, last: float | None) -> bool:
    """Whether those that are given are positive and finite, and in this order."""
    given = [value for value in (first, last) if value is not None]
    return all(0 < value < math.inf for value in given) and (len(given) < 2 or given[0] < given[1])


def check_without_ray(run: RunConfig) -> None:
    """Raise `UserError` for what a run on one device, without Ray, cannot do; `check_run` has passed."""
    is_array = run.data.endswith(ARRAY_SUFFIX)
    rules: list[Rule] = [
        ("num_workers", run.num_workers, "1", run.num_workers == 1),
        ("min_workers", run.min_workers, "none", run.min_workers is None),
        ("max_rollbacks", run.max_rollbacks, "0", run.max_rollbacks == 0),
        ("loader.on_damage", run.loader.on_damage, "strict", run.loader.on_damage == "strict"),
        local_rule("storage", run.storage or None),
        (
            "loader.ledger_dir",
            run.loader.ledger_dir,
            f"none, for images in one {ARRAY_SUFFIX} file",
            run.loader.ledger_dir is None or not is_array,
        ),
        (
            "tracking.score_every_steps",
            run.tracking.score_every_steps,
            f"none, for images in one {ARRAY_SUFFIX} file",
            run.tracking.score_every_steps is None or not is_array,
        ),
    ]
    for name, got, expected, holds in rules:
        if not holds:
            raise UserError(
                f"config field {name} with --without-ray",
                got=got,
                expected=expected,
                remedy="correct the field, or train with Ray",
            )


def check_run(run: RunConfig, *, complete: bool = True) -> None:
    """Raise `UserError` for a run that cannot be started.

    Args:
        complete: also ask for the data, the run name and the storage, which a dry run may leave out.
    """
    check_training(run.experiment)
    rules: list[Rule] = [
        ("num_workers", run.num_workers, "at least 1", run.num_workers >= 1),
        (
            "min_workers",
            run.min_workers,
            f"none, or 1 to {run.num_workers} (num_workers)",
            run.min_workers is None or 1 <= run.min_workers <= run.num_workers,
        ),
        ("max_rollbacks", run.max_rollbacks, "0 or more", run.max_rollbacks >= 0),
        ("cpus_per_worker", run.cpus_per_worker, "at least 1", run.cpus_per_worker >= 1),
        (
            "checkpoint.every_steps",
            run.checkpoint.every_steps,
            "auto, or at least 1",
            run.checkpoint.every_steps == "auto" or run.checkpoint.every_steps >= 1,
        ),
        (
            "checkpoint.machine_lifetime_hours",
            run.checkpoint.machine_lifetime_hours,
            f"a positive number of hours, at most {MAX_LIFETIME_HOURS}",
            0 < run.checkpoint.machine_lifetime_hours <= MAX_LIFETIME_HOURS,
        ),
        (
            "checkpoint.keep",
            run.checkpoint.keep,
            # Nobody can say beforehand how many there will be.
            "at least 1 with checkpoint.every_steps auto"
            if run.checkpoint.every_steps == "auto"
            else "none, or at least 1",
            run.checkpoint.every_steps != "auto" if run.checkpoint.keep is None else run.checkpoint.keep >= 1,
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
        ("loader.decoded_mib", run.loader.decoded_mib, "0 or more", run.loader.decoded_mib >= 0),
        ("loader.max_substitutes", run.loader.max_substitutes, "0 or more", run.loader.max_substitutes >= 0),
        ("loader.cache_gib", run.loader.cache_gib, "a positive number", run.loader.cache_gib > 0),
        (
            "engine.threads_per_worker",
            run.engine.threads_per_worker,
            "none, or at least 1",
            run.engine.threads_per_worker is None or run.engine.threads_per_worker >= 1,
        ),
        *memory_rules(run.engine, run.experiment.model, run.num_workers),
        (
            "run_name",
            run.run_name,
            "letters, digits, '.', '_' and '-', beginning with a letter or a digit",
            not run.run_name or _NAME.fullmatch(run.run_name) is not None,
        ),
        (
            "model_name",
            run.model_name,
            "none, or letters, digits, '.', '_' and '-', beginning with a letter or a digit",
            run.model_name is None or _NAME.fullmatch(run.model_name) is not None,
        ),
    ]
    # What is missing is empty; it is refused below where it is needed.
    rules += [
        place_rule("data", run.data or None),
        place_rule("storage", run.storage or None),
        place_rule("start_from", run.start_from),
        local_rule("loader.cache_dir", run.loader.cache_dir),
        local_rule("loader.ledger_dir", run.loader.ledger_dir),
    ]
    for name, got, expected, holds in rules:
        if not holds:
            raise UserError(f"config field {name}", got=got, expected=expected, remedy="correct the field")
    batch_size = run.experiment.train.batch_size
    # Uneven shares, which any number between two cannot do without, make some workers wait.
    if (batch_size % run.num_workers) if run.min_workers is None else (batch_size < run.num_workers):
        raise UserError(
            "config field train.batch_size",
            got=f"{batch_size} for {counted(run.num_workers, 'worker')}",
            expected="a multiple of the number of workers" if run.min_workers is None else "an image for each worker",
            remedy="change one of the two",
        )
    missing = [name for name in ("data", "run_name", "storage") if not getattr(run, name)]
    if complete and missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise UserError(
            "command line", got=f"no {flags}", expected="--data, --run-name and --storage", remedy=f"add {flags}"
        )
