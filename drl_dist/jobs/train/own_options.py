"""The options of ``jobs/train.py``: a run for any images, from rules of thumb, a preset, a file, or a run that exists.

What the options begin from is known before they are understood, as the preset of ``jobs/train_*.py`` is.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from drl_dist.common.amounts import counted
from drl_dist.common.errors import UserError
from drl_dist.common.nested import completed, differences, flatten, to_dict
from drl_dist.common.validation import file_of, place_rule, refuse_broken
from drl_dist.config.import_paths import NETWORKS, check_allowed
from drl_dist.config.own_data import experiment_for
from drl_dist.config.presets import FIRST_STEPS, SETTINGS, TABLE_6, preset
from drl_dist.config.rules import ARRAY_SUFFIX, check_run, check_without_ray
from drl_dist.config.tree import Experiment, RunConfig
from drl_dist.jobs.common.entry import run_command
from drl_dist.jobs.common.options import parse_options
from drl_dist.jobs.train.model_name import model_name_for
from drl_dist.jobs.train.options import (
    ExperimentOptions,
    TrainOptions,
    Wanted,
    chosen_fields,
    early_option,
    early_text,
    plain,
    plain_run,
    setting_option,
    shortened,
    split_workers,
    starts_nothing,
    tell_estimate,
    tell_what_is_left,
    train_wanted,
)

DESCRIPTION = (
    "Train by diffusion recovery likelihood on images of your own; the same --run-name resumes. Unless --preset, "
    "--config or --resume is given, the defaults are rules of thumb for the size and number of the images in --data "
    "(here: 50,000 colour images of 64 pixels; docs/training.md)."
)
MAY_CHANGE = (
    "data",
    "num_workers",
    "min_workers",
    "max_rollbacks",
    "use_gpu",
    "cpus_per_worker",
    "spare_processes",
    "without_ray",
)
"""Options that may be given with ``--resume``, by the names of their fields."""
PARTS_THAT_MAY_CHANGE = ("engine.", "loader.", "checkpoint.", "tracking.")
LENGTH = "experiment.train.num_steps"
"""A run may be made longer."""


@dataclass(frozen=True, kw_only=True)
class OwnOptions(TrainOptions):
    """A run's fields as options, and what they begin from."""

    setting: str = "unet"
    """unet, or one of the paper, t6, t1k, t1k_dsm or t1: each is a set of defaults (docs/training.md)."""
    preset: str | None = None
    """Begin from a preset instead of the rules of thumb: a row of Table 6, digits or fashion_mnist."""
    config: str | None = None
    """YAML or JSON file of fields, as --dry-run prints them; options given beside it override it."""
    resume: str | None = None
    """Folder of a run, STORAGE/RUN_NAME, to go on with: everything is read from there. Only --data, --train.num-steps
    and options of the machine may be given beside it."""
    allow_code: tuple[str, ...] = ()
    """Import paths, MODULE:NAME, of a network, kernel or objective that is not part of drl_dist, which the run of
    --resume may import (docs/own_parts.md)."""


def parse_own_options(argv: Sequence[str]) -> tuple[RunConfig, OwnOptions]:
    """The run that the command describes, and all of its options.

    Args:
        argv: the command's arguments.

    Raises:
        UserError: an option, a file, a run or a combination of values that no run can have, or data that are not there.
        SystemExit: ``--help`` was asked for.
    """
    argv = split_workers(argv)
    sources = [early_text(argv, option) for option in ("--data", "--preset", "--config", "--resume")]
    if {"-h", "--help"} & set(argv) or not any(sources):
        # Help, or perhaps a mistyped option, which is what the message is to be about.
        experiment = experiment_for(resolution=64, channels=3, num_images=50_000)
        parse_options(OwnOptions, _options(RunConfig(experiment=experiment)), argv, description=DESCRIPTION)
    resume = early_text(argv, "--resume")
    begun = _base(argv) if resume is None else _resumed(argv, resume)
    options = parse_options(OwnOptions, begun, argv, description=DESCRIPTION)
    options = dataclasses.replace(options, dry_run=starts_nothing(options))
    run = plain_run(options)
    if resume is None:
        run = shortened(run, plain(Experiment, begun.experiment), argv)
    if resume is not None:
        _check_resumed(begun, options)
        if run.experiment.train.num_steps != begun.experiment.train.num_steps:
            _check_length(resume, run.experiment)
    elif run.model_name is None:
        run = dataclasses.replace(run, model_name=model_name_for(run.data, run.run_name))
    check_run(run, complete=not options.dry_run)
    if options.without_ray:
        check_without_ray(run)
    elif run.data.endswith(ARRAY_SUFFIX):
        raise UserError(
            f"data {run.data}",
            got="one file of images",
            expected="a folder of shards, which Ray's workers share",
            remedy="add --without-ray, or prepare shards with python -m datasets_prep.folder",
        )
    return run, options


def own_train_command() -> NoReturn:
    """The program ``jobs/train.py``."""

    def parse(argv: Sequence[str]) -> tuple[Wanted, bool]:
        run, options = parse_own_options(argv)
        if options.dry_run:
            tell_what_is_left(run.experiment)
            tell_estimate(run, options)
        return (run, options.without_ray, (*chosen_fields(argv), *_chosen_in_file(run, options))), options.dry_run

    run_command(parse, train_wanted, as_json=lambda wanted: to_dict(wanted[0]))


def _chosen_in_file(run: RunConfig, options: OwnOptions) -> tuple[str, ...]:
    """What `chosen_fields` would find if the fields of a config were on the command line."""
    if options.config is None:
        return ()
    given = flatten(_values_of(options.config))
    # Where --train.num-steps beside it makes the run shorter, it has been changed.
    is_chosen = given.get(f"experiment.{FIRST_STEPS}") == run.experiment.optim.first_objective_steps
    return (FIRST_STEPS,) if is_chosen else ()


def _options(run: RunConfig, **more: Any) -> OwnOptions:
    fields: dict[str, Any] = {field.name: getattr(run, field.name) for field in dataclasses.fields(RunConfig)}
    fields["experiment"] = plain(ExperimentOptions, run.experiment)
    return OwnOptions(**(fields | more))


def _base(argv: Sequence[str]) -> OwnOptions:
    """What options of a new run begin from."""
    config = early_text(argv, "--config")
    name = early_option(argv, "--preset", list(TABLE_6)) if early_text(argv, "--preset") is not None else None
    setting = early_option(argv, "--setting", ["unet", *(other for other in SETTINGS if other != "unet")])
    if name is not None:
        setting = setting_option(argv, name)
    values = {} if config is None else _values_of(config)
    given = values.get("experiment", {})
    if config is not None and isinstance(given, dict) and not _is_partial(given):
        for option in ("--preset", "--setting"):
            if early_text(argv, option) is not None:
                raise UserError(
                    f"option {option}",
                    got=f"{early_text(argv, option)} beside a config with all fields of an experiment",
                    expected="one of the two",
                    remedy=f"leave out {option} or --config",
                )
        experiment = Experiment(preset="")
    elif name is not None:
        experiment = preset(name, setting)
    else:
        in_file = values.get("data")
        data = early_text(argv, "--data") or (in_file if isinstance(in_file, str) else "")
        network = early_text(argv, "--model.network") or _network_in(given)
        experiment = _experiment_of(
            data, setting, is_partial=config is not None, is_built_in=network is None or network in NETWORKS
        )
    run = RunConfig(experiment=experiment)
    if config is not None:
        from drl_dist.checkpoints.configs import config_from_dict

        run = config_from_dict(RunConfig, completed(values, to_dict(run)), source=f"config {config}")
    return _options(run, setting=setting, preset=name, config=config)


def _network_in(experiment: object) -> str | None:
    """The network that a partial config chooses, if it does."""
    model = experiment.get("model") if isinstance(experiment, dict) else None
    network = model.get("network") if isinstance(model, dict) else None
    return network if isinstance(network, str) else None


def _experiment_of(data: str, setting: str, *, is_partial: bool, is_built_in: bool) -> Experiment:
    """What the rules of thumb give the images of a folder or file."""
    if not data:
        raise UserError(
            "command line",
            got="a --config without some fields, and neither --data nor --preset" if is_partial else "no --data",
            expected="the data, a --preset or a --config with all fields of an experiment to begin from, or --resume",
            remedy="add --data URL",
        )
    refuse_broken([place_rule("--data", data)])
    if data.endswith(ARRAY_SUFFIX):
        from drl_dist.data.pixels.array_file import array_shape

        num_images, channels, resolution, width = array_shape(data)
        if resolution != width:
            raise UserError(
                f"data {data}",
                got=f"images of {width}x{resolution} pixels",
                expected="square ones",
                remedy="crop them",
            )
    else:
        from drl_dist.data.index import open_index

        index = open_index(data, check_shards=False)
        num_images, channels, resolution = index.num_samples, index.channels, index.resolution
    return experiment_for(
        resolution=resolution, channels=channels, num_images=num_images, setting=setting, is_built_in=is_built_in
    )


def _values_of(config: str) -> dict[str, Any]:
    """The fields in a file, each of a name that exists."""
    from drl_dist.data.filesystem import Folder
    from drl_dist.jobs.common.settings_text import SettingsTextError, from_file

    folder, name = file_of(config, "option --config")
    try:
        values = from_file(Folder(folder).read(name))
    except (OSError, SettingsTextError) as error:
        raise UserError(
            "option --config",
            got=f"{config}: {' '.join(str(error).split())[:200]}",
            expected="a YAML or JSON file of fields, as --dry-run prints them",
            remedy="correct the option or the file",
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"config {config}",
            got="no fields",
            expected="fields by their names, as --dry-run prints them",
            remedy="correct the file",
        )
    known = to_dict(RunConfig(experiment=Experiment(preset="")))
    if (unknown := _unknown(values, known)) is not None:
        nearest = _nearest(unknown, known)
        raise UserError(
            f"config {config}, field {unknown}",
            got="no such field",
            expected="a field of the config, as --dry-run prints them",
            remedy=f"did you mean {nearest}? Correct the file" if nearest else "correct the file",
        )
    return values


def _unknown(values: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first field, by its dotted name, that does not exist."""
    for name, value in values.items():
        if name not in known:
            return prefix + name
        if isinstance(value, dict) and isinstance(known[name], dict):
            inner = _unknown(value, known[name], f"{prefix}{name}.")
            if inner is not None:
                return inner
    return None


def _nearest(name: str, known: dict[str, Any]) -> str | None:
    sections = [f"experiment.{section}" for section in known["experiment"]]
    names = [*known, *sections, *flatten(known)]
    # A section of an experiment that stands where the experiment should.
    if f"experiment.{name}" in names:
        return f"experiment.{name}"
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return found[0] if found else None


def _is_partial(experiment: dict[str, Any]) -> bool:
    """Whether a field lacks that would have to come from elsewhere."""
    return not flatten(to_dict(Experiment(preset=""))).keys() <= flatten(experiment).keys()


def _resumed(argv: Sequence[str], url: str) -> OwnOptions:
    """What options of a run that exists begin from: all that its folder says."""
    for option in ("--preset", "--config", "--setting"):
        if early_text(argv, option) is not None:
            raise UserError(
                f"option {option}",
                got=f"{early_text(argv, option)} beside --resume",
                expected="nothing that the run itself says",
                remedy=f"leave out {option}",
            )
    refuse_broken([place_rule("--resume", url)])
    from drl_dist.checkpoints.run_config import stored_run

    stored = stored_run(url)
    if not stored.run.data and early_text(argv, "--data") is None:
        raise UserError(
            f"run {url}",
            got="no record of its data, as runs of earlier versions have none",
            expected="--data beside --resume",
            remedy="add --data URL",
        )
    return _options(stored.run, without_ray=stored.without_ray, resume=url)


def _check_resumed(begun: OwnOptions, options: OwnOptions) -> None:
    """Raise `UserError` for options that are no machine's, or a run that would import code that was not allowed."""
    check_allowed(begun.experiment, options.allow_code, f"run {begun.resume}")
    may_change = {*MAY_CHANGE, LENGTH, "dry_run", "estimate", "tflops", "allow_code"}
    if begun.model_name is None:
        # A run of an earlier version, which recorded none.
        may_change.add("model_name")
    names = [line.partition(":")[0] for line in differences(to_dict(begun), to_dict(options))]
    changed = [name for name in names if name not in may_change and not name.startswith(PARTS_THAT_MAY_CHANGE)]
    if changed:
        flags = ", ".join("--" + name.removeprefix("experiment.").replace("_", "-") for name in changed)
        raise UserError(
            "option --resume",
            got=f"{flags} beside it, with other values than the run has",
            expected="options of the machine alone, --data and --train.num-steps",
            remedy="leave the others out, or begin another run with --start-from",
        )


def _check_length(url: str, experiment: Experiment) -> None:
    """Raise `UserError` for another number of steps than before that is less than the run has made, or no more than its
    first objective has."""
    from drl_dist.checkpoints.storage import newest_checkpoint

    steps, first = experiment.train.num_steps, experiment.optim.first_objective_steps
    newest = newest_checkpoint(url)
    expected = ""
    if newest is not None and steps < newest.step:
        expected = f"at least the {counted(newest.step, 'step')} that the run has made"
    elif steps <= first:
        expected = f"more than the {counted(first, 'step')} of its first objective, {experiment.optim.first_objective}"
    if expected:
        raise UserError(
            "option --train.num-steps",
            got=f"{steps} beside --resume",
            expected=expected,
            remedy="leave it out, or give more to make the run longer",
        )
