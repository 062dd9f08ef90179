"""Guidance and composition: the sum that is promised, the distribution that follows, and the words that ask for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_ladder, build_levels
from drl_dist.common.errors import UserError
from drl_dist.config.condition import ConditionConfig
from drl_dist.config.presets import preset
from drl_dist.config.tree import DiffusionConfig
from drl_dist.diffusion.noise import PhiloxNoise, Purpose
from drl_dist.diffusion.recovery import LogDensityAndGrad
from drl_dist.energy.analytic import CorrelatedGaussian
from drl_dist.mcmc.kernel import KeyedChainNoise, run_chain
from drl_dist.sampling.composition import Concept, composed
from drl_dist.sampling.labels import LabelCounts, Wanted, wanted
from drl_dist.sampling.progressive import ProgressiveSampler, langevin
from drl_dist.sampling.tweedie import Tweedie

CLASSES = ConditionConfig(kind="class", names=("T-shirt/top", "Ankle boot", "a,b", "x & y", "3:4", "Bag"))
ATTRIBUTES = ConditionConfig(kind="attributes", names=("Smiling", "Male", "5_o_Clock_Shadow", "Wearing_Hat"))
NOISE = PhiloxNoise(3)


class World:
    """Data of four numbers whose class k is normal, as all classes together are; energies at every level are exact.

    Classes have means of their own, and together they have another covariance, so that no weight hides behind another.
    """

    def __init__(self, *, is_equal: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        digits = preset("digits")
        experiment = dataclasses.replace(
            digits,
            # As much noise at the lowest level as the data vary, so that chains reach everything in few steps.
            diffusion=DiffusionConfig(ladder="geometric", num_levels=9, first_noise_to_signal=0.1),
            mcmc=dataclasses.replace(digits.mcmc, energy_scale="unit", step_rule="bound", bound_fraction=1.4),
        )
        self.ladder = build_ladder(experiment.diffusion)
        self.levels = build_levels(experiment, self.ladder)
        eye = torch.eye(4, dtype=torch.float64)
        root = torch.randn(4, 4, generator=generator, dtype=torch.float64) / 4
        own = 0.1 * eye + root @ root.T
        means = 0.5 * torch.randn(2, 4, generator=generator, dtype=torch.float64)
        whole = own if is_equal else own + 0.2 * eye
        self.data = [CorrelatedGaussian(torch.zeros(4, dtype=torch.float64), whole)]
        self.data += [CorrelatedGaussian(mean, own) for mean in means]
        self.calls: list[int] = []

    def raw_at(self, level: Tensor, condition: Tensor | None = None) -> LogDensityAndGrad:
        """As an engine's; condition 0 is f(y, t), a row of the unit matrix a class."""
        (t,) = set(level.tolist())
        condition = torch.zeros(len(level), 2) if condition is None else condition
        which = torch.where(condition.any(1), condition.argmax(1) + 1, 0)

        def raw(y: Tensor) -> tuple[Tensor, Tensor]:
            self.calls.append(len(y))
            value, gradient = torch.empty(len(y), dtype=y.dtype), torch.empty_like(y)
            for number, data in enumerate(self.data):
                at = data.level(self.ladder, t, float(self.levels.transition_scale[t]))
                some = which == number
                value[some], gradient[some] = (part.to(y.dtype) for part in at.log_density_and_grad(y[some].double()))
            return value, gradient

        return raw

    def expected(self, weights: tuple[float, ...]) -> CorrelatedGaussian:
        """The normal distribution whose log-density is the weighted sum of those of the data at level 0."""
        at = [one.level(self.ladder, 0, float(self.levels.transition_scale[0])) for one in self.data]
        precision = sum((w * one.precision for w, one in zip(weights, at, strict=True)), torch.zeros(4, 4).double())
        pull = sum((w * one.precision @ one.mean for w, one in zip(weights, at, strict=True)), torch.zeros(4).double())
        covariance = torch.linalg.inv(precision)
        return CorrelatedGaussian(covariance @ pull, covariance)


ONE, OTHER = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
SUMS = [
    ([Concept(1, ONE)], 0.0, (0.0, 1.0, 0.0)),
    ([Concept(1, ONE)], 0.5, (-0.5, 1.5, 0.0)),
    ([Concept(1, ONE), Concept(1, OTHER)], 0.0, (-1.0, 1.0, 1.0)),
    ([Concept(1, ONE), Concept(-0.5, OTHER)], 0.0, (0.5, 1.0, -0.5)),
    ([Concept(0.5, ONE), Concept(0.5, OTHER)], 0.4, (-0.4, 0.7, 0.7)),
    ([], 0.0, (1.0, 0.0, 0.0)),
]


@pytest.mark.parametrize(("concepts", "guidance", "weights"), SUMS)
def test_the_energy_is_the_sum(concepts: list[Concept], guidance: float, weights: tuple[float, ...]) -> None:
    world = World(is_equal=False)
    y = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for t in (0, 4, 8):
        level = torch.full((5,), t)
        world.calls.clear()
        raw, gradient = composed(world.raw_at, concepts, guidance)(level)(y)
        # One call, for as many energies as have a part in it.
        assert world.calls == [5 * sum(weight != 0 for weight in weights)]
        rows = (torch.zeros(5, 2), ONE.expand(5, -1), OTHER.expand(5, -1))
        terms = [world.raw_at(level, condition)(y) for condition in rows]
        torch.testing.assert_close(raw, sum(w * value for w, (value, _) in zip(weights, terms, strict=True)))
        torch.testing.assert_close(gradient, sum(w * value for w, (_, value) in zip(weights, terms, strict=True)))


def check_draws(drawn: Tensor, expected: CorrelatedGaussian) -> None:
    whitened = (drawn.double() - expected.mean) @ torch.linalg.cholesky(expected.precision)
    assert float(whitened.mean(0).abs().max()) < 0.06
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(4, dtype=torch.float64), atol=0.08, rtol=0)


@pytest.mark.parametrize(("concepts", "guidance", "weights"), SUMS)
def test_images_have_the_distribution_of_the_algebra(
    concepts: list[Concept], guidance: float, weights: tuple[float, ...]
) -> None:
    # Classes of one covariance: the sum at each level is what the sum below becomes under noise.
    world = World(is_equal=True)
    start = Tweedie(world.levels, world.ladder)
    sampler = ProgressiveSampler(world.levels, 6, 1.0, start, averages_noise=True)
    raw_at = composed(world.raw_at, concepts, guidance)
    drawn = sampler.sample(raw_at, PhiloxNoise(0), torch.arange(4000), (4,))
    check_draws(drawn * world.levels.transition_scale[0], world.expected(weights))


@pytest.mark.parametrize(("concepts", "guidance", "weights"), SUMS)
def test_long_chains_have_the_distribution_of_the_algebra(
    concepts: list[Concept], guidance: float, weights: tuple[float, ...]
) -> None:
    # Of any covariances, a level's own chain draws from the sum at that level.
    world, ids = World(is_equal=False), torch.arange(4000)
    level, noise = torch.zeros_like(ids), PhiloxNoise(0)
    density = composed(world.raw_at, concepts, guidance)(level)
    before = noise.normal(Purpose.SAMPLE_BEFORE, ids, 0, (0,), (4,))[0]
    kernel = langevin(density, torch.full((4000,), float(world.levels.step_size[0])), 1.0, before)
    numbers = KeyedChainNoise(noise, Purpose.SAMPLE_CHAIN, ids, level, (4,))
    check_draws(run_chain(kernel, torch.zeros(4000, 4), numbers, 150).y, world.expected(weights))


@pytest.mark.parametrize(
    ("condition", "asked", "rows", "vectors"),
    [
        (CLASSES, {"label": "bag"}, ("Bag",), [(5, 1)]),
        (CLASSES, {"label": '"a,b", "x & y":2'.replace(":2", "")}, ("a,b", "x & y"), [(2, 1), (3, 1)]),
        (CLASSES, {"label": "3:4,bag"}, ("3:4", "Bag"), [(4, 1), (5, 1)]),
        (CLASSES, {"label": "x & y, bag"}, ("x & y", "Bag"), [(3, 1), (5, 1)]),
        (ATTRIBUTES, {"label": "smiling & not male"}, ("Smiling & not Male",), [((0, 1), (1, -1))]),
        (ATTRIBUTES, {"label": "smiling, male"}, ("Smiling", "Male"), [(0, 1), (1, 1)]),
    ],
)
def test_labels_are_read(condition: ConditionConfig, asked: Any, rows: tuple[str, ...], vectors: Any) -> None:
    found = wanted(condition, **asked)
    assert found.rows == rows and found.num_energies == 1
    for vector, places in zip(found.vectors, vectors, strict=True):
        expected = dict(places) if isinstance(places[0], tuple) else dict([places])
        assert vector == tuple(float(expected.get(place, 0)) for place in range(condition.size))


@pytest.mark.parametrize(
    ("condition", "text", "weights", "values"),
    [
        (ATTRIBUTES, "smiling & 2 * not male - wearing_hat", (1, 2, -1), [(0, 1), (1, -1), (3, 1)]),
        (ATTRIBUTES, "- male + .5*smiling", (-1, 0.5), [(1, 1), (0, 1)]),
        (ATTRIBUTES, "5_o_clock_shadow", (1,), [(2, 1)]),
        (CLASSES, 'bag & not "x & y"', (1, -1), [(5, 1), (3, 1)]),
        (CLASSES, "t-shirt/top - not bag", (1, 1), [(0, 1), (5, 1)]),
    ],
)
def test_sums_are_read(condition: ConditionConfig, text: str, weights: Any, values: Any) -> None:
    found = wanted(condition, compose=text, guidance=0.0)
    assert found.weights == weights and found.rows == (text,)
    for vector, (place, value) in zip(found.vectors, values, strict=True):
        assert vector == tuple(float(value * (number == place)) for number in range(condition.size))
    assert found.num_energies == len(weights) + (sum(weights) != 1)


def test_each_image_has_a_label_of_its_own() -> None:
    turns = wanted(CLASSES, label="bag,ankle boot")
    assert turns.row_of(torch.arange(5), NOISE).tolist() == [0, 1, 0, 1, 0]
    blocks = wanted(CLASSES, label="bag:2,ankle boot:3", num_images=5)
    assert blocks.row_of(torch.arange(5), NOISE).tolist() == [0, 0, 1, 1, 1]
    assert [blocks.label_of(row) for row in range(2)] == [5, 1]
    uniform = wanted(CLASSES, labels="uniform")
    assert uniform.row_of(torch.arange(8), NOISE).tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    drawn = wanted(CLASSES, labels="data", data=LabelCounts((10, 0, 0, 30, 0, 60)))
    rows = drawn.row_of(torch.arange(20_000), NOISE)
    shares = torch.bincount(rows, minlength=6) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0, 0, 0.3, 0, 0.6]), atol=0.012, rtol=0)
    assert torch.equal(drawn.row_of(torch.arange(50, 70), NOISE), rows[50:70])
    assert wanted(ATTRIBUTES, label="smiling & not male").label_of(0) == [1, -1, 0, 0]


def test_attributes_of_data_are_those_of_a_random_image() -> None:
    labels = ((1, -1, 0, 1), (-1, -1, -1, -1), (1, 1, 1, 1))
    drawn = wanted(ATTRIBUTES, labels="data", data=LabelCounts((6, 3, 1), labels), guidance=0.5)
    assert drawn.rows == ("Smiling & 5_o_Clock_Shadow? & Wearing_Hat", "none", " & ".join(ATTRIBUTES.names))
    # Image i is that image of the data, label after label, which its own number points at.
    images = [label for label, count in zip(labels, (6, 3, 1), strict=True) for _ in range(count)]
    numbers = NOISE.uniform(Purpose.SAMPLE_LABEL, torch.arange(2000), 0, (0,), 1)[0, :, 0]
    expected = [list(images[int(number * 10)]) for number in numbers]
    assert [drawn.label_of(row) for row in drawn.row_of(torch.arange(2000), NOISE).tolist()] == expected
    some = torch.tensor([1999, 3, 700])
    assert [drawn.label_of(row) for row in drawn.row_of(some, NOISE).tolist()] == [expected[i] for i in some.tolist()]
    assert drawn.guidance == 0.5 and drawn.num_energies == 2


def test_what_has_no_label_has_none() -> None:
    assert wanted(ATTRIBUTES, compose="smiling").label_of(0) is None and Wanted().label_of(0) is None


def test_the_network_sees_each_image_with_its_label() -> None:
    seen: list[Tensor] = []

    def raw_at(level: Tensor, condition: Tensor | None = None) -> LogDensityAndGrad:
        assert condition is not None
        seen.append(condition)
        return lambda y: (y.sum(1), torch.ones_like(y))

    level = torch.zeros(3, dtype=torch.int64)
    wanted(CLASSES, label="bag,ankle boot").raw_at(raw_at, torch.tensor([4, 5, 6]), NOISE)(level)
    assert seen[0].argmax(1).tolist() == [5, 1, 5]
    wanted(CLASSES, label="bag", guidance=2.0).raw_at(raw_at, torch.tensor([4, 5, 6]), NOISE)(level)
    assert seen[1].sum(1).tolist() == [1, 1, 1, 0, 0, 0]
    assert Wanted().raw_at(raw_at, torch.tensor([4]), NOISE) is raw_at


@pytest.mark.parametrize(
    ("condition", "asked", "message"),
    [
        (CLASSES, {"label": "bagg"}, "--label: got bagg, expected one of the model's 6 names: .*; use Bag, if that"),
        (CLASSES, {"label": "bag,"}, "--label: got 'bag,', expected names with commas between them"),
        (
            CLASSES,
            {"label": '"bag'},
            '--label: got "bag, expected a second quote behind each name that begins with one',
        ),
        (CLASSES, {"label": 'bag,"ankle boot'}, '--label: got bag,"ankle boot, expected a second quote'),
        (CLASSES, {"label": 'ba"g'}, '--label: got ba"g, expected a second quote'),
        (CLASSES, {"compose": 'bag & "a,b'}, '--compose: got bag & "a,b, expected a second quote'),
        (CLASSES, {"compose": '"bag & a,b'}, '--compose: got "bag & a,b, expected a second quote'),
        (CLASSES, {"label": "bag:" + "9" * 5000}, "--label: got bag:9{56}, expected one of the model's 6 names"),
        (CLASSES, {"compose": "9" * 400 + " * bag"}, "--compose: got 9{60}, expected weights up to 1000000"),
        (CLASSES, {"compose": "not not bag"}, "--compose: got not bag, expected one of the model's 6 names"),
        (CLASSES, {"compose": "-2 * bag"}, r"--compose: got -2 \* bag, expected one of the model's 6 names"),
        (CLASSES, {"label": ""}, "--label: got '', expected names with commas"),
        (CLASSES, {"label": "bag:3,ankle boot"}, "expected a number of images, 1 or more, behind each label"),
        (CLASSES, {"label": "bag:0"}, "expected a number of images, 1 or more, behind each label"),
        (CLASSES, {"label": "bag:3", "num_images": 4}, "--num-images: got 4, expected 3, the numbers of --label"),
        (CLASSES, {"label": "bag & ankle boot"}, "--label: got bag & ankle boot, expected one class"),
        (CLASSES, {"label": "not bag"}, "--label: got not bag, expected one class"),
        (ATTRIBUTES, {"label": "male & male"}, "--label: got Male twice in male & male"),
        (ATTRIBUTES, {"label": "2 * male"}, "--label: got 2 . male, expected attributes, joined by &"),
        (ATTRIBUTES, {"labels": "uniform"}, "--labels: got uniform, for a model of attributes"),
        (ATTRIBUTES, {"labels": "data"}, "--labels: got data, without data that say .*labels; add --real.$"),
        (CLASSES, {"labels": "data"}, "--labels: got data, without data that say how frequent"),
        (CLASSES, {"compose": "bag &"}, "--compose: got 'bag &', expected names with & or"),
        (CLASSES, {"compose": "& bag"}, "--compose: got '& bag', expected names with & or"),
        (CLASSES, {"compose": "bag & & bag"}, "--compose: got 'bag & & bag', expected names"),
        (ATTRIBUTES, {"compose": "2 * "}, "--compose: got an empty name"),
        (CLASSES, {"guidance": 1.0}, "--guidance: got 0 of --label, --labels and --compose, expected one of them"),
        (CLASSES, {"label": "bag", "guidance": -1.0}, "--guidance: got -1.0, expected a number from 0 to 1000000"),
        (CLASSES, {"label": "bag", "guidance": float("nan")}, "--guidance: got nan, expected a number from 0"),
        (CLASSES, {"label": "bag", "guidance": float("inf")}, "--guidance: got inf, expected a number from 0"),
        (CLASSES, {"label": "bag", "labels": "uniform"}, "--label and --labels: got 2 of --label"),
        (ConditionConfig(), {"label": "bag"}, "--label: got bag, for a model without labels"),
        (ConditionConfig(), {"guidance": 1.0}, "--guidance: got 1.0, for a model without labels"),
    ],
)
def test_what_cannot_be_read_is_refused(condition: ConditionConfig, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        wanted(condition, **asked)
