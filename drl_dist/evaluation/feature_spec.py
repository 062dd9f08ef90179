"""Parsing of options that name feature networks, and the default folder of cached features."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drl_dist.common.errors import UserError
from drl_dist.common.places import shown
from drl_dist.common.validation import file_rule

MIN_IMAGES = 10
"""Smallest number of images to score: the inception score needs one for each of its ten parts."""
CLASSIFIERS = "torchscript:PATH, timm:NAME or timm:NAME=PATH"
KINDS = "inception, inception=PATH, timm:NAME, timm:NAME=PATH, torchscript:PATH or pixels"


@dataclass(frozen=True)
class FeatureSpec:
    """A parsed option that names a feature network."""

    text: str
    """The option as the user wrote it."""
    kind: Literal["inception", "timm", "torchscript", "pixels"]
    name: str
    """Model name of a timm network, otherwise empty."""
    source: str | None
    """Path or URL of the weights or the module, None for the published weights."""


def parse_features(text: str, option: str = "--features") -> FeatureSpec:
    """Parse the option of a feature network.

    Args:
        text: its value.
        option: its name, for messages.

    Raises:
        UserError: the text is none of `KINDS`.
    """
    head, has_source, source = text.partition("=")
    if head == "inception" and (source or not has_source):
        return FeatureSpec(text, "inception", "", _checked(text, source, option) if source else None)
    if text == "pixels":
        return FeatureSpec(text, "pixels", "", None)
    kind, _, name = head.partition(":")
    if kind == "timm" and name and (source or not has_source):
        return FeatureSpec(text, "timm", name, _checked(text, source, option) if source else None)
    kind, _, path = text.partition(":")
    if kind == "torchscript" and path:
        return FeatureSpec(text, "torchscript", "", _checked(text, path, option))
    raise UserError("feature network", got=repr(text), expected=KINDS, remedy="name one of these")


def parse_classifier(text: str) -> FeatureSpec:
    """Parse the option of a classifier, a feature network with logits of the data's classes.

    Raises:
        UserError: the text is none of `CLASSIFIERS`.
    """
    if not text.startswith(("torchscript:", "timm:")):
        raise UserError("--classifier", got=repr(text), expected=CLASSIFIERS, remedy="name one of these")
    return parse_features(text, "--classifier")


def default_cache_dir() -> Path:
    """The user's folder of cached features on this machine."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard says to ignore a relative path.
    return (Path(named) if named.startswith("/") else Path.home() / ".cache") / "drl_dist" / "features"


def _checked(text: str, source: str, option: str) -> str:
    if source.startswith(("http://", "https://")):
        return source
    _, got, expected, holds = file_rule(option, source)
    if not holds:
        raise UserError(
            f"feature network {shown(text)}",
            got=f"the path {got}",
            expected=expected,
            remedy="write the path in full: a job's working directory is a copy",
        )
    return source
