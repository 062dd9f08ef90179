"""A training step written plainly: the oracle of the fast one, and what benchmarks compare it with.

Eager, contiguous, spectral norm in every forward, one forward per chain step, two for the update, autograd for all
gradients, Adam and the moving average written out. It shares no code with the package but the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from drl_dist.config.tree import Experiment
from drl_dist.diffusion.noise import PhiloxNoise, Purpose

Weights = dict[str, Tensor]

# Cumulative T6 numbers recomputed here from the base ladder: segments end at these base steps.
T6_ENDS = (0, 100, 200, 300, 400, 500, 999)


def t6_ladder() -> tuple[list[float], list[float]]:
    """(a_t, sigma_t) of the seven T6 transitions, by products."""
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    scale, std, start = [], [], 0
    for end in T6_ENDS:
        a = math.prod(math.sqrt(1 - beta) for beta in betas[start : end + 1])
        scale.append(a)
        std.append(math.sqrt(1 - a * a))
        start = end + 1
    return scale, std


def normalised(weights: Weights, name: str, rule: str, *, is_capped: bool = False) -> Tensor:
    """The spectrally normalised weight of one layer, with the norm of one power iteration, or of half of one."""
    weight, u = weights[f"{name}.weight"], weights[f"{name}.u"]
    matrix = weight.reshape(len(weight), -1)
    v = functional.normalize(matrix.detach().t() @ u, dim=0)
    if rule == "released":
        u = functional.normalize(matrix.detach() @ v, dim=0)
    norm = torch.dot(u, matrix @ v)
    return weight / norm * torch.clamp(norm, max=1.0) if is_capped else weight / norm


def raw_output(weights: Weights, y: Tensor, level: Tensor, experiment: Experiment) -> Tensor:
    """Raw output (B,) of the wide ResNet, everything recomputed."""
    model = experiment.model

    def act(x: Tensor) -> Tensor:
        return functional.leaky_relu(x, 0.2)

    half = model.time_embedding_dim // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
    angle = level[:, None].float() * frequency[None]
    time = torch.cat([torch.sin(angle), torch.cos(angle)], 1).to(y.dtype)
    rule = model.spectral_norm_rule
    first, second = (
        normalised(weights, name, rule) if rule == "released" else weights[f"{name}.weight"]
        for name in ("dense_1", "dense_2")
    )
    time = functional.linear(time, first, weights["dense_1.bias"])
    time = act(functional.linear(act(time), second, weights["dense_2.bias"]))
    h = functional.conv2d(y, normalised(weights, "stem", rule), weights["stem.bias"], padding=1)
    for i in range(len(model.width_multipliers)):
        if i:
            h = functional.avg_pool2d(h, 2)
        for j in range(model.num_res_blocks):
            name = f"levels.{i}.{j}"
            r = functional.conv2d(
                act(h), normalised(weights, f"{name}.conv_1", rule), weights[f"{name}.conv_1.bias"], padding=1
            )
            bias = functional.linear(time, normalised(weights, f"{name}.time", rule), weights[f"{name}.time.bias"])
            r = act(r + bias[:, :, None, None])
            second = normalised(weights, f"{name}.conv_2", rule, is_capped=True)
            r = functional.conv2d(r, second, weights[f"{name}.conv_2.bias"], padding=1)
            r = r * weights[f"{name}.conv_2.channel_scale"][None, :, None, None]
            if f"{name}.skip.weight" in weights:
                skip = normalised(weights, f"{name}.skip", rule)
                h = functional.conv2d(h, skip, weights[f"{name}.skip.bias"], padding=1)
            h = h + r
    features = torch.relu(h).sum(dim=(2, 3))
    vector = functional.linear(time, weights["head.weight"], weights["head.bias"])
    return (features * vector).sum(dim=1)


@dataclass
class ReferenceStep:
    """Algorithm 1 with Adam and a moving average, on weights named as in the package's network."""

    weights: Weights
    experiment: Experiment
    step: int = 0
    first: Weights = field(default_factory=dict)
    second: Weights = field(default_factory=dict)
    ema: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = {
            name: value.detach().clone().contiguous().requires_grad_(not name.endswith(".u"))
            for name, value in self.weights.items()
        }
        self.ema = {name: value.detach().clone() for name, value in self.weights.items()}

    def __call__(self, images: Tensor, positions: Tensor) -> tuple[float, Tensor]:
        """One step on uint8 images; returns the loss and y_neg."""
        self.advance_power_iteration()
        level, y_pos, x_noisy = self.draw(images, positions)
        y_neg = self.run_chain(level, x_noisy, positions)
        return self.update(level, y_pos, y_neg), y_neg

    def advance_power_iteration(self) -> None:
        """Power iteration, once per step as in the package."""
        with torch.no_grad():
            for name in [name for name in self.weights if name.endswith(".u")]:
                matrix = self.weights[name[:-2] + ".weight"].reshape(len(self.weights[name]), -1)
                v = functional.normalize(matrix.t() @ self.weights[name], dim=0)
                self.weights[name].copy_(functional.normalize(matrix @ v, dim=0))

    def draw(self, images: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Level, y_pos and x_noisy."""
        dtype = self.weights["stem.weight"].dtype
        x = (images.float() / 127.5 - 1).to(dtype)
        noise = PhiloxNoise(self.experiment.train.seed)
        scale, std = t6_ladder()
        level = (noise.uniform(Purpose.LEVEL, positions, 0, (0,), 1)[0, :, 0] * 6).long()
        base = noise.normal(Purpose.BASE, positions, level, (0,), x.shape[1:])[0].to(dtype)
        fresh = noise.normal(Purpose.TRANSITION, positions, level, (0,), x.shape[1:])[0].to(dtype)
        y_pos, x_noisy = torch.empty_like(x), torch.empty_like(x)
        for i, t in enumerate(level.tolist()):
            a = math.prod(scale[: t + 1])
            x_t = a * x[i] + math.sqrt(1 - a * a) * base[i]
            x_noisy[i] = scale[t + 1] * x_t + std[t + 1] * fresh[i]
            y_pos[i] = x_t if t == 5 else scale[t + 1] * x_t
        return level, y_pos, x_noisy

    def run_chain(self, level: Tensor, x_noisy: Tensor, positions: Tensor) -> Tensor:
        """K Langevin steps, equation 17 with the released scales: drift = net' / 2 - c**2 b**2 (y - x_noisy) / 2."""
        mcmc = self.experiment.mcmc
        noise = PhiloxNoise(self.experiment.train.seed)
        scale, std = t6_ladder()
        bars = [math.sqrt(1 - math.prod(scale[: t + 1]) ** 2) for t in range(6)]
        c2b2 = torch.tensor([bars[t] / bars[0] * mcmc.step_scale_squared for t in range(6)], dtype=x_noisy.dtype)
        delta = c2b2.sqrt() * torch.tensor(std[1:], dtype=x_noisy.dtype)
        pull = torch.where(level == 5, 0.0, c2b2[level])[:, None, None, None]
        y = x_noisy
        for tau in range(mcmc.num_chain_steps):
            leaf = y.detach().requires_grad_(True)
            gradient = torch.autograd.grad(raw_output(self.weights, leaf, level, self.experiment).sum(), leaf)[0]
            eps = noise.normal(Purpose.TRAIN_CHAIN, positions, level, (tau,), y.shape[1:])[0].to(y.dtype)
            y = y + gradient / 2 - pull / 2 * (y - x_noisy) + delta[level][:, None, None, None] * eps
        return y.detach()

    def update(self, level: Tensor, y_pos: Tensor, y_neg: Tensor) -> float:
        """Loss, gradient, Adam, moving average."""
        optim = self.experiment.optim
        _, std = t6_ladder()
        weight = torch.tensor([std[1] / std[t + 1] for t in range(6)], dtype=y_pos.dtype)[level]
        raw_pos = raw_output(self.weights, y_pos, level, self.experiment)
        raw_neg = raw_output(self.weights, y_neg, level, self.experiment)
        loss = -((raw_pos - raw_neg) * weight).mean()
        names = [name for name, value in self.weights.items() if value.requires_grad]
        gradients = torch.autograd.grad(loss, [self.weights[name] for name in names])
        self.step += 1
        rate = optim.learning_rate * min(1.0, self.step / optim.warmup_steps)
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                first = self.first.setdefault(name, torch.zeros_like(gradient))
                second = self.second.setdefault(name, torch.zeros_like(gradient))
                first.mul_(optim.beta1).add_((1 - optim.beta1) * gradient)
                second.mul_(optim.beta2).add_((1 - optim.beta2) * gradient**2)
                mean = first / (1 - optim.beta1**self.step)
                spread = (second / (1 - optim.beta2**self.step)).sqrt() + optim.epsilon
                self.weights[name].sub_(rate * mean / spread)
            for name, value in self.weights.items():
                self.ema[name] = optim.ema_decay * self.ema[name] + (1 - optim.ema_decay) * value
        return float(loss.detach())
