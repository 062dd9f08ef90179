"""The documentation's commands and options, and where each of them stands."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

PROGRAMS = {
    *("docker", "gcloud", "git", "helm", "kubectl", "make", "mlflow", "pip", "pre-commit", "prometheus", "promtool"),
    *("python", "python3", "ray", "serve", "uv"),
}
"""A line or a piece of inline code that begins with one of these, or with a script of ``jobs/``, is a command."""
SHELLS = {"sh", "bash", "shell", "console"}
MARK = re.compile(r"<!-- not run: (\S.*?) -->")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w{}-]*)\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(?!`)([^`]+)`(?!`)")
_SCRIPT = re.compile(r"(jobs|benchmarks|datasets_prep)/\w+\.py")


@dataclass(frozen=True)
class Snippet:
    """Shell text of a page.

    Args:
        place: page and line, e.g. ``"docs/data.md:6"``.
        text: as it stands there.
        is_block: a block between fences, to be pasted as it is; otherwise inline code, which may only name a program.
        mark: why it cannot run here, from a comment ``<!-- not run: … -->`` before its block or paragraph.
    """

    place: str
    text: str
    is_block: bool
    mark: str | None = None


def pages() -> dict[str, str]:
    """The text of every page of the documentation by its path."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("findings/*.md"), *ROOT.glob("cluster/**/*.md")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(paths)}


def blocks(text: str) -> list[tuple[int, str, str]]:
    """Line, language and body of what stands between fences, without the fence's own indentation."""
    return [
        (
            text.count("\n", 0, found.start()) + 1,
            found["language"],
            re.sub(rf"^{found['indent']}", "", found["body"], flags=re.MULTILINE),
        )
        for found in _FENCE.finditer(text)
    ]


def inline_code(text: str) -> list[tuple[int, str]]:
    """Line and text of inline code; breaks of lines are spaces."""
    prose = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    return [
        (prose.count("\n", 0, found.start()) + 1, " ".join(found[1].split()))
        for found in _INLINE.finditer(prose)
        if "\n\n" not in found[1]
    ]


def snippets(page: str, text: str) -> list[Snippet]:
    """Commands of a page in the order in which they stand there."""
    found: list[Snippet] = []
    for line, language, body in blocks(text):
        if language in SHELLS or (not language and any(is_command(each) for each in body.splitlines())):
            found.append(Snippet(f"{page}:{line}", body, True, _mark(text, line)))
    for line, code in inline_code(text):
        if is_command(code):
            found.append(Snippet(f"{page}:{line}", _whole(code), False, _mark(text, line)))
    return sorted(found, key=lambda snippet: int(snippet.place.rpartition(":")[2]))


def is_command(line: str) -> bool:
    """Whether a line of text begins as a command does. The name of a script alone is a path."""
    words = line.removeprefix("$ ").removeprefix("time ").split()
    if not words:
        return False
    if "://" in words[0]:  # An address such as https://host/mlflow, which is no path of a program.
        return False
    # jobs/serve/ is a folder.
    is_program = not words[0].endswith("/") and Path(words[0]).name in PROGRAMS
    return is_program or (len(words) > 1 and _SCRIPT.fullmatch(words[0]) is not None)


def _whole(code: str) -> str:
    """Inline code as a command: ``jobs/x.py --model.width 8`` leaves out Python and what is told elsewhere."""
    if not _SCRIPT.match(code):
        return code
    return f"python {code.removesuffix('…').strip()} …"


def option_strings(text: str) -> list[tuple[int, str]]:
    """Line and text of inline code that begins with an option: ``--optim.beta1 0.5``."""
    return [(line, code) for line, code in inline_code(text) if re.match(r"--[a-z]", code)]


def _mark(text: str, line: int) -> str | None:
    """The mark of the block or paragraph that holds a line (from 1), if a comment before it has one."""
    lines = text.splitlines()
    first = line - 1
    while first > 0 and lines[first - 1].strip():
        first -= 1
    # A comment is a line of its own: directly above a fence or paragraph, or with an empty line between.
    candidates = [lines[first], lines[line - 2] if line > 1 else ""]
    while first > 0 and not lines[first - 1].strip():
        first -= 1
    if first > 0:
        candidates.append(lines[first - 1])
    return next((found[1] for each in candidates if (found := MARK.fullmatch(each.strip()))), None)


def in_sources() -> list[Snippet]:
    """Commands between double backticks in the documentation strings of the program itself, which ``--help`` shows."""
    found: list[Snippet] = []
    for folder in ("jobs", "datasets_prep", "drl_dist", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)):
                if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                    continue
                for code in re.findall(r"(?<!`)``(?!`)([^`]+)``(?!`)", node.value):
                    if is_command(code):
                        place = f"{path.relative_to(ROOT)}:{node.lineno}"
                        found.append(Snippet(place, _whole(" ".join(code.split())), False))
    return found


def in_cluster_files() -> list[Snippet]:
    """Commands between backticks in the comments of ``cluster/``."""
    found: list[Snippet] = []
    for path in sorted((ROOT / "cluster").rglob("*")):
        if not path.is_file() or path.suffix == ".md":
            continue
        lines = [
            re.sub(r"^\s*#", "", line) if line.lstrip().startswith("#") else "" for line in path.read_text().split("\n")
        ]
        for line, code in inline_code("\n".join(lines)):
            if is_command(code):
                found.append(Snippet(f"{path.relative_to(ROOT)}:{line}", code, False, "cluster"))
    return found
