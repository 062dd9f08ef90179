"""Options that run a trained model's chains in another way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from drl_dist.common.errors import UserError
from drl_dist.config.presets import preset
from drl_dist.config.rules import check_experiment
from drl_dist.jobs.common.chains import CHAIN_FIELDS, with_chains
from drl_dist.jobs.edit.options import InterpolateOptions
from drl_dist.jobs.sample.driver import sample_request
from drl_dist.jobs.sample.options import SampleOptions
from drl_dist.library.stored import TrainedModel


@pytest.mark.parametrize("options", [SampleOptions, InterpolateOptions])
def test_what_is_given_takes_the_place_of_the_model_s_own(
    options: type[SampleOptions] | type[InterpolateOptions],
) -> None:
    model = preset("digits", "unet")
    assert with_chains(model, options()) == model
    made = with_chains(
        model, options(noise_scale=0.5, num_chain_steps=0, bound_fraction=1.5, chain_kernel="leimkuhler_matthews")
    )
    check_experiment(made)
    mcmc = made.mcmc
    assert (mcmc.sampling_noise_scale, mcmc.sampling_chain_steps, mcmc.sampling_bound_fraction) == (0.5, 0, 1.5)
    assert (mcmc.kernel, mcmc.sampling_kernel) == (model.mcmc.kernel, "leimkuhler_matthews")


def test_what_a_model_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match=r"--num-chain-steps: got 0, expected at least 1 for a model with mcmc"):
        with_chains(preset("digits"), SampleOptions(num_chain_steps=0))
    with pytest.raises(UserError, match=r"--bound-fraction: got 0\.9, expected none, since the model has steps of"):
        with_chains(preset("digits"), SampleOptions(bound_fraction=0.9))
    check_experiment(with_chains(preset("digits", "t1k"), SampleOptions(num_chain_steps=1)))


def test_a_request_names_every_option_that_was_given() -> None:
    given = {"num_chain_steps": 2, "bound_fraction": 1.1, "chain_kernel": "leimkuhler_matthews"}
    assert set(given) == set(CHAIN_FIELDS)
    model = SimpleNamespace(experiment=preset("digits", "unet"), ema_sha256="a", config_sha256="b")
    record = sample_request(SampleOptions(**given), cast(TrainedModel, model)).to_record()
    assert {name: record[name] for name in CHAIN_FIELDS} == given
    assert not set(CHAIN_FIELDS) & set(sample_request(SampleOptions(), cast(TrainedModel, model)).to_record())
