"""An objective of your own: copy it, change it, and train with ``--optim.objective my_objective:MyObjective``."""

import torch
from torch import Tensor, nn

from drl_dist.diffusion.ladder import Pairs
from drl_dist.diffusion.recovery import Levels


class MyObjective:
    """Minus the recovery log-likelihood, plus a small multiple of the squared outputs."""

    needs_negatives = True  # y_neg are the ends of chains; False for an objective on the data alone
    needs_gradient = False  # forward gives the outputs (N,); True for their gradients (N, C, H, W) at the images
    is_mean = True  # the loss is the mean over the pairs of a number of each
    reports = ("log_density_gap",)  # averages for each noise level are logged under these names

    def outcome(
        self, forward: nn.Module, pairs: Pairs, y_neg: Tensor, here: Levels
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what is reported of each sample, (N,).

        Args:
            forward: images (M, C, H, W) and levels (M,) -> outputs or gradients; called once.
            pairs: y_pos and x_noisy (N, C, H, W), level (N,), and the scores of their noise.
            y_neg: (N, C, H, W), or None without negatives.
            here: scales of the levels, (N,) each.
        """
        raw_pos, raw_neg = forward(torch.cat([pairs.y_pos, y_neg]), pairs.level.repeat(2)).chunk(2)
        gap = (raw_pos - raw_neg) * here.energy_scale
        penalty = 1e-6 * (raw_pos.square() + raw_neg.square())
        return (penalty - gap * here.loss_weight).mean(), {"log_density_gap": gap.detach()}
