"""Networks, kernels and objectives of one's own, named in a config by import path: ``my_package.nets:Mine``.

What a config names is imported when it is built, and checked by its syntax alone before. A config that comes with a
checkpoint or a saved model is not the user's own: loading imports nothing that it names unless that was allowed.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drl_dist.common.errors import UserError, described

if TYPE_CHECKING:
    # The tree checks itself with these rules when it is made.
    from drl_dist.config.chain_rules import Rule
    from drl_dist.config.tree import Experiment

TIMM = "timm:"
_TIMM_NAME = re.compile(r"timm:[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
NETWORKS, KERNELS = ("wide_resnet", "unet"), ("langevin", "leimkuhler_matthews")
NEEDS_NEGATIVES: dict[str, bool] = {
    "recovery": True,
    "normal_likelihood": False,
    "dsm": False,
    "score_matching": False,
}
"""Whether an objective that is built in compares the data with the ends of chains; each is a class in
`drl_dist.training.objectives`, which cannot be imported here, for commands check their options before torch is there.
These names and those above are the ones of the types in `drl_dist.config.tree`, which is made from this module."""
FORM = "MODULE:NAME of your own"


def is_timm(name: str) -> bool:
    """Whether a network is one of timm's."""
    return _TIMM_NAME.fullmatch(name) is not None


def is_import_path(name: str) -> bool:
    """Whether a name is an import path, not that of something built in."""
    return not name.startswith(TIMM) and _PATH.fullmatch(name) is not None


def import_paths(experiment: Experiment) -> dict[str, str]:
    """The import paths that a config names, by their fields."""
    mcmc, optim = experiment.mcmc, experiment.optim
    named = {
        "model.network": experiment.model.network,
        "mcmc.kernel": mcmc.kernel,
        "mcmc.sampling_kernel": mcmc.sampling_kernel,
        "optim.objective": optim.objective,
        "optim.first_objective": optim.first_objective,
    }
    return {field: path for field, path in named.items() if path is not None and is_import_path(path)}


def import_path_rules(experiment: Experiment) -> list[Rule]:
    """The rules on names for an experiment."""
    model, mcmc, optim = experiment.model, experiment.mcmc, experiment.optim
    is_built_in = model.network in NETWORKS
    kernels, known = ", ".join(KERNELS), ", ".join(NEEDS_NEGATIVES)
    return [
        (
            "model.network",
            model.network,
            f"{', '.join(NETWORKS)}, timm:NAME, or {FORM}",
            is_built_in or is_timm(model.network) or is_import_path(model.network),
        ),
        (
            "model.options",
            model.options,
            "{} for a built-in network" if is_built_in else 'a JSON object such as {"width": 32}',
            model.options == "{}" or (not is_built_in and _is_object(model.options)),
        ),
        (
            "mcmc.kernel",
            mcmc.kernel,
            f"{kernels}, or {FORM}",
            mcmc.kernel in KERNELS or is_import_path(mcmc.kernel),
        ),
        (
            "mcmc.sampling_kernel",
            mcmc.sampling_kernel,
            f"none, {kernels}, or {FORM}",
            mcmc.sampling_kernel in (None, *KERNELS) or is_import_path(mcmc.sampling_kernel),
        ),
        (
            "optim.objective",
            optim.objective,
            f"{known}, or {FORM}",
            optim.objective in NEEDS_NEGATIVES or is_import_path(optim.objective),
        ),
        (
            "optim.first_objective",
            optim.first_objective,
            f"none, {known}, or {FORM}",
            optim.first_objective in (None, *NEEDS_NEGATIVES) or is_import_path(optim.first_objective),
        ),
    ]


def check_allowed(experiment: Experiment, allowed: Collection[str], source: str) -> None:
    """Return if all that a config from elsewhere would import was allowed.

    Args:
        allowed: import paths.
        source: where the config comes from.

    Raises:
        UserError: some is not; nothing was imported.
    """
    missing = sorted({path for path in import_paths(experiment).values() if path not in allowed})
    if missing:
        flags, listed = " ".join(missing), ", ".join(map(repr, missing))
        raise UserError(
            source,
            got=f"{' and '.join(missing)}, code that is not part of drl_dist",
            expected="a model whose code was allowed",
            remedy=f"if you trust it, give --allow-code {flags}, or allow_code=[{listed}] in Python",
        )


def imported(path: str, field: str) -> Callable[..., Any]:
    """What an import path names.

    Args:
        path: MODULE:NAME.
        field: of the config that names it, for messages.

    Raises:
        UserError: the module cannot be imported, or holds nothing of this name that can be called.
    """
    module, _, name = path.partition(":")
    _see_working_directory()
    try:
        value = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise _not_found(field, path, error.name or module) from error
    except Exception as error:
        # Whatever a module of the user's raises, it is that module's fault.
        raise UserError(
            f"config field {field}",
            got=f"{path}, whose module raises {described(error)}",
            expected="a module that can be imported",
            remedy=f"try python -c 'import {module}'",
        ) from error
    if not callable(value):
        got = "which has no such name" if value is None else f"which is of type {type(value).__name__}"
        raise UserError(
            f"config field {field}",
            got=f"{name} of module {module}, {got}",
            expected="a class or a function",
            remedy="correct the name behind the colon",
        )
    return value


def made(maker: Callable[..., Any], path: str, field: str, offered: dict[str, Any], options: dict[str, Any]) -> Any:
    """What a class or a function of the user's makes.

    Args:
        maker: from `imported`.
        path, field: as of `imported`, for messages.
        offered: arguments of which it gets those that it names.
        options: further arguments, all of which it gets.

    Raises:
        UserError: it does not take its arguments, or raises.
    """
    try:
        # By name alone: a class without a constructor of its own seems to take anything.
        known = {name: offered[name] for name in inspect.signature(maker).parameters if name in offered}
        return maker(**(known | options))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"config field {field}",
            got=f"{path}, which raises {described(error)}",
            expected=f"a class whose arguments are some of {', '.join(offered)}"
            + (", and those of model.options" if field == "model.network" else ""),
            remedy="correct the class or its options",
        ) from error


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _see_working_directory() -> None:
    """Let imports find modules of the working directory, behind all else, as a script in it would and Ray's workers
    do."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def _not_found(field: str, path: str, module: str) -> UserError:
    return UserError(
        f"config field {field}",
        got=f"{path}, for which there is no module {module}",
        expected="a module that can be imported",
        remedy="start from the folder that holds it, put that on PYTHONPATH, or submit it with the job's --working-dir",
    )
