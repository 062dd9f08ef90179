"""The objectives of training: each a class that says what it needs, what it minimises and what it reports.

A new one is a class here, its row in `OBJECTIVES`, and its name in `drl_dist.config.tree.ObjectiveName` and
`drl_dist.config.tree.NEEDS_NEGATIVES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from drl_dist.build import build_levels
from drl_dist.common.errors import UserError, described
from drl_dist.config.from_data import known
from drl_dist.config.import_paths import imported, is_import_path, made
from drl_dist.config.tree import Experiment
from drl_dist.diffusion.ladder import NoiseLadder, Pairs
from drl_dist.diffusion.recovery import Levels, matching_loss, recovery_loss
from drl_dist.mcmc.kernel import column, root_mean_square
from drl_dist.training.chain import GradientEngine

LevelForward: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Images (B, C, H, W) and levels (B,) -> raw (B,), or its image gradient (B, C, H, W)."""


class Outcome(NamedTuple):
    """A loss, and numbers of each sample."""

    loss: Tensor
    """()"""
    reported: Mapping[str, Tensor]
    """(B,) each, without gradients, by the names of `Objective.reports`."""


class Objective(Protocol):
    """What a training step minimises."""

    needs_negatives: ClassVar[bool]
    """Whether it compares the data with the ends of chains; as `drl_dist.config.tree.NEEDS_NEGATIVES`."""
    needs_gradient: ClassVar[bool]
    """Whether its forward gives the image gradient of raw instead of raw."""
    is_mean: ClassVar[bool]
    """Whether the loss is the mean over the pairs of a number of each, which an update in slices takes advantage of.
    One of the user's own that does not say so is none."""
    reports: ClassVar[tuple[str, ...]]
    """Names of the numbers it reports of each sample; averages are logged as ``NAME/level_T``."""

    def __init__(self, experiment: Experiment, ladder: NoiseLadder) -> None: ...

    def outcome(self, forward: LevelForward, pairs: Pairs, y_neg: Tensor | None, here: Levels) -> Outcome:
        """The loss of a batch, and what is reported of it.

        Args:
            forward: images (B, C, H, W) and levels (B,) -> raw (B,), or its image gradient if the objective needs
                gradients; called once, with the pairs' levels or repetitions of them in the same order, and images that
                belong to these pairs.
            pairs: (B,) of them.
            y_neg: (B, C, H, W) ends of chains, or (2B, C, H, W) of which the second half are other draws for the same
                pairs; None for an objective without negatives.
            here: (B,) of the pairs' levels.
        """
        ...


class Forward(nn.Module):
    """The update's forward as a module, so that DDP can wrap it.

    Args:
        engine: of the network.
        is_gradient: give the image gradient of raw instead of raw.
    """

    def __init__(self, engine: GradientEngine, *, is_gradient: bool) -> None:
        super().__init__()
        self.network = engine.network
        self._engine, self._is_gradient = engine, is_gradient

    def forward(self, y: Tensor, level: Tensor, condition: Tensor | None = None) -> Tensor:
        """Raw (B,), or its gradient (B, C, H, W), at images (B, C, H, W), levels (B,) and labels (B, size)."""
        return (self._engine.gradient if self._is_gradient else self._engine.forward)(y, level, condition)


def with_labels(forward: nn.Module, condition: Tensor | None) -> LevelForward:
    """A forward of images and levels whose labels are those of the batch, again and again.

    Objectives know nothing of labels: the images that they give are those of the batch, or several batches of them.

    Args:
        forward: `Forward`, maybe wrapped by DDP.
        condition: (B, size) labels of the batch; None for energies of images alone.
    """
    if condition is None:
        return forward

    def labelled(y: Tensor, level: Tensor) -> Tensor:
        return forward(y, level, condition.repeat(len(level) // len(condition), 1))

    return labelled


class ByLevel:
    """Numbers of each level, copied once to the device where they are used, which would wait for each copy.

    Args:
        values: (T,) or (T+1,).
    """

    def __init__(self, values: Tensor) -> None:
        self.values = self._here = values

    def at(self, level: Tensor, like: Tensor) -> Tensor:
        """(B,) those of levels (B,), on the device and of the type of `like`."""
        if (self._here.device, self._here.dtype) != (like.device, like.dtype):
            self._here = self.values.to(like.device, like.dtype)
        return self._here[level]


class Recovery:
    """Minus the recovery log-likelihood, both ends of the chain in one forward (Algorithm 1).

    With ``mcmc.antithetic`` every pair has a second y_pos, opposite to the first, as it has a second y_neg.
    """

    needs_negatives: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = False
    is_mean: ClassVar[bool] = True
    reports: ClassVar[tuple[str, ...]] = ("log_density_pos", "log_density_neg", "log_density_gap", "displacement")

    def __init__(self, experiment: Experiment, ladder: NoiseLadder) -> None:
        self._is_antithetic = experiment.mcmc.antithetic

    def outcome(self, forward: LevelForward, pairs: Pairs, y_neg: Tensor | None, here: Levels) -> Outcome:
        """See `Objective.outcome`."""
        assert y_neg is not None
        y_pos = pairs.y_pos
        if self._is_antithetic:
            y_pos = torch.cat([y_pos, pairs.opposite_y_pos(column(1 / here.recovery_precision, y_pos))])
        draws = len(y_pos) // len(pairs.level)
        raw = forward(torch.cat([y_pos, y_neg]), pairs.level.repeat(2 * draws))
        raw_pos, raw_neg = (half.reshape(draws, -1).mean(0) for half in raw.chunk(2))
        positive, negative = raw_pos.detach() * here.energy_scale, raw_neg.detach() * here.energy_scale
        reported = {
            "log_density_pos": positive,
            "log_density_neg": negative,
            "log_density_gap": positive - negative,
            "displacement": root_mean_square(y_neg[: len(pairs.level)] - pairs.x_noisy).to(raw.dtype),
        }
        return Outcome(recovery_loss(raw_pos, raw_neg, here.loss_weight), reported)


NOISE_REPORTS = ("predicted_noise", "noise_error")
"""What objectives report whose gradients predict noise."""


class _Matching(ABC):
    """Squared distance between the log-density's gradient at x_noisy and a target.

    With ``loss_weight inverse_std`` a sample weighs cumulative_std_{t+1}**2 instead of sigma_{t+1}**2: the loss is then
    that of the noise predicted, -cumulative_std_{t+1} grad f, at every level.
    """

    needs_negatives: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = True
    is_mean: ClassVar[bool] = True
    reports: ClassVar[tuple[str, ...]] = NOISE_REPORTS

    def __init__(self, experiment: Experiment, ladder: NoiseLadder) -> None:
        self._std, self._is_equal = ByLevel(ladder.cumulative_std), experiment.optim.loss_weight == "inverse_std"

    def outcome(self, forward: LevelForward, pairs: Pairs, y_neg: Tensor | None, here: Levels) -> Outcome:
        """See `Objective.outcome`."""
        gradient = column(here.energy_scale, pairs.x_noisy) * forward(pairs.x_noisy, pairs.level)
        std = self._std.at(pairs.level + 1, gradient)
        weight = std.square() if self._is_equal else 1 / here.recovery_precision
        loss = matching_loss(gradient, self._target(pairs, here), weight)
        return Outcome(loss, _noise_report(gradient, pairs.score, std))

    @abstractmethod
    def _target(self, pairs: Pairs, here: Levels) -> Tensor:
        """(B, C, H, W) what the gradient of the log-density at x_noisy should be."""


class NormalLikelihood(_Matching):
    """Minus the log-likelihood of the normal approximation, without negatives (equation 37)."""

    def _target(self, pairs: Pairs, here: Levels) -> Tensor:
        return (pairs.y_pos - pairs.x_noisy) * column(here.recovery_precision, pairs.x_noisy)


class DenoisingScoreMatching(_Matching):
    """Denoising score matching, the score being the log-density's gradient (equation 14)."""

    def _target(self, pairs: Pairs, here: Levels) -> Tensor:
        return pairs.score


class ScoreMatching:
    """Denoising score matching of y_t itself, where chains move, instead of x_{t+1}.

    It is exact on any ladder, also with large transitions, and at a marginal top level. With s the standard deviation
    of the noise in y_t, an error of the noise predicted, -s grad f, weighs the same at every level; for a unet, an
    error of its output h, which is of order one: (v + s**2) / v times as much, with v the variance of the data in y_t.
    """

    needs_negatives: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = True
    is_mean: ClassVar[bool] = True
    reports: ClassVar[tuple[str, ...]] = NOISE_REPORTS

    def __init__(self, experiment: Experiment, ladder: NoiseLadder) -> None:
        scale, model = build_levels(experiment, ladder).transition_scale, experiment.model
        std = ladder.noise_in_y(scale)
        weight = std.square()
        if model.is_in_nats:
            signal = known(model.data_std, "model.data_std") * ladder.signal_in_y(scale)
            weight = weight * (1 + (std / signal).square())
        self._std, self._weight = ByLevel(std), ByLevel(weight)

    def outcome(self, forward: LevelForward, pairs: Pairs, y_neg: Tensor | None, here: Levels) -> Outcome:
        """See `Objective.outcome`."""
        gradient = column(here.energy_scale, pairs.y_pos) * forward(pairs.y_pos, pairs.level)
        std, weight = (values.at(pairs.level, gradient) for values in (self._std, self._weight))
        loss = matching_loss(gradient, pairs.y_score, weight)
        return Outcome(loss, _noise_report(gradient, pairs.y_score, std))


def _noise_report(gradient: Tensor, score: Tensor, std: Tensor) -> dict[str, Tensor]:
    """How large the noise is that the log-density's gradient predicts, and how far it is from the noise that there is.

    Args:
        gradient: (B, C, H, W) of the log-density.
        score: (B, C, H, W) of the noise's density.
        std: (B,) of the noise.
    """
    predicted, noise = (-values.detach() * column(std, gradient) for values in (gradient, score))
    return {"predicted_noise": root_mean_square(predicted), "noise_error": root_mean_square(predicted - noise)}


OBJECTIVES: Mapping[str, type[Objective]] = {
    "recovery": Recovery,
    "normal_likelihood": NormalLikelihood,
    "dsm": DenoisingScoreMatching,
    "score_matching": ScoreMatching,
}
"""The objectives by their names in ``optim.objective``."""


def make_objective(name: str, experiment: Experiment, ladder: NoiseLadder) -> Objective:
    """The objective of a name: built in, or of the user's own.

    Raises:
        UserError: it cannot be imported or made, is no objective, or has no use for the experiment's chains.
    """
    if not is_import_path(name):
        return OBJECTIVES[name](experiment, ladder)
    # Either field: the message names what it was given.
    field = "optim.objective" if name == experiment.optim.objective else "optim.first_objective"
    offered = {"experiment": experiment, "ladder": ladder}
    given = made(imported(name, field), name, field, offered, {})
    # Of the protocol but for its constructor, which nobody calls any more.
    return cast(Objective, CheckedObjective(given, name, field, experiment))


class CheckedObjective:
    """An objective of the user's, whose first outcome is looked at.

    Args:
        objective: as the user's class made it.
        name, field: what the config calls it, and where.
        experiment: whose chains it may need.

    Raises:
        UserError: it lacks something.
    """

    def __init__(self, objective: Any, name: str, field: str, experiment: Experiment) -> None:
        self._objective, self._name, self._field, self._is_checked = objective, name, field, False
        wanted = {
            "needs_negatives": lambda value: isinstance(value, bool),
            "needs_gradient": lambda value: isinstance(value, bool),
            "reports": lambda value: isinstance(value, tuple) and all(isinstance(one, str) for one in value),
            "outcome": callable,
        }
        if lacking := [one for one, holds in wanted.items() if not holds(getattr(objective, one, None))]:
            raise self._refusal(
                f"without {' and '.join(lacking)}",
                "needs_negatives and needs_gradient, true or false, reports, a tuple of names, and outcome",
            )
        self.needs_negatives: bool = objective.needs_negatives
        self.needs_gradient: bool = objective.needs_gradient
        self.is_mean = bool(getattr(objective, "is_mean", False))
        self.reports: tuple[str, ...] = objective.reports
        if self.needs_negatives and experiment.mcmc.start == "tweedie" and min(experiment.mcmc.chain_steps) == 0:
            raise self._refusal("which needs negatives, with chains of no step", "mcmc.num_chain_steps of at least 1")

    def outcome(self, forward: LevelForward, pairs: Pairs, y_neg: Tensor | None, here: Levels) -> Outcome:
        """See `Objective.outcome`.

        Raises:
            UserError: the first outcome is none.
        """
        if self._is_checked:
            return self._objective.outcome(forward, pairs, y_neg, here)
        try:
            loss, reported = self._objective.outcome(forward, pairs, y_neg, here)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as error:
            raise self._refusal(f"whose outcome raises {described(error)}", "a loss and what is reported") from error
        if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
            got = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{type(loss).__name__}"
            raise self._refusal(f"whose loss is {got}", "a number with gradients to the parameters, of shape ()")
        shapes = {one: tuple(value.shape) for one, value in reported.items()}
        if shapes != dict.fromkeys(self.reports, (len(pairs.level),)):
            raise self._refusal(
                f"which reports {shapes}",
                f"{', '.join(self.reports) or 'nothing'}, each of shape ({len(pairs.level)},)",
            )
        self._is_checked = True
        return Outcome(loss, reported)

    def _refusal(self, got: str, expected: str) -> UserError:
        return UserError(
            f"config field {self._field}", got=f"{self._name}, {got}", expected=expected, remedy="correct the class"
        )
