"""A trained model that says how probable images and their labels are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from drl_dist.common.progress import progress
from drl_dist.library.arguments import check, noise_of, whole
from drl_dist.library.engine import check_finite, fixed_sums
from drl_dist.library.held import HeldModel
from drl_dist.library.images import Images, given_images
from drl_dist.library.label_inference import (
    LabelConstants,
    LabelInference,
    asked_of,
    check_constants,
    labels_given,
    labels_known,
)
from drl_dist.library.log_density import log_densities
from drl_dist.likelihood.trust import model_warnings


class ScoringModel(HeldModel):
    """Log-densities and labels of images; arguments as of `HeldModel`."""

    def log_density(self, images: Images, *, level: int = 0, seed: int = 0, batch_size: int = 64) -> Tensor:
        """f(y_t, t) of images, in nats up to a constant of the level; float64 (N,) on the CPU.

        y_t is the image with the noise of the level, whose draw the seed and the image's place key. At level 0, the
        least noise, they are the log-densities of ``jobs/ood.py``. A model whose energies are too sharp to be
        densities gives a `UserWarning`.

        Args:
            images: (N, C, H, W) or (N, H, W).
            level: t, from 0 to T - 1.
            seed: keys the noise.
            batch_size: images that are computed together.

        Raises:
            UserError: an argument cannot be used, or a log-density is not finite.
        """
        given, noise = given_images(images, shape=self.image_shape), noise_of(seed)
        level = self._level(level)
        batch_size = whole("batch_size", batch_size, "at least 1", 1)
        self._warn()
        values: list[Tensor] = []
        with fixed_sums(), progress("log-densities", len(given), 0, "images") as advance:
            for ids in torch.arange(len(given), device=self.device).split(batch_size):
                batch = given[ids.to(given.device)].to(self.device)
                values.append(log_densities(self.network, self._experiment, noise, batch, ids, level))
                advance(len(ids))
        found = torch.cat(values)
        check_finite(found, "log-densities", expected="finite numbers", remedy="use an earlier checkpoint")
        return found

    def fit_constants(
        self,
        images: Images,
        labels: object,
        *,
        known: Sequence[str] = (),
        level: int | None = None,
        seed: int = 0,
        num_draws: int = 4,
        batch_size: int = 64,
    ) -> LabelConstants:
        """What `classify` needs to compare energies of different labels, by maximum likelihood on labelled images.

        Training leaves log Z_t(c) of every label open (docs/scores.md). One offset for each label, log p(c) - log
        Z_t(c), and an inverse temperature are fitted, as ``jobs/classify.py`` does with ``--fit-data``.

        Args:
            images: (N, C, H, W) or (N, H, W), best ones that the model was not trained on.
            labels: numbers of classes (N,), -1 for none; or of attributes (N, A), 1, -1, or 0 where not known.
            known: names of the attributes that `classify` will be told, and only these; here their values are taken
                from the labels.
            level: t, from 0; by default the one, of up to 20, that tells most of the images rightly.
            seed, num_draws, batch_size: as of `classify`.

        Raises:
            UserError: as `classify`; or no image has some label.
        """
        inference = self._inference(known, seed, num_draws, batch_size)
        level = None if level is None else self._level(level)
        given = given_images(images, shape=self.image_shape)
        found = labels_given(self._experiment, labels, len(given))
        self._warn()
        return inference.fit(given, found, level)

    def classify(
        self,
        images: Images,
        constants: LabelConstants | None = None,
        *,
        known: Mapping[str, object] | None = None,
        level: int | None = None,
        seed: int = 0,
        num_draws: int = 4,
        batch_size: int = 64,
    ) -> Tensor:
        """Probabilities of labels by Bayes' rule over the energies f(y_t, t, c), those of ``jobs/classify.py``.

        Args:
            images: (N, C, H, W) or (N, H, W).
            constants: from `fit_constants`; by default the labels are taken to be equally frequent, with one and the
                same Z, which training does not make true.
            known: values of attributes that are known, by name: one for all images or (N,), bool, or 1, -1 and 0. Those
                that are not named are inferred.
            level: t, from 0; by default that of the constants, or the one whose noise is nearest as wide as the data.
            seed: keys the noise, beside each image's place.
            num_draws: draws of the noise of each image, whose energies are averaged.
            batch_size: images that are computed together.

        Returns:
            float64 on the CPU, in the order of `label_names`: (N, C) probabilities of the classes, which add up to 1;
            or (N, A) the probability that each attribute is true, for those that are not known.

        Raises:
            UserError: an argument cannot be used, the model knows no labels, or an energy is not finite.
        """
        inference = self._inference(tuple(known or ()), seed, num_draws, batch_size)
        fitted = check_constants(constants, inference.questions)
        if fitted is not None:
            check("level", level, f"none, or {fitted.level}, that of the constants", level in (None, fitted.level))
            level = fitted.level
        level = inference.default_level() if level is None else self._level(level)
        given = given_images(images, shape=self.image_shape)
        labels = labels_known(self._experiment, known or {}, len(given))
        self._warn()
        return inference.probabilities(given, labels, fitted, level)

    def _inference(self, known: Sequence[str], seed: int, num_draws: int, batch_size: int) -> LabelInference:
        return LabelInference(
            self.network,
            self._experiment,
            asked_of(self._experiment, known),
            seed=noise_of(seed).seed,
            num_draws=whole("num_draws", num_draws, "1 to 1000", 1, 1000),
            batch_size=whole("batch_size", batch_size, "at least 1", 1),
        )

    def _level(self, level: int) -> int:
        return whole("level", level, f"0 to {self.num_levels - 1}", 0, self.num_levels - 1)

    def _warn(self) -> None:
        for text in model_warnings(self._experiment):
            warnings.warn(text, UserWarning, stacklevel=3)
