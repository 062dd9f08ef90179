"""What is asked of an image: which class, or of each attribute whether it is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_dist.common.errors import UserError
from drl_dist.config.condition import ConditionConfig, shown
from drl_dist.likelihood.bayes import attribute_conditions, class_conditions, unseen


@dataclass(frozen=True)
class Questions:
    """Q questions with K answers each, by the labels of a model."""

    is_class: bool
    """One question, the class; otherwise one for each attribute that is not given."""
    names: tuple[str, ...]
    """Of the model's labels."""
    given: tuple[int, ...] = ()
    """Numbers of the attributes that are known."""

    @property
    def asked(self) -> list[int]:
        """Numbers of the attributes that are asked for."""
        return [number for number in range(len(self.names)) if number not in self.given]

    @property
    def asked_names(self) -> list[str]:
        """Of the classes, or of the attributes that are asked for."""
        return list(self.names) if self.is_class else [self.names[number] for number in self.asked]

    @property
    def shape(self) -> tuple[int, int]:
        """(Q, K)."""
        return (1, len(self.names)) if self.is_class else (len(self.asked), 2)

    def conditions(self, labels: Tensor) -> Tensor:
        """What the network is given, for each answer to each question and, at the end, for no label: (Q K + 1, size) or
        (Q K + 1, B, size).

        Args:
            labels: of the images, see `drl_dist.common.batch.Batch.labels`.
        """
        if self.is_class:
            return class_conditions(len(self.names))
        known = torch.zeros_like(labels)
        given = list(self.given)
        known[:, given] = labels[:, given]
        return attribute_conditions(known, self.asked)

    def no_label(self) -> Tensor:
        """What the network is given where nothing is known, (1, size)."""
        return torch.zeros(1, len(self.names))

    def answers(self, labels: Tensor) -> Tensor:
        """(N, Q) int64, -1 where a label is not known; argument as of `conditions`."""
        if self.is_class:
            return labels.long()[:, None]
        asked = labels[:, self.asked].long()
        return torch.where(asked == 0, -1, (asked + 1) // 2)

    def energies(self, values: Tensor) -> Tensor:
        """(N, Q, K) of the energies of `conditions`, (N, Q K + 1)."""
        return values[:, :-1].reshape(len(values), *self.shape)

    def answer_name(self, question: int, answer: int) -> str:
        """For messages."""
        if self.is_class:
            return f"class {self.names[answer]}"
        return f"{'true' if answer else 'false'} for the attribute {self.asked_names[question]}"


def questions_of(condition: ConditionConfig, given: Sequence[str], model: str, option: str) -> Questions:
    """What can be asked of a model's images.

    Args:
        condition: of the model.
        given: names of attributes that are known.
        model: what it is, for messages.
        option: that says what is known, for messages.

    Raises:
        UserError: the model knows no labels, or what is given is none of its attributes, or all of them.
    """
    if condition.kind == "none":
        raise UserError(
            model,
            got="energies of images alone (condition.kind none)",
            expected="energies that know labels, f(y, t, c)",
            remedy="train a model with --condition.kind class or attributes",
        )
    is_class = condition.kind == "class"
    wrong = [name for name in given if is_class or name not in condition.names]
    if wrong or len(set(given)) != len(given) or (given and len(given) == len(condition.names)):
        expected = "none, since the model knows classes"
        if not is_class:
            expected = f"some of the model's attributes, each once and not all: {shown(condition.names)}"
        raise UserError(option, got=",".join(given), expected=expected, remedy="correct it")
    return Questions(is_class, condition.names, tuple(condition.names.index(name) for name in given))


def check_seen(questions: Questions, answers: Tensor, what: str, remedy: str) -> None:
    """Return if every answer can have a constant of its own.

    Args:
        answers: (N, Q) of the images that constants are fitted to.
        what: these images, for the message.
        remedy: what to do if some answer is that of none, for the message.

    Raises:
        UserError: some answer is that of no image.
    """
    if missing := unseen(answers, questions.shape[1]):
        raise UserError(
            what,
            got=f"no image that is {questions.answer_name(*missing[0])}",
            expected="an image of every label, whose constant is fitted to it",
            remedy=remedy,
        )
