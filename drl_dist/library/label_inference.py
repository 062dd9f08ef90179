"""Labels of images by Bayes' rule over a model's energies, as ``jobs/classify.py`` infers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.images import to_unit_range
from drl_dist.common.progress import progress
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.library.arguments import refuse
from drl_dist.library.engine import check_finite, fixed_sums
from drl_dist.library.images import given_attributes, given_classes
from drl_dist.likelihood.bayes import Constants, default_level, fit_constants, label_energies, levels_to_try
from drl_dist.likelihood.calibration import Answers, LabelScores, most_telling
from drl_dist.likelihood.questions import Questions, check_seen, questions_of

if TYPE_CHECKING:
    from drl_dist.config.tree import Experiment
    from drl_dist.energy.network import EnergyNetwork


@dataclass(frozen=True)
class LabelConstants:
    """What makes the energies of labels comparable, as `drl_dist.Model.fit_constants` finds it."""

    level: int
    """Noise level of the energies, from 0."""
    names: tuple[str, ...]
    """Of the classes, or of the attributes that are asked for."""
    known: tuple[str, ...]
    """Attributes that are known of every image."""
    values: Constants
    """log p(c) - log Z_t(c) and the inverse temperature."""

    @property
    def inverse_temperature(self) -> float | dict[str, float]:
        """Of the class, or of each attribute by name; 1 for energies that are log-densities."""
        beta = self.values.beta.tolist()
        return beta[0] if len(self.values.beta) == 1 else dict(zip(self.names, beta, strict=True))


@dataclass(frozen=True)
class LabelInference:
    """Questions about images, and a network that answers them.

    Args:
        network: with labels, on the device where it computes.
        experiment: it was trained by.
        questions: what is asked.
        seed: keys the noise.
        num_draws: of the noise of each image.
        batch_size: images that are computed together.
    """

    network: EnergyNetwork
    experiment: Experiment
    questions: Questions
    seed: int
    num_draws: int
    batch_size: int

    def energies(self, images: Tensor, labels: Tensor, level: int) -> Tensor:
        """(N, Q, K) float64.

        Args:
            images: uint8 (N, C, H, W).
            labels: what is known of them, as `drl_dist.common.batch.Batch.labels`.
            level: from 0.

        Raises:
            UserError: an energy is not finite.
        """
        device, noise = self.network.device, PhiloxNoise(self.seed)
        ladder = build_ladder(self.experiment.diffusion)
        levels = build_levels(self.experiment, ladder)
        found: list[Tensor] = []
        with fixed_sums(), progress(f"energies at level {level}", len(images), 0, "images") as advance:
            for ids in torch.arange(len(images)).split(self.batch_size):
                values = label_energies(
                    self.network,
                    ladder,
                    levels,
                    noise,
                    to_unit_range(images[ids.to(images.device)].to(device)),
                    ids.to(device),
                    level,
                    self.questions.conditions(labels[ids]),
                    num_draws=self.num_draws,
                )
                check_finite(values, "energies", expected="finite numbers", remedy="use an earlier checkpoint")
                found.append(values)
                advance(len(ids))
        return self.questions.energies(torch.cat(found))

    def default_level(self) -> int:
        """The level that is asked where nothing else is known."""
        return default_level(build_ladder(self.experiment.diffusion), self.experiment.model.data_std)

    def fit(self, images: Tensor, labels: Tensor, level: int | None) -> LabelConstants:
        """The constants of maximum likelihood, at a level or at that of several which tells most of the images rightly.

        Raises:
            UserError: an energy is not finite, or no image has some label.
        """
        answers = self.questions.answers(labels)
        check_seen(self.questions, answers, "argument labels", "add images with it, or classify without constants")
        tried = [level] if level is not None else levels_to_try(self.experiment.diffusion.num_levels)
        fits: dict[int, Constants] = {}
        scores: list[tuple[int, LabelScores | None]] = []
        for t in tried:
            energies = self.energies(images, labels, t)
            fits[t] = fit_constants(energies, answers, with_temperature=True)
            scores.append((t, Answers(fits[t].log_posterior(energies), answers).scores()))
        best = most_telling(scores)
        names, known = self.questions.asked_names, self.questions.given
        return LabelConstants(best, tuple(names), tuple(self.questions.names[place] for place in known), fits[best])

    def probabilities(self, images: Tensor, labels: Tensor, constants: LabelConstants | None, level: int) -> Tensor:
        """(N, C) of classes, or (N, A) that attributes are true."""
        values = Constants.equal(*self.questions.shape) if constants is None else constants.values
        found = values.log_posterior(self.energies(images, labels, level)).exp()
        return found[:, 0] if self.questions.is_class else found[..., 1]


def asked_of(experiment: Experiment, known: Sequence[str]) -> Questions:
    """What can be asked of a model's images where some attributes are known.

    Raises:
        UserError: the model knows no labels, or not these.
    """
    return questions_of(experiment.condition, tuple(map(str, known)), "the model", "argument known")


def labels_given(experiment: Experiment, labels: object, count: int) -> Tensor:
    """A user's labels as `drl_dist.common.batch.Batch.labels`.

    Raises:
        UserError: they are none of the model.
    """
    condition = experiment.condition
    if condition.kind == "class":
        return given_classes(labels, count=count, num_classes=condition.size)
    return given_attributes(labels, shape=(count, condition.size))


def labels_known(experiment: Experiment, known: Mapping[str, object], count: int) -> Tensor:
    """What is known of images, as `drl_dist.common.batch.Batch.labels`.

    Args:
        known: values of attributes by name: one for all images or (count,), bool, or 1, -1 and 0.

    Raises:
        UserError: they are of another type or number.
    """
    condition = experiment.condition
    if condition.kind == "class":
        return torch.full((count,), -1)
    found = torch.zeros(count, condition.size, dtype=torch.int64)
    for name, values in known.items():
        place = condition.names.index(name)
        found[:, place] = given_attributes(values, shape=(count,), what=f"argument known, {name}")
    return found


def check_constants(constants: object, questions: Questions) -> LabelConstants | None:
    """The constants, if they are of these questions.

    Raises:
        UserError: they are not.
    """
    if constants is None:
        return None
    if not isinstance(constants, LabelConstants):
        refuse("constants", type(constants).__name__, "what fit_constants returns, or None")
    known = tuple(questions.names[place] for place in questions.given)
    if (list(constants.names), set(constants.known)) != (questions.asked_names, set(known)):
        refuse("constants", _shown(constants.names, constants.known), _shown(questions.asked_names, known))
    return constants


def _shown(names: Sequence[str], known: Sequence[str]) -> str:
    return f"those of {', '.join(names)}" + (f" with {', '.join(known)} known" if known else "")
