"""Every option that names a place takes it as a name, or refuses it with status 2 before anything is written."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import memory, shares
from benchmarks.results import open_results
from drl_dist.common.errors import UserError
from drl_dist.common.nested import flatten, to_dict
from drl_dist.config.presets import preset
from drl_dist.config.tree import RunConfig
from drl_dist.evaluation.feature_spec import parse_features
from drl_dist.jobs.classify.options import ClassifyOptions, check_classify
from drl_dist.jobs.edit.options import InpaintOptions, InterpolateOptions, check_inpaint, check_interpolate
from drl_dist.jobs.evaluate.options import EvaluateOptions, check_evaluate
from drl_dist.jobs.likelihood import options as likelihood_options
from drl_dist.jobs.long_run import options as long_run_options
from drl_dist.jobs.ood.options import OodOptions, check_ood
from drl_dist.jobs.sample import options as sample_options
from drl_dist.jobs.sweep.options import parse_sweep
from drl_dist.jobs.train.options import parse_train
from drl_dist.toy.__main__ import main as toy
from drl_dist.tracking.curves import CurvesOptions, curves
from drl_dist.tracking.sync import main as sync

HOSTILE = ("gs://bucket/a#17", "gs://bucket/a*", "GS://bucket/a", "simplecache::gs://bucket/a", "s3://b/a?versionId=3")
LEGAL = "/data/photos::v2 #1 [a]*?%20"

JOBS: dict[str, tuple[Any, Callable[[Any], object], dict[str, object], tuple[str, ...]]] = {
    "sample": (
        sample_options.SampleOptions,
        sample_options.check_options,
        {"model": "/m", "out": "/o"},
        ("model", "out", "real"),
    ),
    "likelihood": (
        likelihood_options.LikelihoodOptions,
        likelihood_options.check_options,
        {"model": "/m", "data": "/d", "out": "/o"},
        ("model", "data", "out", "schedule"),
    ),
    "long_run": (
        long_run_options.LongRunOptions,
        long_run_options.check_options,
        {"model": "/m", "out": "/o"},
        ("model", "out", "schedule"),
    ),
    "interpolate": (
        InterpolateOptions,
        check_interpolate,
        {"model": "/m", "out": "/o", "labels": "data"},
        ("model", "out", "real"),
    ),
    "inpaint": (
        InpaintOptions,
        check_inpaint,
        {"model": "/m", "data": "/d", "out": "/o", "mask": "centre", "labels": "data"},
        ("model", "data", "out", "mask", "real"),
    ),
    "evaluate": (
        EvaluateOptions,
        check_evaluate,
        {"samples": "/s", "data": "/d"},
        ("samples", "data", "cache_dir", "json"),
    ),
    "ood": (
        OodOptions,
        check_ood,
        {"model": "/m", "data": "/d", "other": "/e", "out": "/o"},
        ("model", "data", "other", "out"),
    ),
    "classify": (
        ClassifyOptions,
        check_classify,
        {"model": "/m", "data": "/d", "out": "/o"},
        ("model", "data", "fit_data", "other", "out"),
    ),
}
"""Options, their check, some that are in order, and those that name places."""
NO_PLACES = {
    "tracking_uri", "features", "classifier", "steps_per_level", "kernel", "start", "precision", "task", "allow_code",
    "level", "constants", "given", "label", "labels", "compose",
}  # fmt: skip
"""Texts that name something else; the features have a test of their own."""
RUN_PLACES = ("data", "storage", "start_from", "loader.cache_dir", "loader.ledger_dir")
RUN_TEXTS = {"run_name", "tracking.uri", "tracking.experiment", "tracking.score_features", "loader.on_damage"}


@pytest.mark.parametrize("job", JOBS)
def test_no_option_that_can_name_a_place_is_forgotten(job: str) -> None:
    kind, _, _, places = JOBS[job]
    texts = {
        field.name for field in dataclasses.fields(kind) if "str" in str(field.type) or "Literal" in str(field.type)
    }
    assert texts - NO_PLACES == set(places)


def test_no_field_of_a_run_that_can_name_a_place_is_forgotten() -> None:
    fields = flatten(to_dict(RunConfig(experiment=preset("digits"))))
    texts = {
        name for name, value in fields.items() if isinstance(value, str) or name.endswith(("_dir", "_from", "uri"))
    }
    of_the_run = {name for name in texts if not name.startswith(("experiment.", "engine."))}
    assert of_the_run == set(RUN_PLACES) | RUN_TEXTS


@pytest.mark.parametrize("place", HOSTILE)
@pytest.mark.parametrize(("job", "option"), [(job, option) for job, row in JOBS.items() for option in row[3]])
def test_a_job_refuses_what_it_cannot_take_as_a_name(job: str, option: str, place: str) -> None:
    kind, check, good, _ = JOBS[job]
    check(kind(**good))
    suffix = ".png" if option == "mask" else ""
    with pytest.raises(UserError, match=rf"option --{option.replace('_', '-')}: got "):
        check(kind(**good | {option: place + suffix}))


@pytest.mark.parametrize(("job", "option"), [(job, option) for job, row in JOBS.items() for option in row[3]])
def test_a_job_takes_a_name_as_it_is(job: str, option: str) -> None:
    kind, check, good, _ = JOBS[job]
    check(kind(**good | {option: LEGAL + (".png" if option == "mask" else "")}))


@pytest.mark.parametrize("place", [*HOSTILE, "/a\nb", "gs:///x"])
@pytest.mark.parametrize("field", RUN_PLACES)
def test_a_run_refuses_what_it_cannot_take_as_a_name(field: str, place: str) -> None:
    words = ["--data", "/d", "--storage", "/s", "--run-name", "r", "--" + field.replace("_", "-"), place]
    with pytest.raises(UserError, match=rf"config field {field}: got "):
        parse_train("digits", words)
    sweep = ["--preset", "digits", "--sweep-name", "s", *words[:4], *words[6:]]
    with pytest.raises(UserError, match=rf"config field {field}: got "):
        parse_sweep(sweep)


@pytest.mark.parametrize("field", RUN_PLACES)
def test_a_run_takes_a_name_as_it_is(field: str) -> None:
    words = ["--data", "/d", "--storage", "/s", "--run-name", "r", "--" + field.replace("_", "-"), LEGAL]
    run, _ = parse_train("digits", words)
    assert flatten(to_dict(run))[field] == LEGAL


def test_caches_and_ledgers_lie_on_the_machine() -> None:
    for field in ("loader.cache-dir", "loader.ledger-dir"):
        for place in ("gs://bucket/a", "cache"):
            words = ["--data", "/d", "--storage", "/s", "--run-name", "r", "--" + field, place]
            with pytest.raises(UserError, match=r"a folder of this machine, by its absolute path"):
                parse_train("digits", words)


@pytest.mark.parametrize("kind", ["inception={}", "timm:resnet18={}", "torchscript:{}"])
def test_a_feature_network_lies_in_a_file(kind: str) -> None:
    assert parse_features(kind.format(LEGAL)).source == LEGAL
    for place in (*HOSTILE, "/a/", "gs://bucket"):
        with pytest.raises(UserError, match=r"feature network"):
            parse_features(kind.format(place))


@pytest.mark.parametrize("name", ["celeba", "cifar10", "cifar100", "digits", "fashion_mnist", "folder", "lsun"])
def test_preparation_refuses_before_it_writes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option itself, whatever the source: `build` looks at it first."""
    from datasets_prep._build import PrepOptions, build

    module = importlib.import_module(f"datasets_prep.{name}")
    options = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, PrepOptions)]
    assert options, "its options are those of all data sets"
    monkeypatch.chdir(tmp_path)
    for place in (*HOSTILE, "gs:/bucket/x", "~/x"):
        with pytest.raises(UserError, match=r"^--out: got "):
            build(_Nothing(), PrepOptions(out=place))  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())


class _Nothing:
    name, split, channels, digest = "images", "train", 3, ""

    def __len__(self) -> int:
        return 1


def test_the_other_commands_refuse_before_they_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (*HOSTILE, "gs://bucket/x.png"):
        with pytest.raises(UserError, match=r"--out: got "):
            toy(["--out", place])
        with pytest.raises(UserError, match=r"--out: got "):
            curves(CurvesOptions(run_name="r", out=place, uri="http://127.0.0.1:9"))
        with pytest.raises(SystemExit) as ended:
            sync(place)
        assert ended.value.code == 2
        with pytest.raises(UserError, match=r"--folder: got "):
            _demo(place)
    assert not list(tmp_path.iterdir())


def _demo(folder: str) -> None:
    from drl_dist.jobs.demo import DemoOptions, demo

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drl_dist.jobs.demo.end_on_signals", lambda: None)
        demo(DemoOptions(folder=folder), Path())


@pytest.mark.slow
def test_a_space_file_has_any_legal_name(tmp_path: Path) -> None:
    place = tmp_path / "space::v2 #1 [a]*.json"
    place.write_text(json.dumps({"optim.beta1": [0.9, 0.8]}))
    words = ["--preset", "digits", "--sweep-name", "s", "--data", "/d", "--storage", "/s"]
    parse_sweep([*words, "--space-file", str(place)])
    for other in (*HOSTILE, f"{tmp_path}/", "gs://bucket"):
        with pytest.raises(UserError, match=r"--space-file"):
            parse_sweep([*words, "--space-file", other])


@pytest.mark.parametrize("name", ["benchmarks.ablation", "benchmarks.reliability"])
def test_benchmarks_refuse_before_they_write(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    for place in HOSTILE:
        monkeypatch.setattr(sys, "argv", [name, "--out", place])
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["benchmarks.ablation", "benchmarks.reliability"])
def test_benchmarks_leave_a_table_of_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(name)
    (tmp_path / "table.md").write_text("mine")
    monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    assert "with table.md of something else, expected a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
    # Beside a result of an earlier start it is the benchmark's own.
    parser = argparse.ArgumentParser()
    open_results(parser, tmp_path, ["table.md"], ["table.md"])
    with pytest.raises(SystemExit):
        open_results(parser, tmp_path, ["other.json"], ["table.md"])


@pytest.mark.parametrize("module", [memory, shares])
def test_benchmarks_refuse_a_file_and_cases_before_they_measure(
    module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path, tmp_path / "nonesuch/figures.json"):
        with pytest.raises(SystemExit) as ended:
            module.main(["--json", str(place)])
        assert ended.value.code == 2
        assert f"--json: got {place}, expected a file in a folder that is there" in capsys.readouterr().err
    with pytest.raises(UserError, match="--cases: got ,, expected one or more"):
        module.main(["--cases", ","])
