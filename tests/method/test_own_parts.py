"""Networks, kernels and objectives by import path: used as the built-in ones are, and refused in one sentence."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from drl_dist.build import build_network, build_sampler
from drl_dist.common.errors import UserError
from drl_dist.config import import_paths
from drl_dist.config.import_paths import check_allowed
from drl_dist.config.presets import preset
from drl_dist.config.tree import ChainKernelName, EngineConfig, Experiment, NetworkName, ObjectiveName, RunConfig
from drl_dist.diffusion.noise import PhiloxNoise
from drl_dist.energy.own import OwnNetwork
from drl_dist.training.chain import GradientEngine
from drl_dist.training.own_parts import check_own_parts
from drl_dist.training.state import TrainState
from drl_dist.training.step import TrainStep
from tests.helpers.steps import EAGER, batch
from tests.support import ROOT

EXAMPLES = ROOT / "docs/examples"
MODULE = "own_parts_of_a_test"


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.syspath_prepend(str(EXAMPLES))


def changed(model: Any = None, mcmc: Any = None, optim: Any = None, setting: str = "unet") -> Experiment:
    given = preset("digits", setting)
    return dataclasses.replace(
        given,
        model=dataclasses.replace(given.model, **(model or {})),
        mcmc=dataclasses.replace(given.mcmc, **(mcmc or {})),
        optim=dataclasses.replace(given.optim, **(optim or {})),
        train=dataclasses.replace(given.train, batch_size=12),
    )


def own(options: str = '{"width": 8}', **parts: Any) -> Experiment:
    return changed({"network": "my_network:MyNetwork", "options": options}, **parts)


def test_the_names_are_those_of_the_types() -> None:
    assert set(import_paths.NETWORKS) == set(get_args(NetworkName))
    assert set(import_paths.KERNELS) == set(get_args(ChainKernelName))
    assert set(import_paths.NEEDS_NEGATIVES) == set(get_args(ObjectiveName))


def test_the_template_is_short() -> None:
    code = (EXAMPLES / "my_network.py").read_text().partition("import torch\n")[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30


def test_a_network_of_ones_own_trains_resumes_and_samples() -> None:
    experiment = own(optim={"first_objective_steps": 2})
    state = TrainState.create(experiment)
    assert isinstance(state.network, OwnNetwork)
    first = {name: value.clone() for name, value in state.network.named_parameters()}
    step = TrainStep(state, experiment, EAGER)
    saved: dict[str, dict[str, Tensor]] = {}
    for index in range(4):
        if index == 3:
            saved = {part: {n: v.clone() for n, v in tensors.items()} for part, tensors in state.tensors().items()}
        assert bool(step(batch(12 * index)).loss.isfinite())
    assert not [name for name, value in state.network.named_parameters() if torch.equal(value, first[name])]
    again = TrainState.create(experiment)
    again.load_tensors(saved, 3)
    TrainStep(again, experiment, EAGER)(batch(36))
    for part, tensors in state.tensors().items():
        for name, value in tensors.items():
            assert torch.equal(value, again.tensors()[part][name]), f"{part} {name}"
    network = state.ema_network()
    images = build_sampler(experiment).sample(
        GradientEngine(network, EAGER, is_frozen=True).raw_at, PhiloxNoise(0), torch.arange(2), (1, 8, 8)
    )
    assert bool(images.isfinite().all())
    # Nothing of it but its weights: the level's numbers follow from the config.
    assert state.tensors()["ema"].keys() == {name for name, _ in state.network.named_parameters()}


def test_the_seed_determines_the_weights_and_torchs_own_generator_stays() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other = build_network(own()), build_network(own())
    assert torch.equal(torch.rand(1), expected)
    seeded = dataclasses.replace(own(), train=dataclasses.replace(own().train, seed=1))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert not torch.equal(
        one.state_dict()["module.first.weight"], build_network(seeded).state_dict()["module.first.weight"]
    )


def test_gradients_are_those_of_the_module_and_levels_are_told() -> None:
    network = build_network(own(), torch.float64)
    assert isinstance(network, OwnNetwork)
    level = torch.tensor([0, 9, 4])
    y = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    # The same variance of noise and signal at the middle of a ladder that is symmetric in its logarithm.
    given = network.given[level]
    assert bool((given[0] > given[2]) & (given[2] > given[1]))
    raw = network.module(y, given)
    (expected,) = torch.autograd.grad(raw.sum(), y)
    value, gradient = GradientEngine(network, EAGER).raw_at(level)(y.detach())
    torch.testing.assert_close(value, raw.detach())
    torch.testing.assert_close(gradient, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        rough = GradientEngine(network.float(), EngineConfig(precision="bfloat16", compile="never"))
    value_rough, _ = rough.raw_at(level)(y.detach().float())
    assert value_rough.dtype == torch.float32
    assert 0 < float((value_rough - raw.detach()).abs().max()) < 0.05 * float(raw.detach().abs().max())


def test_whether_the_image_gradient_uses_every_parameter_is_found_by_trying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with_an_offset.py").write_text(
        "import torch\nfrom my_network import MyNetwork\n"
        "class Net(MyNetwork):\n"
        "    def __init__(self, channels: int) -> None:\n"
        "        super().__init__(channels, 8)\n"
        "        self.offset = torch.nn.Parameter(torch.zeros(()))\n"
        "    def forward(self, y, log_snr):\n"
        "        return super().forward(y, log_snr) + self.offset\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert build_network(own()).gradient_uses_all_parameters
    offset = changed({"network": "with_an_offset:Net"})
    assert not build_network(offset).gradient_uses_all_parameters


def test_models_of_ones_own_network_are_not_versions_of_the_presets() -> None:
    def registered(experiment: Experiment, model_name: str | None = None) -> str:
        return RunConfig(experiment=experiment, model_name=model_name).registered_model

    assert registered(changed()) == "digits_unet"
    assert registered(own()) == "digits_unet-MyNetwork"
    assert registered(changed({"network": "timm:vit_tiny.b"})) == "digits_unet-vit_tiny.b"
    assert registered(own(), "mine") == "mine"


def test_log_snr_is_that_of_the_ladder() -> None:
    network = build_network(own())
    assert isinstance(network, OwnNetwork)
    # sqrt(snr) = data_std over the noise in units of the data, whose variances are a geometric sequence from 1e-4.
    assert float(network.given[0]) == pytest.approx(torch.tensor(0.75**2 / 1e-4).log().item(), rel=1e-5)


def test_a_kernel_of_ones_own_makes_the_chains_of_the_built_in_one() -> None:
    for mcmc in ({}, {"level_chain_steps": (2,) * 5 + (3,) * 5}):
        built_in, mine = (
            changed(
                {"width": 8, "time_hidden_dim": 16},
                {"kernel": kernel, **mcmc},
                {"first_objective": None, "first_objective_steps": 0},
            )
            for kernel in ("langevin", "my_kernel:MyKernel")
        )
        losses = [float(TrainStep(TrainState.create(one), one, EAGER)(batch(0)).loss) for one in (built_in, mine)]
        assert losses[0] == losses[1]
    network = GradientEngine(build_network(mine), EAGER)
    images = [
        build_sampler(one).sample(network.raw_at, PhiloxNoise(0), torch.arange(2), (1, 8, 8))
        for one in (built_in, mine)
    ]
    assert torch.equal(*images)
    other = dataclasses.replace(mine, mcmc=dataclasses.replace(mine.mcmc, sampling_kernel="leimkuhler_matthews"))
    assert build_sampler(other).own_kernel is None and build_sampler(other).averages_noise


def test_a_kernel_of_the_package_that_rejects_steps() -> None:
    experiment = own(
        mcmc={"kernel": "drl_dist.mcmc.mala:Mala"}, optim={"first_objective": None, "first_objective_steps": 0}
    )
    assert bool(TrainStep(TrainState.create(experiment), experiment, EAGER)(batch(0)).loss.isfinite())


def test_an_objective_of_ones_own() -> None:
    experiment = own(optim={"objective": "my_objective:MyObjective", "first_objective_steps": 1})
    step = TrainStep(TrainState.create(experiment), experiment, EAGER)
    names = [{name.split("/")[0] for name in step(batch(12 * index)).metrics() if "/" in name} for index in range(3)]
    assert names[0] == {"predicted_noise", "noise_error"}
    assert names[1] == names[2] == {"log_density_gap", "curvature"}


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("model", {"network": "resnet"}, "model.network: got resnet, expected wide_resnet, unet, timm:NAME, or MODULE"),
        ("model", {"network": "a.b"}, "model.network: got a.b"),
        ("model", {"network": "a/b:c"}, "model.network: got a/b:c"),
        ("model", {"network": "timm:hf_hub:me/net"}, "model.network: got timm:hf_hub"),
        ("model", {"network": "timm:"}, "model.network: got timm:"),
        ("model", {"options": '{"a": 1}'}, 'model.options: got {"a": 1}, expected {} for a built-in network'),
        ("model", {"network": "a:B", "options": "[1]"}, "model.options: got .1., expected a JSON object"),
        ("model", {"network": "a:B", "options": "{"}, "model.options: got {, expected a JSON object"),
        ("model", {"network": "a:B", "patch_size": 2}, "model.patch_size: got 2"),
        ("model", {"network": "a:B", "resolution": 0}, "model.resolution: got 0, expected positive"),
        ("mcmc", {"kernel": "hmc"}, "mcmc.kernel: got hmc, expected langevin, leimkuhler_matthews, or MODULE:NAME"),
        ("mcmc", {"sampling_kernel": "hmc"}, "mcmc.sampling_kernel: got hmc"),
        ("mcmc", {"energy_scale": "step_size"}, "expected unit, since the output of a unet"),
        ("optim", {"objective": "mle"}, "optim.objective: got mle, expected recovery, normal_likelihood, dsm, score_m"),
        ("optim", {"first_objective": "mle"}, "optim.first_objective: got mle"),
    ],
)
def test_names_are_checked_without_an_import(part: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("{", r"\{").replace("}", r"\}")):
        changed(**{part: fields})


def test_odd_sizes_are_the_networks_own_affair() -> None:
    network = build_network(changed({"network": "my_network:MyNetwork", "resolution": 7}))
    assert network(torch.zeros(2, 1, 7, 7), torch.tensor([0, 1])).shape == (2,)


NETWORKS = {
    "Shape": ("return y", "got torch.float32 of shape (3, 1, 8, 8) for 3 images, expected one floating-point number"),
    "Column": ("return self.f(y.flatten(1))", "of shape (3, 1) for 3 images"),
    "Whole": ("return self.f(y.flatten(1)).sum(1).long()", "got torch.int64 of shape (3,)"),
    "Nothing": ("return None", "got a NoneType for 3 images"),
    "Infinite": ("return self.f(y.flatten(1)).sum(1) / 0", "got an output that is not finite"),
    "Deaf": ("return self.f(y.flatten(1).detach()).sum(1)", "got no gradient with respect to the image"),
    "Rounded": ("return self.f(y.flatten(1).round()).sum(1)", "got no gradient with respect to the image"),
    "Noisy": ("return self.f(nn.functional.dropout(y.flatten(1))).sum(1)", "another output for the same images"),
    "Mixing": ("return self.f((y - y.mean(0)).flatten(1)).sum(1)", "beside others than alone"),
    "Hidden": ("return self.f(y.flatten(1)).sum(1) + HIDDEN(y.flatten(1)).sum(1)", "not among its parameters"),
    "Unused": ("return (y * self.f.bias).sum((1, 2, 3))", "got the parameter f.weight without a part in the output"),
    "Raising": ("return self.g(y)", "got AttributeError ("),
    "Counting": ("self.count += 1; return self.f(y.flatten(1)).sum(1)", "changes the buffer count"),
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    lines = ["import torch", "from torch import nn", "HIDDEN = nn.Linear(64, 1)", "three = 3"]
    for name, (body, _) in NETWORKS.items():
        lines += [
            f"class {name}(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            "        self.f = nn.Linear(64, 1)",
            "        self.register_buffer('count', torch.zeros(()))",
            "    def forward(self, y, t):",
            f"        {body}",
        ]
    lines += [
        "class Normalised(nn.Module):",
        "    def __init__(self, channels):",
        "        super().__init__()",
        "        self.f = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4))",
        "    def forward(self, y, t): return self.f(y).sum((1, 2, 3))",
        "class Tied(Normalised):",
        "    def __init__(self):",
        "        super().__init__(1)",
        "        self.f = nn.Linear(8, 8); self.g = nn.Linear(8, 8); self.g.weight = self.f.weight",
        "class Empty(nn.Module):",
        "    def forward(self, y, t): return y.sum((1, 2, 3))",
        "class Needy(nn.Module):",
        "    def __init__(self, depth): super().__init__()",
        "def number(): return 3",
        "class Kernel:",
        "    num_uniforms = 0",
        "    def __init__(self, density): pass",
        "    def init(self, y): return y",
        "    def __call__(self, state, noise): return state, None",
        "class NoKernel: pass",
        "class Objective:",
        "    needs_negatives = needs_gradient = False; reports = ('a',)",
        "    def outcome(self, forward, pairs, y_neg, here):",
        "        return forward(pairs.y_pos, pairs.level), {}",
        "class Reporting(Objective):",
        "    def outcome(self, forward, pairs, y_neg, here):",
        "        return forward(pairs.y_pos, pairs.level).mean(), {'b': pairs.level}",
        "class Failing(Objective):",
        "    def outcome(self, forward, pairs): pass",
    ]
    (tmp_path / f"{MODULE}.py").write_text("\n".join(lines))
    (tmp_path / f"{MODULE}_broken.py").write_text("1 / 0")
    (tmp_path / f"{MODULE}_needy.py").write_text("import no_such_package_anywhere")
    # As a job's working directory, which no path of Python's names.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield MODULE
    for name in (MODULE, f"{MODULE}_broken", f"{MODULE}_needy"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_no_energy_is_refused(module: str, name: str) -> None:
    with pytest.raises(UserError) as error:
        build_network(changed({"network": f"{module}:{name}"}))
    assert NETWORKS[name][1] in str(error.value) and str(error.value).startswith(f"network {module}:{name}: got ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("Normalised", "{}", "got batch normalisation in f.1, expected no statistics of the batch"),
        ("Tied", "{}", "got f.weight and g.weight in one tensor"),
        ("Empty", "{}", "got no parameters"),
        ("Needy", "{}", "which raises TypeError (Needy.__init__() missing 1 required positional argument: 'depth')"),
        ("Needy", '{"width": 3}', "got an unexpected keyword argument 'width'"),
        ("number", "{}", "which makes a int, expected a torch.nn.Module"),
        ("three", "{}", "which is of type int, expected a class or a function"),
        ("Missing", "{}", "which has no such name"),
        ("_broken:A", "{}", "whose module raises ZeroDivisionError (division by zero)"),
        ("_needy:A", "{}", "for which there is no module no_such_package_anywhere"),
        ("_absent:A", "{}", f"for which there is no module {MODULE}_absent"),
    ],
)
def test_what_cannot_be_made_is_refused(module: str, path: str, options: str, message: str) -> None:
    name = module + (path if path.startswith("_") else f":{path}")
    with pytest.raises(UserError) as error:
        check_own_parts(changed({"network": name, "options": options}))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"mcmc": {"kernel": "Kernel"}}, "whose state is a Tensor, expected a NamedTuple with a field y"),
        ({"mcmc": {"kernel": "NoKernel"}}, "which raises AttributeError ('NoKernel' object has no attribute"),
        ({"mcmc": {"sampling_kernel": "Missing"}}, "config field mcmc.sampling_kernel: got Missing of module"),
        ({"optim": {"objective": "NoKernel"}}, "without needs_negatives and needs_gradient and reports and outcome"),
        ({"optim": {"first_objective": "Missing"}}, "config field optim.first_objective: got Missing of module"),
    ],
)
def test_kernels_and_objectives_that_are_none(module: str, parts: dict[str, dict[str, str]], message: str) -> None:
    named = {part: {field: f"{module}:{name}" for field, name in fields.items()} for part, fields in parts.items()}
    with pytest.raises(UserError) as error:
        check_own_parts(changed({"width": 8}, **named))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Objective", "whose loss is of shape (12,), expected a number with gradients"),
        ("Reporting", "which reports {'b': (12,)}, expected a, each of shape (12,)"),
        ("Failing", "whose outcome raises TypeError ("),
    ],
)
def test_an_outcome_that_is_none(module: str, name: str, message: str) -> None:
    experiment = own(optim={"objective": f"{module}:{name}", "first_objective": None, "first_objective_steps": 0})
    step = TrainStep(TrainState.create(experiment), experiment, EAGER)
    with pytest.raises(UserError) as error:
        step(batch(0))
    assert message in str(error.value)


def test_configs_from_elsewhere_import_nothing_unasked(module: str) -> None:
    experiment = changed({"network": f"{module}:Shape"}, {"kernel": "my_kernel:MyKernel"})
    with pytest.raises(UserError, match=f"my_kernel:MyKernel and {module}:Shape, code that is not part") as error:
        check_allowed(experiment, (), "model x")
    assert f"--allow-code my_kernel:MyKernel {module}:Shape" in str(error.value) and module not in sys.modules
    with pytest.raises(UserError, match="got my_kernel:MyKernel, code"):
        check_allowed(experiment, [f"{module}:Shape"], "model x")
    check_allowed(experiment, [f"{module}:Shape", "my_kernel:MyKernel"], "model x")
    check_allowed(preset("digits", "unet"), (), "model x")
