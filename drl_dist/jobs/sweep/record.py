"""A sweep's folder: what the sweep is, and what has become of each trial.

    STORAGE/SWEEP/sweep.json                   what was asked for; the same name cannot come to mean something else
    STORAGE/SWEEP/SWEEP-0003/trial.json        the trial's point, written before it starts
    STORAGE/SWEEP/SWEEP-0003/curve.json        its scores so far, written by its first worker before each checkpoint
    STORAGE/SWEEP/SWEEP-0003/outcome.json      how it ended; a trial without one continues at the next start
    STORAGE/SWEEP/SWEEP-0003/rescore-0.json    its final score with images of seed 0

All of it is JSON that is read strictly: a sweep continues from these files alone, and nothing is unpickled. A trial's
folder is also its run folder, with checkpoints and all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from drl_dist.checkpoints.earlier_records import as_begun, lacking, without
from drl_dist.checkpoints.format import parse_json_object
from drl_dist.checkpoints.run_record import RECORD
from drl_dist.common.errors import UserError
from drl_dist.common.nested import completed, differences, to_dict
from drl_dist.common.places import joined
from drl_dist.config.tree import Experiment
from drl_dist.data.filesystem import Folder
from drl_dist.jobs.sweep.options import SweepPlan
from drl_dist.jobs.sweep.space import Values

SWEEP, TRIAL, CURVE, OUTCOME = "sweep.json", "trial.json", "curve.json", "outcome.json"
BAD_SCORE = 1e12
"""Score of a trial that diverged: finite, since successive halving lets a trial that reports NaN continue for ever."""
OBJECTIVE = "score/kid"
"""What trials are ranked by; smaller is better."""
# More trials may be asked for later, and how many run at a time says nothing about them.
_MAY_CHANGE = ("options.num_samples:", "options.max_concurrent:", "options.rescore_", "num_trials:")

Status = Literal["finished", "stopped", "diverged", "failed"]
"""finished: all steps are made; stopped: its score was behind; diverged; failed: to be tried again."""

_STRICT = ConfigDict(extra="forbid", strict=True)
Stored = TypeVar("Stored", bound="Trial | Curve | Outcome | Rescore")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was proposed."""

    number: int
    values: dict[str, Any]
    """The trial's point, by the space's names."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One score of a trial."""

    step: int
    images_seen: int
    scores: dict[str, float]
    """By metric name; `OBJECTIVE` is among them."""

    @property
    def score(self) -> float:
        """What the trial is ranked by."""
        return self.scores[OBJECTIVE]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The scores of a trial, and what its watch remembers."""

    points: tuple[Point, ...] = ()
    first_gaps: dict[str, float] = dataclasses.field(default_factory=dict[str, float])
    num_first_steps: int | None = None
    """Steps that `first_gaps` are of; None in records of earlier versions, where they are of the first steps made."""

    def before(self, step: int) -> Curve:
        """Without what came after a step: a trial that continues from a checkpoint makes it again."""
        return dataclasses.replace(self, points=tuple(point for point in self.points if point.step <= step))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    status: Status
    reason: str
    score: float
    """The last one, `BAD_SCORE` if it diverged or never had one."""
    step: int
    images_seen: int


@dataclass(frozen=True, kw_only=True)
class Rescore:
    """The final score of a trial with the images of one seed."""

    seed: int
    num_images: int
    step: int
    """Of the checkpoint."""
    features: str
    data_fingerprint: str
    scores: dict[str, float]


# A TypeAdapter takes no settings for a bare dataclass, but nested ones inherit those of the tuple around them.
_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    Trial: TypeAdapter(tuple[Trial], config=_STRICT),
    Curve: TypeAdapter(tuple[Curve], config=_STRICT),
    Outcome: TypeAdapter(tuple[Outcome], config=_STRICT),
    Rescore: TypeAdapter(tuple[Rescore], config=_STRICT),
}


def read(folder: str, name: str, kind: type[Stored]) -> Stored | None:
    """A record of a trial's folder, None if there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        text = Folder(folder).read(name)
    except FileNotFoundError:
        return None
    try:
        return _ADAPTERS[kind].validate_json(b"[" + text + b"]")[0]
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"record {folder}/{name}" + "".join(f", field {part}" for part in first["loc"][1:2]),
            got=str(first["input"])[:80],
            expected=first["msg"],
            remedy="give the sweep another name, or remove this trial's folder to make it again",
        ) from error


def write(folder: str, name: str, record: Trial | Curve | Outcome | Rescore) -> None:
    """Write a record whole."""
    Folder(folder).write(name, (json.dumps(dataclasses.asdict(record), indent=2) + "\n").encode())


class SweepFolder:
    """The folder of a sweep.

    Args:
        plan: what was asked for.
        data_fingerprint: of the data's index.
    """

    def __init__(self, plan: SweepPlan, data_fingerprint: str) -> None:
        self.plan, self.fingerprint = plan, data_fingerprint
        self.url = joined(plan.base.storage, plan.options.sweep_name)

    def run_name(self, number: int) -> str:
        """Name of a trial's run."""
        return f"{self.plan.options.sweep_name}-{number:04d}"

    def trial_url(self, number: int) -> str:
        """Folder of a trial, which is its run's folder."""
        return f"{self.url}/{self.run_name(number)}"

    def check(self, results: Collection[str] = ()) -> None:
        """Return if the folder is new or holds this sweep.

        Args:
            results: names of the files that the sweep writes there in the end.

        Raises:
            UserError: it holds another one; the message lists every field that differs. Or it holds files of these
                names, or a first trial, and no record that says of which sweep.
        """
        try:
            text = Folder(self.url).read(SWEEP)
        except FileNotFoundError:
            first = Folder(self.trial_url(0)).sizes()
            found = sorted(set(results) & Folder(self.url).sizes().keys())
            found += [f"{self.run_name(0)}/{name}" for name in (TRIAL, CURVE, OUTCOME, RECORD) if name in first]
            if found:
                raise UserError(
                    f"sweep {self.url}",
                    got=f"{', '.join(found[:3])} of something else, without {SWEEP}",
                    expected="a new folder, or one of this sweep",
                    remedy="give the sweep another --sweep-name, or another --storage",
                ) from None
            return
        stored = parse_json_object(text, source=f"record {self.url}/{SWEEP}")
        stored = completed(stored, {"experiment": to_dict(Experiment(preset=""))})
        changed = [line for line in differences(stored, self._facts()) if not line.startswith(_MAY_CHANGE)]
        if changed:
            raise UserError(
                f"sweep {self.url}",
                got="changed fields " + "; ".join(changed),
                expected="the sweep that was started under this name",
                remedy="give the changed sweep a --sweep-name of its own, or undo the changes",
            )

    def begin(self) -> None:
        """Write what the sweep is."""
        facts = self._facts()
        facts["experiment"] = without(facts["experiment"], lacking(self.url, SWEEP))
        Folder(self.url).write(SWEEP, (json.dumps(facts, indent=2) + "\n").encode())

    def trials(self) -> list[Trial]:
        """Those that were proposed so far, in order."""
        found: list[Trial] = []
        for number in range(self.plan.num_trials):
            trial = read(self.trial_url(number), TRIAL, Trial)
            if trial is None:
                break
            found.append(trial)
        return found

    def curve(self, number: int) -> Curve:
        """A trial's scores so far."""
        return read(self.trial_url(number), CURVE, Curve) or Curve()

    def outcome(self, number: int) -> Outcome | None:
        """How a trial ended; None if it continues, or is to be tried again."""
        found = read(self.trial_url(number), OUTCOME, Outcome)
        return None if found is None or found.status == "failed" else found

    def propose(self, number: int, values: Values) -> None:
        """Keep a new trial's point."""
        write(self.trial_url(number), TRIAL, Trial(number=number, values=dict(values)))

    def _facts(self) -> dict[str, Any]:
        plan = self.plan
        base = to_dict(plan.base)
        score = {name: value for name, value in base["tracking"].items() if name.startswith("score_")}
        options = to_dict(plan.options)
        for name in ("space", "space_file"):
            del options[name]
        # A dimension as one text: a changed space is reported dimension by dimension.
        space = {name: json.dumps(one) for name, one in plan.space.as_json().items()}
        return {
            "experiment": base["experiment"],
            "score": score,
            "space": space,
            "options": options,
            "grace_images": plan.grace_images,
            "data_fingerprint": self.fingerprint,
        }


def continued(plan: SweepPlan) -> SweepPlan:
    """The plan as its folder has it, if an earlier version began it: see `drl_dist.checkpoints.earlier_records`.

    Raises:
        UserError: its record is damaged.
    """
    names = lacking(joined(plan.base.storage, plan.options.sweep_name), SWEEP)
    experiment = as_begun(plan.base.experiment, names, f"sweep {plan.options.sweep_name}")
    return dataclasses.replace(plan, base=dataclasses.replace(plan.base, experiment=experiment))
