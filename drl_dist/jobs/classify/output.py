"""Files of the classification job: a row for each image, and a picture of how right the probabilities are."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from drl_dist.common.figures import SMALLEST_POINTS, figure_png, new_figure
from drl_dist.jobs.common.output.image_job import JobKind
from drl_dist.likelihood.calibration import NUM_BINS, Answers, confusion, reliability
from drl_dist.likelihood.questions import Questions

REPORT_NAME, PREDICTIONS_NAME, PICTURE_NAME = "classify.json", "predictions.parquet", "reliability.png"
_MARKS = "os^"
_FEW = 24
"""Labels whose names fit beside a picture, and whose counts fit into it."""


def metrics_of(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Numbers of a report by the names that MLflow shows; None where there is none."""
    names = ("accuracy", "mean_accuracy", "ece", "brier", "log_loss", "level")
    apart = report["out_of_distribution"] or {}
    found = {name: report[name] for name in names}
    found |= {name: value for name, value in apart.items() if name.startswith("auroc")}
    return {f"classification/{name}": value for name, value in found.items()}


def _told(report: Mapping[str, Any]) -> str:
    scores = "no image has a label"
    if report["accuracy"] is not None:
        scores = f"accuracy {report['accuracy']:.4f}, ECE {report['ece']:.4f} at level {report['level']}"
    return f"{scores}. Constants {report['constants']}: {report['assumption']}"


KIND = JobKind(
    name="drl_dist.classify",
    noun="classification",
    report=REPORT_NAME,
    files=(PREDICTIONS_NAME, PICTURE_NAME),
    records=r"(data|fit|other)-\d+\.safetensors",
    tracked="classification",
    metrics=metrics_of,
    description=_told,
)


def predictions_bytes(questions: Questions, answers: Answers, keys: Tensor, places: NDArray[np.int64]) -> bytes:
    """A row for each image, as Parquet.

    Args:
        questions: what was asked.
        answers: under the constants of the report.
        keys: (N,) names of the samples in their shards.
        places: (N,) of the images in the data, from 0.
    """
    probabilities = answers.log_posterior.exp().numpy()
    columns: dict[str, Any] = {
        "image": pa.array(places, pa.int64()),
        "key": pa.array([f"{key:09d}" for key in keys.tolist()], pa.string()),
    }
    known = answers.answers.numpy()
    if questions.is_class:
        names = list(questions.names)
        told = [None if label < 0 else names[label] for label in known[:, 0]]
        columns["label"] = pa.array(told, pa.string())
        columns["predicted"] = pa.array([names[place] for place in probabilities[:, 0].argmax(1)], pa.string())
        columns |= {f"p({name})": probabilities[:, 0, place] for place, name in enumerate(names)}
    else:
        for place, name in enumerate(questions.asked_names):
            told = [None if answer < 0 else bool(answer) for answer in known[:, place]]
            columns[f"label({name})"] = pa.array(told, pa.bool_())
            columns[f"p({name})"] = probabilities[:, place, 1]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def reliability_png(questions: Questions, judged: Mapping[str, Answers], shown: str, caption: str) -> bytes:
    """A reliability diagram, beside the confusion matrix of classes or the accuracy of each attribute.

    Args:
        questions: what was asked.
        judged: answers by name of the constants; some of them are known.
        shown: the constants of the right panel.
        caption: model, step, seed and the like.
    """
    # Names of attributes need a line each.
    figure = new_figure(11, 5 if questions.is_class else max(5, 0.19 * len(questions.asked) + 1.2))
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="as often right as they say")
    for mark, (name, answers) in zip(_MARKS, judged.items(), strict=False):
        log_posterior, known = answers.known()
        found = reliability(log_posterior.exp(), known)
        filled = [place for place in range(NUM_BINS) if found.counts[place]]
        confidence, accuracy = ([values[i] for i in filled] for values in (found.confidence, found.accuracy))
        # Bins of few images say little, and look so.
        sizes = [10 + 150 * found.counts[place] / len(known) for place in filled]
        line = left.plot(confidence, accuracy, linewidth=1)[0]
        label = f"constants {name}: ECE {found.expected_error:.3f}"
        left.scatter(confidence, accuracy, s=sizes, marker=mark, color=line.get_color(), label=label)
    left.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability of the inferred label", ylabel="share that is right")
    left.legend(loc="upper left", fontsize=SMALLEST_POINTS)
    if questions.is_class:
        _draw_confusion(right, questions, judged[shown])
    else:
        _draw_attributes(right, questions, judged[shown])
    return figure_png(figure, caption)


def _draw_confusion(axes: Any, questions: Questions, answers: Answers) -> None:
    log_posterior, known = answers.known()
    names, count = questions.names, len(questions.names)
    table = confusion(log_posterior.argmax(1), known, count).numpy()
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="inferred class", ylabel="class of the image")
    if count <= _FEW:
        rotation = 0 if max(map(len, names)) <= 2 else 90
        axes.set_xticks(range(count), names, rotation=rotation)
        axes.set_yticks(range(count), names)
        for row, column in zip(*np.nonzero(table), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            number = str(table[row, column])
            axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=SMALLEST_POINTS)
    axes.set_title(f"accuracy {np.trace(table) / table.sum():.4f} of {table.sum()} images")


def _draw_attributes(axes: Any, questions: Questions, answers: Answers) -> None:
    predicted, told = answers.log_posterior.argmax(2), answers.answers
    rows: list[tuple[str, float, float]] = []
    for question, name in enumerate(questions.asked_names):
        known = told[:, question] >= 0
        if not bool(known.any()):
            continue
        right = (predicted[known, question] == told[known, question]).double().mean()
        share = (told[known, question] == 1).double().mean()
        rows.append((name, float(right), float(max(share, 1 - share))))
    places = np.arange(len(rows))
    axes.barh(places, [right for _, right, _ in rows], color="tab:blue", label="told rightly")
    axes.plot([share for *_, share in rows], places, "k|", label="the more frequent answer")
    axes.set(xlim=(0, 1), xlabel="share of images")
    axes.set_yticks(places, [name for name, *_ in rows], fontsize=SMALLEST_POINTS)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=SMALLEST_POINTS)
