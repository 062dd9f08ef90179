"""What the files of ``cluster/`` must agree with, read from the project itself."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.support import ROOT

CLUSTER = ROOT / "cluster"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
IMAGE = re.compile(rf"[a-z0-9-]+-docker\.pkg\.dev/my-project/drl/drl_dist:{re.escape(PROJECT['version'])}")
USER_ID = 1000
"""Of the image's user, see ``cluster/Dockerfile``."""


def documents(path: Path) -> list[dict[str, Any]]:
    """Every document of a YAML file; keys given twice are an error."""
    return [document for document in yaml.load_all(path.read_text(), Loader=_Strict) if document is not None]


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key twice in {keys}"
        return super().construct_mapping(node, deep=deep)
