"""The output folder of every job over a model: killed anywhere it resumes, and it is nobody else's."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drl_dist.common.errors import UserError
from drl_dist.data.filesystem import Folder
from drl_dist.jobs.edit.driver import inpaint_run, interpolate_run
from drl_dist.jobs.edit.options import InpaintOptions, InterpolateOptions
from drl_dist.jobs.likelihood import driver as likelihood_driver
from drl_dist.jobs.likelihood.driver import likelihood_run
from drl_dist.jobs.likelihood.options import LikelihoodOptions
from drl_dist.jobs.long_run import output as long_run_output
from drl_dist.jobs.long_run.driver import long_run
from drl_dist.jobs.long_run.options import LongRunOptions
from drl_dist.jobs.ood import driver as ood
from drl_dist.jobs.ood.driver import ood_run
from drl_dist.jobs.ood.options import OodOptions
from drl_dist.jobs.sample import driver as sample_driver
from drl_dist.jobs.sample.driver import sample_run
from drl_dist.jobs.sample.options import SampleOptions
from drl_dist.mcmc.settings import AdaptationConfig
from tests.jobs.in_process import run_in_process


class Killed(BaseException):
    """Ends a job after a write or a removal."""


@dataclass(frozen=True)
class Job:
    """A job that has several tasks of work, and another request for the same folder.

    Args:
        run: of its options.
        kind: of the options.
        fields: of the options, model and output folder apart.
        needs: options that name data.
        resumes_older: whether folders of 0.1.0 hold records.
        other: what another request differs in.
        told: how it is told of.
        resumed: what it says when it resumes.
    """

    run: Callable[[Any], int]
    kind: type[Any]
    fields: dict[str, Any]
    resumed: str
    needs: tuple[str, ...] = ()
    resumes_older: bool = True
    other: dict[str, Any] = field(default_factory=lambda: {"seed": 6})
    told: str = r"\(seed: 5 -> 6\)"

    def start(self, model: Path, out: Path, **changed: Any) -> int:
        data = {name: str(model.parent / name) for name in self.needs}
        given = {"model": str(model), "out": str(out), "seed": 5, **data, **self.fields, **changed}
        return self.run(self.kind(**given))


ADAPT = AdaptationConfig(num_chains=6, num_steps=6, lowest_rate=0.2, highest_rate=0.99)
JOBS = {
    "sample": Job(
        sample_run, SampleOptions, {"num_images": 5, "shard_size": 2, "batch_size": 2}, "1 of 3 shards to make"
    ),
    "likelihood": Job(
        likelihood_run,
        LikelihoodOptions,
        {"steps_per_level": "1", "num_chains": 3, "num_images": 3, "batch_size": 2, "adapt": ADAPT},
        "3 of 6 tasks to make",
        needs=("data",),
    ),
    "long_run": Job(
        long_run,
        LongRunOptions,
        {"steps_per_level": "1,2", "num_images": 3, "batch_size": 2, "threads": 1, "adapt": ADAPT},
        "resumes at 2 steps per level, with 1 of 2 batches done",
    ),
    "interpolate": Job(
        interpolate_run,
        InterpolateOptions,
        {"pairs": 1, "columns": 5, "batch_size": 2},
        "resumes with 2 of 5 images",
        resumes_older=False,
    ),
    "inpaint": Job(
        inpaint_run,
        InpaintOptions,
        {"mask": "centre", "num_images": 1, "num_completions": 3, "num_rounds": 1, "batch_size": 2},
        "resumes with 2 of 3 images",
        needs=("data",),
    ),
    "ood": Job(
        ood_run,
        OodOptions,
        {"num_images": 7, "batch_size": 4},
        "resumes at image 7 of 7 of the data",
        needs=("data", "other"),
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; beside it are two sets of images, and in ``begun`` folders of `JOBS`. All were made by 0.1.0."""
    folder = tmp_path_factory.mktemp("jobs")
    with tarfile.open(Path(__file__).with_name("begun.tar.gz")) as tar:
        tar.extractall(folder, filter="data")
    return folder / "checkpoint"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_process(monkeypatch, sample_driver, likelihood_driver)
    # What figures show is tested elsewhere, and drawing them takes longer than all the rest.
    monkeypatch.setattr(likelihood_driver, "figure", lambda *_: b"figure")
    monkeypatch.setattr(long_run_output, "figure", lambda *_: b"figure")
    monkeypatch.setattr(ood, "histogram_png", lambda *_: b"figure")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_times(files: dict[str, bytes]) -> dict[str, Any]:
    """The same, but for how long it took."""
    found: dict[str, Any] = dict(files)
    if "likelihood.json" in found:
        report = json.loads(found["likelihood.json"])
        assert report.pop("worker_seconds") >= 0
        found["likelihood.json"] = report
    return found


def kill_after_everything_new(monkeypatch: pytest.MonkeyPatch, out: Path) -> set[str]:
    """Let a job be killed after the first write, and the first removal, of each file; the files, as they are written.

    A write that is killed leaves a part of a file beside it.
    """
    seen: set[str] = set()
    written: set[str] = set()

    def killing(work: Callable[..., None], verb: str) -> Callable[..., None]:
        def then_kill(self: Folder, name: str, *data: bytes) -> None:
            work(self, name, *data)
            assert self.local is not None
            place = self.local / name
            if f"{verb} {place}" not in seen:
                seen.add(f"{verb} {place}")
                if verb == "write":
                    written.add(str(place.relative_to(out)))
                    place.with_name(f".{name}.0123abcd.part").write_bytes(b"half")
                raise Killed

        return then_kill

    monkeypatch.setattr(Folder, "write", killing(Folder.write, "write"))
    monkeypatch.setattr(Folder, "remove", killing(Folder.remove, "remove"))
    return written


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_is_killed_everywhere_ends_as_one_that_is_not(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, straight, out = JOBS[name], tmp_path / "straight", tmp_path / "killed"
    assert job.start(model, straight) == 0
    assert not (straight / "_progress").exists()
    notes = {place: b"mine" for place in ("notes.txt", "_progress/notes.txt", "_progress/.notes.txt.0123abcd.part")}
    capsys.readouterr()
    kills, is_done = 0, False
    with pytest.MonkeyPatch.context() as killing:
        written = kill_after_everything_new(killing, out)
        while not is_done:
            try:
                assert job.start(model, out) == 0
                is_done = True
            except Killed:
                kills += 1
                if kills == 1:
                    # Into a folder that holds them it would not have begun.
                    for place, content in notes.items():
                        (out / place).parent.mkdir(parents=True, exist_ok=True)
                        (out / place).write_bytes(content)
                before = contents(out)
                with pytest.raises(UserError, match=f"output .*/killed: got (another request|other images) {job.told}"):
                    job.start(model, out, **job.other)
                assert contents(out) == before
    assert job.resumed in capsys.readouterr().out
    assert kills > len(contents(straight))
    assert without_times(contents(out)) == without_times(contents(straight)) | notes

    # Done, it has nothing to do; what it wrote is somebody else's where no request says otherwise.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert job.start(model, out) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    foreign = tmp_path / "foreign"
    names = sorted(written - {"request.json", "_progress/request.json"})
    if name in ("sample", "likelihood"):
        # Their results say what they were made for: a damaged one is told of by itself.
        names.remove({"sample": "index.parquet", "likelihood": "likelihood.json"}[name])
    for place in names:
        (foreign / place).parent.mkdir(parents=True, exist_ok=True)
        (foreign / place).write_bytes(b"mine")
    with pytest.raises(UserError, match=rf" and {len(names) - 3} more of something else, expected an empty folder"):
        job.start(model, foreign)
    assert contents(foreign) == dict.fromkeys(names, b"mine")


@pytest.mark.parametrize("name", [name for name in JOBS if name != "inpaint"])
def test_a_folder_that_an_earlier_version_began_resumes(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But that of inpainting, whose request holds the address of its images."""
    job, out = JOBS[name], tmp_path / "out"
    shutil.copytree(model.parent / "begun" / name, out)
    before = contents(out)
    with pytest.raises(UserError, match=f"output .*/out: got (another request|other images) {job.told}"):
        job.start(model, out, **job.other)
    assert contents(out) == before
    assert job.start(model, out) == 0
    printed = capsys.readouterr().out
    assert (job.resumed if job.resumes_older else "5 images in") in printed
    after = contents(out)
    kept = [place for place in before if place.endswith((".tar", "step_sizes.json")) or place == "request.json"]
    assert kept and {place: after[place] for place in kept} == {place: before[place] for place in kept}
    assert not (out / "_progress").exists()
