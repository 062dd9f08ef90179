"""One suite over all kernels: exact targets for the adjusted ones, and what every kernel owes to its protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast, get_args

import pytest
import torch
from torch import Tensor

import drl_dist.mcmc.hmc as hmc_module
import drl_dist.mcmc.leapfrog as leapfrog_module
import drl_dist.mcmc.mala as mala_module
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad, conditional_density
from drl_dist.energy.analytic import Gaussian
from drl_dist.mcmc.hmc import Hmc
from drl_dist.mcmc.kernel import Info, Kernel, KernelAt, KeyedChainNoise, StepNoise, run_chain
from drl_dist.mcmc.kernels import KERNELS, adapted_with, gradients_per_step, kernel_named
from drl_dist.mcmc.langevin import LeimkuhlerMatthews, UnadjustedLangevin
from drl_dist.mcmc.mala import Mala
from drl_dist.mcmc.normal_approximation import NormalApproximation
from drl_dist.mcmc.settings import KernelName
from tests.mcmc.distributions import Target, ergodic_scores, gaussian, invariance_scores, make, mixture, run
from tests.support import ROOT

COUNT = 4000
LIMIT = 4.5

# The step sizes are coarse, so that a kernel without its correction is far from the target.
ADJUSTED: dict[str, tuple[KernelAt, float]] = {
    "mala": (kernel_named("mala"), 0.35),
    "hmc-2": (kernel_named("hmc"), 0.35),
    "hmc-5": (kernel_named("hmc", num_leapfrog_steps=5), 0.35),
    "nuts": (kernel_named("nuts", max_tree_depth=4), 0.35),
}
UNADJUSTED: dict[str, KernelAt] = {
    "langevin": UnadjustedLangevin,
    "leimkuhler-matthews": LeimkuhlerMatthews,
    "normal-approximation": NormalApproximation,
}
EVERY: dict[str, KernelAt] = {name: kernel for name, (kernel, _) in ADJUSTED.items()} | UNADJUSTED
TARGETS: dict[str, Callable[[int, int], Target]] = {"gaussian": gaussian, "mixture": mixture}
MODULES = {"mala": mala_module, "hmc-2": hmc_module, "hmc-5": hmc_module}


def worst_invariance(
    kernel: str,
    target: str,
    seed: int,
    *,
    num_steps: int = 6,
    count: int = COUNT,
    step_size: float | None = None,
    is_louder: bool = False,
) -> float:
    """Standard errors, at the worst of all moments, between chains that began with exact draws and the target."""
    kernel_at, usual = ADJUSTED[kernel]
    exact = TARGETS[target](seed, count)
    made = make(kernel_at, exact, step_size or usual, count)
    ends, _, _ = run(made, exact.draws, seed, num_steps, is_louder=is_louder)
    return float(invariance_scores(exact, ends).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ADJUSTED)
def test_exact_draws_stay_exact_draws(kernel: str, target: str) -> None:
    # Of a bias, as many standard errors more as the root of five says than in a run of COUNT chains.
    assert worst_invariance(kernel, target, 0, count=5 * COUNT) < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ADJUSTED)
def test_long_chains_from_anywhere_have_the_moments_of_the_target(kernel: str, target: str) -> None:
    kernel_at, step_size = ADJUSTED[kernel]
    burn_in, num_steps = {"nuts": (10, 30), "mala": (250, 150)}.get(kernel, (100, 150))
    count = 1000
    exact = TARGETS[target](0, count)
    start = torch.full_like(exact.draws, 1.5) * exact.scale
    _, _, places = run(make(kernel_at, exact, step_size, count), start, 0, burn_in + num_steps)
    assert float(ergodic_scores(exact, places[burn_in:]).abs().max()) < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ADJUSTED)
@pytest.mark.parametrize("is_louder", [False, True])
def test_five_per_cent_of_noise_too_much_are_noticed(kernel: str, is_louder: bool) -> None:
    # Enough steps for the target to change, enough chains to see a few per cent.
    num_steps, count = {"mala": (80, 40_000), "nuts": (12, 40_000)}.get(kernel, (25, 80_000))
    worst = worst_invariance(kernel, "gaussian", 0, num_steps=num_steps, count=count, is_louder=is_louder)
    assert worst > 2 * LIMIT if is_louder else worst < LIMIT


@pytest.mark.parametrize("kernel", ["mala", "hmc-2", "hmc-5"])
def test_accepting_everything_is_noticed(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def accept(error: Tensor, uniform: Tensor, num_leapfrog_steps: int) -> Info:
        every = torch.ones_like(error, dtype=torch.bool)
        return Info(every, every.double(), error, ~every, every.long() * num_leapfrog_steps)

    assert worst_invariance(kernel, "gaussian", 0, num_steps=20, step_size=0.44) < LIMIT
    monkeypatch.setattr(MODULES[kernel], "metropolis", accept)
    assert worst_invariance(kernel, "gaussian", 0, num_steps=20, step_size=0.44) > 2 * LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ADJUSTED)
def test_a_dropped_kinetic_term_is_noticed(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(momentum: Tensor) -> Tensor:
        return torch.zeros(len(momentum), dtype=torch.float64)

    monkeypatch.setattr(mala_module if kernel == "mala" else leapfrog_module, "kinetic_energy", nothing)
    assert worst_invariance(kernel, "gaussian", 0, num_steps=20) > 2 * LIMIT


@pytest.mark.parametrize("kernel", EVERY)
def test_chains_do_not_see_each_other(kernel: str) -> None:
    # One chain starts where no gradient is finite: its neighbours must not notice, whatever it does.
    exact = gaussian(0, 7)
    start = exact.draws.clone()
    start[3] = torch.nan
    step_sizes = torch.linspace(0.05, 0.6, 7, dtype=torch.float64)
    together, infos, _ = run(EVERY[kernel](exact.density, step_sizes), start, 5, 8)
    for i in range(7):
        alone, own, _ = run(
            EVERY[kernel](exact.density, step_sizes[i : i + 1]), start[i : i + 1], 5, 8, ids=torch.tensor([i])
        )
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=0, equal_nan=True)
        for ours, theirs in zip(own, infos, strict=True):
            for mine, yours in zip(ours, theirs, strict=True):
                assert torch.equal(mine[0], yours[i])


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_keep_their_shape_and_dtype(kernel: str, dtype: torch.dtype) -> None:
    density = Gaussian(torch.tensor(0.0, dtype=dtype), 1.0).log_density_and_grad
    made = EVERY[kernel](density, torch.full((4,), 0.2, dtype=dtype))
    y = torch.zeros(4, 2, 6, 6, dtype=dtype)
    numbers = KeyedChainNoise(PhiloxNoise(0), Purpose.SAMPLE_CHAIN, torch.arange(4), 2, (2, 6, 6), dtype)
    infos: list[Info | None] = []
    end = run_chain(made, y, numbers, 3, observe=lambda step, state, info: infos.append(info)).y
    assert (end.shape, end.dtype) == (y.shape, dtype)
    assert bool((end != y).flatten(1).any(1).all())
    for info in infos:
        if kernel in UNADJUSTED:
            assert info is None
        else:
            assert info is not None
            assert {tuple(field.shape) for field in info} == {(4,)}
            assert (info.is_accepted.dtype, info.is_divergent.dtype) == (torch.bool, torch.bool)
            assert bool(((info.acceptance_probability >= 0) & (info.acceptance_probability <= 1)).all())


@pytest.mark.parametrize(
    ("kernel", "per_step", "at_first"),
    [
        ("langevin", 1, 0),
        ("leimkuhler-matthews", 1, 0),
        ("normal-approximation", 1, 0),
        ("mala", 1, 1),
        ("hmc-2", 2, 1),
        ("hmc-5", 5, 1),
    ],
)
def test_a_step_costs_the_gradients_it_needs(kernel: str, per_step: int, at_first: int) -> None:
    exact, calls = gaussian(0, 3), 0

    def counted(y: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return exact.density(y)

    run(EVERY[kernel](counted, torch.full((3,), 0.1, dtype=torch.float64)), exact.draws, 0, 11)
    assert calls == at_first + 11 * per_step


def test_every_kernel_of_the_registry_is_in_this_suite() -> None:
    assert {name.partition("-")[0] for name in ADJUSTED} == set(get_args(KernelName))
    assert set(get_args(KernelName)) == {name for name, row in KERNELS.items() if row.is_adjusted}
    assert {name.replace("-", "_") for name in UNADJUSTED} == KERNELS.keys() - set(get_args(KernelName))


def test_the_registry_knows_what_a_step_costs() -> None:
    exact, calls = gaussian(0, 40), 0

    def counted(y: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        return exact.density(y)

    for name in KERNELS:
        fewest, most = gradients_per_step(name, num_leapfrog_steps=3, max_tree_depth=3)
        kernel_at = kernel_named(name, num_leapfrog_steps=3, max_tree_depth=3)
        kernel = kernel_at(counted, torch.full((40,), 0.1, dtype=torch.float64))
        state, calls = kernel.init(exact.draws), 0
        numbers = KeyedChainNoise(PhiloxNoise(0), Purpose.SAMPLE_CHAIN, torch.arange(40), 0, (3,), torch.float64)
        [one] = numbers.steps(0, 1, kernel.num_uniforms)
        kernel(state, one)
        assert fewest <= calls <= most, name
    assert gradients_per_step("hmc", num_leapfrog_steps=3) == (3, 3)
    assert gradients_per_step("nuts", max_tree_depth=3) == (1, 7)


def test_the_page_has_the_registry_s_rows() -> None:
    lines = (ROOT / "docs/samplers.md").read_text().splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("| `")]
    page = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}

    def row(name: str) -> list[str]:
        known, (fewest, most) = KERNELS[name], gradients_per_step(name)
        cost = str(most) if fewest == most else f"{fewest} to {most}"
        kind = cast(type, known.kernel).__name__
        options = ", ".join(f"`{option}`" for option in known.options)
        adapted = f"`{adapted_with(name).name}`" if known.is_adjusted else ""
        return [f"`{kind}`", "yes" if known.is_adjusted else "no", cost, options, adapted]

    assert page == {f"`{name}`": row(name) for name in KERNELS}


@pytest.mark.parametrize("kernel", ADJUSTED)
def test_a_trajectory_that_diverges_is_reported_and_not_accepted(kernel: str) -> None:
    exact = gaussian(0, 5, (0.01, 0.01))
    step_sizes = torch.tensor([0.002, 5.0, 0.002, 1e160, 0.002], dtype=torch.float64)
    end, [info], _ = run(EVERY[kernel](exact.density, step_sizes), exact.draws, 0, 1)
    assert info.is_divergent.tolist() == [False, True, False, True, False]
    assert info.energy_error[[1, 3]].min() > 1000
    assert torch.equal(end[[1, 3]], exact.draws[[1, 3]])
    assert info.is_accepted[[1, 3]].tolist() == [False, False]
    assert float(info.acceptance_probability[[1, 3]].max()) == 0
    assert float(info.acceptance_probability[[0, 2, 4]].min()) > 0.9


def test_mala_is_hmc_with_one_leapfrog_step() -> None:
    # Two derivations of one algorithm: proposal densities, and Hamiltonian dynamics.
    exact = mixture(0, 50)
    step_size = torch.full((50,), 0.4, dtype=torch.float64)
    ours, infos, _ = run(Mala(exact.density, step_size), exact.draws, 3, 20)
    theirs, others, _ = run(Hmc(exact.density, step_size, 1), exact.draws, 3, 20)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    for info, other in zip(infos, others, strict=True):
        torch.testing.assert_close(info.energy_error, other.energy_error, rtol=0, atol=1e-10)
        assert torch.equal(info.is_accepted, other.is_accepted)


def test_langevin_takes_the_position_step_of_the_leapfrog() -> None:
    # One step size means one thing: a step of MALA that accepts is a step of unadjusted Langevin.
    exact = gaussian(0, 50)
    step_size = torch.full((50,), 0.05, dtype=torch.float64)
    ours, [info], _ = run(Mala(exact.density, step_size), exact.draws, 3, 1)
    theirs, _, _ = run(UnadjustedLangevin(exact.density, step_size), exact.draws, 3, 1)
    assert int(info.is_accepted.sum()) > 40
    torch.testing.assert_close(ours[info.is_accepted], theirs[info.is_accepted], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fraction", [0.6, 0.9, 1.4, 1.8])
def test_leimkuhler_and_matthews_leave_normal_draws_as_wide_as_they_are(fraction: float) -> None:
    # The fraction of the step at which chains become unstable, of its half; Langevin's own draws are wider.
    count, std = 40_000, 0.8
    exact = gaussian(0, count, (1.0,))
    size, before = torch.full((count,), fraction * std, dtype=torch.float64), gaussian(1, count, (1.0,)).draws
    before = (before - 0.5) / std
    averaged, _, _ = run(LeimkuhlerMatthews(exact.density, size, before=before), exact.draws, 0, 40)
    plain, _, _ = run(UnadjustedLangevin(exact.density, size), exact.draws, 0, 40)
    errors = [
        (float(ends.var()) / std**2 / wanted - 1) * (count / 2) ** 0.5
        for ends, wanted in ((averaged, 1.0), (plain, 1 / (1 - fraction**2 / 4)))
    ]
    assert max(map(abs, errors)) < LIMIT
    assert abs(float(plain.var()) / std**2 - 1) * (count / 2) ** 0.5 > 2 * LIMIT


@pytest.mark.parametrize("seed", range(10))
def test_the_normal_approximation_is_the_normal_distribution_of_equation_11(seed: int) -> None:
    prior, count, std = Gaussian(torch.tensor(0.3, dtype=torch.float64), 0.9), 20_000, 0.4
    x_noisy = torch.full((count, 1), 1.2, dtype=torch.float64)
    stds = torch.full((count,), std, dtype=torch.float64)
    mean = 1.2 + std**2 * (0.3 - 1.2) / 0.9**2

    def scores(density: LogDensityAndGrad, is_louder: bool) -> float:
        ends, _, _ = run(NormalApproximation(density, stds), x_noisy, seed, 1, is_louder=is_louder)
        centred = (ends - mean) / std
        return max(
            abs(float(centred.mean()) * count**0.5), abs(float(centred.square().mean() - 1) * (count / 2) ** 0.5)
        )

    assert scores(prior.log_density_and_grad, False) < LIMIT
    assert scores(prior.log_density_and_grad, True) > 2 * LIMIT
    # At x_noisy the recovery term has no gradient: the conditional density gives the same draw.
    conditional = conditional_density(prior.log_density_and_grad, x_noisy, stds**-2)
    assert scores(conditional, False) < LIMIT


def test_the_normal_approximation_approaches_the_conditional_as_sigma_squared() -> None:
    # Its mean is wrong by O(sigma**4), its variance by O(sigma**4): both halves of sigma must show the order.
    prior = Gaussian(torch.tensor(0.3, dtype=torch.float64), 0.9)
    errors: list[float] = []
    for std in (0.2, 0.1):
        x_noisy = torch.tensor([[1.2]], dtype=torch.float64)
        kernel = NormalApproximation(prior.log_density_and_grad, torch.tensor([std], dtype=torch.float64))
        draw, _ = kernel(
            kernel.init(x_noisy), StepNoise(torch.zeros_like(x_noisy), torch.empty(1, 0, dtype=torch.float64))
        )
        errors.append(abs(float(draw.y - prior.posterior(x_noisy, std)[0])))
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)


def test_the_states_of_the_adjusted_kernels_hold_what_the_density_says() -> None:
    exact = mixture(1, 30)
    for kernel_at, step_size in ADJUSTED.values():
        kernel: Kernel = make(kernel_at, exact, step_size, 30)
        numbers = KeyedChainNoise(PhiloxNoise(0), Purpose.SAMPLE_CHAIN, torch.arange(30), 0, (2,), torch.float64)
        state = run_chain(kernel, exact.draws, numbers, 5)
        value, gradient = exact.density(state.y)
        assert torch.equal(state.log_density, value)
        assert torch.equal(state.gradient, gradient)


def test_memory_of_drawn_numbers_counts_uniforms_too() -> None:
    # Trees of depth 10 need a thousand uniforms a step; pixels alone would let 260 000 steps be drawn at once.
    numbers = KeyedChainNoise(PhiloxNoise(0), Purpose.SAMPLE_CHAIN, torch.arange(1), 0, (1,), torch.float64)
    drawn: list[int] = []

    class Spy(PhiloxNoise):
        def uniform(self, purpose, sample_ids, level, chain_steps, count):  # noqa: ANN001
            drawn.append(len(chain_steps) * count)
            return super().uniform(purpose, sample_ids, level, chain_steps, count)

    spied = KeyedChainNoise(Spy(0), Purpose.SAMPLE_CHAIN, torch.arange(1), 0, (1,), torch.float64)
    ours = [step.uniform for step in spied.steps(0, 600, 1043)]
    assert max(drawn) < 1 << 19
    assert len(drawn) > 1
    theirs = [step.uniform for start in (0, 7) for step in numbers.steps(start, 7 if start == 0 else 600, 1043)]
    assert torch.equal(torch.stack(ours), torch.stack(theirs))
