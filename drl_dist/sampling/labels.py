"""What labels generated images are to have: the words of an option, and the energies that they stand for.

    --label cat,dog            image i has label i modulo the number of labels
    --label cat:8,dog:24       the first eight images are cats
    --label "Smiling & not Male:16"          attributes of one image, together
    --compose "Smiling & 2 * not Male - Hat" a sum of energies, one for each attribute or class

Names that hold a comma, a colon or one of the signs stand in double quotes.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.config.condition import ConditionConfig, ConditionKind, shown
from drl_dist.diffusion.noise import Noise, Purpose
from drl_dist.diffusion.recovery import RawAtLevel
from drl_dist.sampling.composition import Concept, LabelledRawAtLevel, composed

LABEL, LABELS, COMPOSE, GUIDANCE = "--label", "--labels", "--compose", "--guidance"
_PART = re.compile(r"\s*(?:(?P<weight>\d+(?:\.\d*)?|\.\d+)\s*\*\s*)?(?P<negation>not\s+)?(?P<name>.*?)\s*", re.DOTALL)
_SIGN = re.compile(r'("[^"]*")|(&)|(?:(?<=\s)|^)([+-])(?=\s)')
_COUNT = re.compile(r"(?P<label>.*):\s*(?P<count>\d{1,18})\s*", re.DOTALL)
_LONGEST = 60
"""Characters of a name that is not known, for a message."""
MAX_WEIGHT = 1_000_000
"""Largest weight of an energy in a sum, and largest w: far beyond what gives images, and no sum overflows."""


@dataclass(frozen=True)
class LabelCounts:
    """How frequent labels are in data."""

    images: tuple[int, ...]
    """That have each label."""
    labels: tuple[tuple[int, ...], ...] = ()
    """Attributes, 1, -1 or 0 each, that images have together; empty for classes, which stand in their own order."""


@dataclass(frozen=True)
class Wanted:
    """The labels of all images that are generated together.

    Args:
        kind: of the model's labels.
        rows: titles of the different labels, for pictures; empty without labels.
        vectors: (rows, size) labels as the network takes them, see `drl_dist.energy.condition`; of a sum of energies,
            one for each concept.
        counts: images of each row, one row after the other; None if rows take turns.
        shares: of each row, which then is drawn for each image; None otherwise.
        weights: of the concepts of a sum, which all images have; None otherwise.
        guidance: w of `drl_dist.sampling.composition`.
    """

    kind: ConditionKind = "none"
    rows: tuple[str, ...] = ()
    vectors: tuple[tuple[float, ...], ...] = ()
    counts: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None
    weights: tuple[float, ...] | None = None
    guidance: float = 0.0

    def row_of(self, ids: Tensor, noise: Noise) -> Tensor:
        """The row of each image, (B,) int64 on the CPU, a function of its number (and of the seed, where drawn).

        Args:
            ids: (B,) numbers of images.
            noise: of the job.
        """
        ids = ids.cpu()
        if self.weights is not None:
            return torch.zeros_like(ids)
        if self.shares is not None:
            numbers = noise.uniform(Purpose.SAMPLE_LABEL, ids, 0, (0,), 1)[0, :, 0].contiguous()
            limits = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)
            return torch.searchsorted(limits / limits[-1], numbers).clamp(max=len(self.rows) - 1)
        if self.counts is not None:
            return torch.tensor([bisect_right(self._ends, number) for number in ids.tolist()], dtype=torch.int64)
        return ids % len(self.rows)

    def raw_at(self, network: LabelledRawAtLevel, ids: Tensor, noise: Noise) -> RawAtLevel:
        """The network as the chains of these images see it.

        Args:
            network: `drl_dist.training.chain.GradientEngine.raw_at`.
            ids: (B,) numbers of images.
            noise: of the job.
        """
        if not self.rows:
            return network
        vectors = self._vectors
        if self.weights is None:
            concepts = [Concept(1.0, vectors[self.row_of(ids, noise)])]
        else:
            concepts = [Concept(weight, vector) for weight, vector in zip(self.weights, vectors, strict=True)]
        return composed(network, concepts, self.guidance)

    @property
    def num_energies(self) -> int:
        """Forwards of the network for each gradient."""
        if not self.rows:
            return 1
        weights = self.weights or (1.0,)
        total = (1 + self.guidance) * sum(weights)
        return sum(weight != 0 for weight in weights) + (total != 1)

    def label_of(self, row: int) -> int | list[int] | None:
        """The label of a row as data have it: the number of its class, or its attributes; None for a sum of energies,
        which is none."""
        if self.weights is not None or not self.rows:
            return None
        vector = self.vectors[row]
        return vector.index(1.0) if self.kind == "class" else [int(value) for value in vector]

    @cached_property
    def _vectors(self) -> Tensor:
        return torch.tensor(self.vectors)

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return tuple(accumulate(self.counts or ()))


def wanted(
    condition: ConditionConfig,
    *,
    label: str | None = None,
    labels: Literal["uniform", "data"] | None = None,
    compose: str | None = None,
    guidance: float | None = None,
    num_images: int | None = None,
    number_option: str = "--num-images",
    data: LabelCounts | None = None,
) -> Wanted:
    """What the options ask of a model.

    Args:
        condition: of the model.
        label, labels, compose, guidance: the options; see the top of the module.
        num_images: of the job, or what else has a label each; None where the counts of `label` say it.
        number_option: that says how many there are.
        data: labels that images are to have as often as data do; None if they are not known.

    Raises:
        UserError: the model knows no labels, or not these; an option cannot be read; or two contradict each other.
    """
    given = {LABEL: label, LABELS: labels, COMPOSE: compose}
    named = {option: value for option, value in given.items() if value is not None}
    asked = {**named, **({GUIDANCE: guidance} if guidance is not None else {})}
    if not asked:
        return Wanted()
    if condition.kind == "none":
        option, value = next(iter(asked.items()))
        raise UserError(
            option,
            got=f"{value}, for a model without labels",
            expected="a model that was trained with --condition.kind class or attributes",
            remedy="leave the option out, or choose another model",
        )
    if len(named) != 1:
        raise UserError(
            " and ".join(named) or GUIDANCE,
            got=f"{len(named)} of {LABEL}, {LABELS} and {COMPOSE}",
            expected="one of them, which says what images are to show",
            remedy="leave the others out" if named else f"add {LABEL}",
        )
    strength = 0.0 if guidance is None else guidance
    if not 0 <= strength <= MAX_WEIGHT:
        raise UserError(GUIDANCE, got=guidance, expected=f"a number from 0 to {MAX_WEIGHT}", remedy="correct it")
    for option, text in ((LABEL, label), (COMPOSE, compose)):
        if text is not None and text.count('"') % 2:
            raise UserError(
                option, got=text, expected="a second quote behind each name that begins with one", remedy="close it"
            )
    if compose is not None:
        return _composed(condition, compose, strength)
    if labels is not None:
        return _as_in_data(condition, data, strength) if labels == "data" else _all_classes(condition, strength)
    assert label is not None
    return _listed(condition, label, strength, num_images, number_option)


def rows_of_classes(condition: ConditionConfig, columns: int) -> Wanted:
    """All classes of a model, so many images of each, one class after the other."""
    return Wanted("class", condition.names, _one_hot(condition), counts=(columns,) * condition.size)


def _listed(
    condition: ConditionConfig, text: str, guidance: float, num_images: int | None, number_option: str
) -> Wanted:
    rows: list[str] = []
    vectors: list[tuple[float, ...]] = []
    counts: list[int] = []
    for entry in _split_at_commas(text):
        match = _COUNT.fullmatch(entry)
        # A name may end with a colon and a number itself.
        is_counted = match is not None and entry.strip() not in condition.names
        name = match["label"] if match is not None and is_counted else entry
        if match is not None and is_counted:
            counts.append(int(match["count"]))
        vector, title = _joint(condition, name)
        rows.append(title)
        vectors.append(vector)
    if not counts:
        return Wanted(condition.kind, tuple(rows), tuple(vectors), guidance=guidance)
    if len(counts) != len(rows) or min(counts) < 1:
        raise UserError(
            LABEL,
            got=text,
            expected="a number of images, 1 or more, behind each label, or behind none",
            remedy="write it as NAME:COUNT,NAME:COUNT",
        )
    if num_images is not None and sum(counts) != num_images:
        raise UserError(
            number_option,
            got=num_images,
            expected=f"{sum(counts)}, the numbers of {LABEL} together",
            remedy=f"give {number_option} {sum(counts)}, or leave the numbers of {LABEL} out",
        )
    return Wanted(condition.kind, tuple(rows), tuple(vectors), counts=tuple(counts), guidance=guidance)


def _all_classes(condition: ConditionConfig, guidance: float) -> Wanted:
    if condition.kind != "class":
        raise UserError(
            LABELS,
            got="uniform, for a model of attributes",
            expected="a model of classes, of which an image has exactly one",
            remedy=f"use {LABELS} data, or name attributes with {LABEL} or {COMPOSE}",
        )
    return Wanted(condition.kind, condition.names, _one_hot(condition), guidance=guidance)


def _as_in_data(condition: ConditionConfig, data: LabelCounts | None, guidance: float) -> Wanted:
    if data is None or not sum(data.images):
        raise UserError(
            LABELS,
            got="data, without data that say how frequent the model's labels are",
            expected="--real with the URL of shards with the model's labels",
            remedy="add --real" + (f", or use {LABELS} uniform" if condition.kind == "class" else ""),
        )
    shares = tuple(map(float, data.images))
    if condition.kind == "class":
        return Wanted(condition.kind, condition.names, _one_hot(condition), shares=shares, guidance=guidance)
    vectors = tuple(tuple(map(float, label)) for label in data.labels)
    titles = tuple(_title(condition, label) for label in data.labels)
    return Wanted(condition.kind, titles, vectors, shares=shares, guidance=guidance)


def _one_hot(condition: ConditionConfig) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in torch.eye(condition.size).tolist())


def _title(condition: ConditionConfig, label: Sequence[int]) -> str:
    """What is true of an image, and what is not known."""
    marks = {1: "", 0: "?"}
    known = (name + marks[value] for name, value in zip(condition.names, label, strict=True) if value in marks)
    return " & ".join(known) or "none"


def _composed(condition: ConditionConfig, text: str, guidance: float) -> Wanted:
    vectors: list[tuple[float, ...]] = []
    weights: list[float] = []
    for sign, part in _parts(text, COMPOSE):
        match = _PART.fullmatch(part)
        assert match is not None
        weight = sign * float(match["weight"] or 1)
        if abs(weight) > MAX_WEIGHT:
            raise UserError(
                COMPOSE, got=part[:_LONGEST], expected=f"weights up to {MAX_WEIGHT}", remedy="choose a smaller one"
            )
        value = 1.0
        if match["negation"]:
            # Of attributes the network knows what their absence looks like; of a class, images keep away from it.
            weight, value = (weight, -1.0) if condition.kind == "attributes" else (-weight, 1.0)
        vectors.append(_vector(condition, {_place(condition, match["name"], COMPOSE): value}))
        weights.append(weight)
    return Wanted(condition.kind, (" ".join(text.split()),), tuple(vectors), weights=tuple(weights), guidance=guidance)


def _joint(condition: ConditionConfig, text: str) -> tuple[tuple[float, ...], str]:
    """One label: a class, or several attributes of one image."""
    found: dict[int, float] = {}
    # A name may hold a sign itself.
    parts = [(1.0, f'"{text.strip()}"')] if text.strip() in condition.names else _parts(text, LABEL)
    for sign, part in parts:
        match = _PART.fullmatch(part)
        assert match is not None
        is_plain = sign > 0 and match["weight"] is None
        if not is_plain or (condition.kind == "class" and (len(parts) > 1 or match["negation"])):
            expected = "one class" if condition.kind == "class" else "attributes, joined by &, each maybe with not"
            raise UserError(
                LABEL,
                got=text.strip(),
                expected=expected,
                remedy=f"correct it, put a name that holds a sign in double quotes, or use {COMPOSE}",
            )
        place = _place(condition, match["name"], LABEL)
        if place in found:
            raise UserError(
                LABEL,
                got=f"{condition.names[place]} twice in {text.strip()}",
                expected="each attribute once",
                remedy="correct it",
            )
        found[place] = -1.0 if match["negation"] else 1.0
    title = " & ".join(("not " if value < 0 else "") + condition.names[place] for place, value in found.items())
    return _vector(condition, found), title


def _vector(condition: ConditionConfig, values: dict[int, float]) -> tuple[float, ...]:
    return tuple(values.get(place, 0.0) for place in range(condition.size))


def _parts(text: str, option: str) -> list[tuple[float, str]]:
    """The parts between signs, each with its own; outside of quotes."""
    pieces: list[tuple[float, str]] = []
    sign, begin, is_open = 1.0, 0, True
    for match in _SIGN.finditer(text):
        if match[1] is not None:
            continue
        before = text[begin : match.start()].strip()
        if before or not is_open or match[2] is not None or match[3] != "-":
            pieces.append((sign, before))
        sign, begin, is_open = -1.0 if match[3] == "-" else 1.0, match.end(), False
    pieces.append((sign, text[begin:].strip()))
    if any(not part for _, part in pieces):
        raise UserError(
            option,
            got=repr(text),
            expected="names with & or + or - between them, such as 'first & 2 * not second - third'",
            remedy="correct it",
        )
    return pieces


def _place(condition: ConditionConfig, name: str, option: str) -> int:
    """Where a name is among the model's, whatever its capitals."""
    plain = name.strip().strip('"').strip()
    if plain in condition.names:
        return condition.names.index(plain)
    alike = [place for place, known in enumerate(condition.names) if known.lower() == plain.lower()]
    if len(alike) == 1:
        return alike[0]
    near = difflib.get_close_matches(plain.lower(), [known.lower() for known in condition.names], n=1)
    hint = next((known for known in condition.names if near and known.lower() == near[0]), None)
    raise UserError(
        option,
        got=plain[:_LONGEST] or "an empty name",
        expected=f"one of the model's {condition.size} names: {shown(condition.names)}",
        remedy=f"use {hint}, if that was meant" if hint else "correct the name",
    )


def _split_at_commas(text: str) -> list[str]:
    # Quotes stay, so that the signs within them are not read as signs.
    fields = re.findall(r'(?:"[^"]*"|[^,"])+|(?<=,)(?=,|$)|^(?=,|$)', text)
    if not fields or any(not field.strip() for field in fields):
        raise UserError(LABEL, got=repr(text), expected="names with commas between them", remedy="correct it")
    return fields
