"""Every command of the documentation is one: its shell is run, and its program understands each option.

`datasets_prep` runs to its end on small sources. Other programs of ours are run up to where their work begins, Ray and
MLflow up to their own parsers, make without its recipes. What no program here can judge carries a mark in its page,
``<!-- not run: needs Google Cloud -->`` before the block or paragraph.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drl_dist.common.nested import flatten, to_dict
from drl_dist.config.presets import preset
from drl_dist.config.tree import RunConfig
from drl_dist.console.command import COMMANDS
from drl_dist.jobs.sweep.options import SweepOptions
from drl_dist.jobs.sweep.space import LEVEL_SCALE
from drl_dist.tracking.spool import Spool
from tests.data.published import encoded, photo, write_celeba, write_cifar10, write_cifar100, write_fashion, write_lsun
from tests.documents import programs
from tests.documents.pages import (
    Snippet,
    in_cluster_files,
    in_sources,
    inline_code,
    option_strings,
    pages,
    snippets,
)
from tests.documents.shell import Command, commands, make_tree
from tests.support import ROOT

PAGES = pages()
FIELDS = list(flatten(to_dict(RunConfig(experiment=preset("digits")))))
SECTIONS = {name.removeprefix("experiment.").partition(".")[0] for name in FIELDS if name.count(".")}
OURS = (
    *(f"jobs/{path.name}" for path in sorted((ROOT / "jobs").glob("*.py"))),
    *(f"-m datasets_prep.{path.stem}" for path in sorted((ROOT / "datasets_prep").glob("[a-z]*.py"))),
    *(f"-m benchmarks.{name}" for name in ("ablation", "reliability", "roofline", "step")),
    *(f"-m drl_dist {name}" for name in COMMANDS),
    "-m drl_dist.toy",
    "-m drl_dist.tracking.sync",
)
OF_RAY_JOB_SUBMIT = ("--submission-id", "--working-dir")
"""Options that pages name alone and that are Ray's."""
OUTPUTS = ("--out", "--json")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("documents"))


@pytest.mark.slow
def test_asking_a_program_leaves_the_modules_as_they_were(tmp_path: Path) -> None:
    imported = import_module("benchmarks.quality.__main__")
    programs.python(["-m", "benchmarks.quality", "--out", "x"], tmp_path)
    assert sys.modules["benchmarks.quality.__main__"] is imported
    # Where pytest, which patches attributes by their path, looks.
    assert import_module("benchmarks").quality is sys.modules["benchmarks.quality"]


def test_something_is_found() -> None:
    found = [snippet for page, text in PAGES.items() for snippet in snippets(page, text)]
    assert sum(snippet.is_block for snippet in found) >= 25
    assert sum(not snippet.is_block for snippet in found) >= 40
    assert len(in_sources()) >= 20 and in_cluster_files()
    assert sum(len(option_strings(text)) for text in PAGES.values()) >= 80


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood(page: str, tree: Path) -> None:
    found = snippets(page, PAGES[page])
    if found:
        judge_all(found, tree)


@pytest.mark.slow
def test_every_command_in_the_source_is_understood(tree: Path) -> None:
    judge_all(in_sources(), tree)
    judge_all(in_cluster_files(), tree)


def judge_all(page: list[Snippet], tree: Path) -> None:
    """Each command in the order of the page; all complaints together.

    A stale mark is a complaint: where everything can be judged nothing is excused.
    """
    wrong: list[str] = []
    excused: set[str] = set()
    for number, command in enumerate(commands(page, tree)):
        try:
            judge(command, tree, number, excused)
        except programs.Refused as error:
            wrong.append(f"{command}\n    {error}")
    wrong += [
        f"{snippet.place}: marked as not run ({snippet.mark}), and every command in it can be"
        for snippet in page
        if snippet.is_block and snippet.mark and snippet.place not in excused
    ]
    assert not wrong, "\n".join(wrong)


def judge(command: Command, tree: Path, number: int, excused: set[str]) -> None:
    program, words = command.words[0], command.words[1:]
    for option, word in zip(("", *words), words, strict=False):
        if option not in OUTPUTS:
            check_path(word, tree)
    if program not in programs.JUDGES:
        is_name = not command.snippet.is_block and len(words) <= 1
        if not is_name and command.snippet.mark is None:
            raise programs.Refused(
                f"{program} cannot be asked here: mark it in the page, `<!-- not run: why -->` before the block"
            )
        excused.add(command.snippet.place)
        return
    if program.startswith("python"):
        if not command.snippet.is_block and programs.is_named(words):
            return
        words = with_stand_ins(words, command.folder, tree.parent / "made" / command.snippet.place / str(number))
    programs.JUDGES[program](words, command.folder)
    if program == "ray" and (job := programs.entrypoint(words)) and job[-1:] != ["jobs/…"] and job != ["ENTRYPOINT"]:
        judge(Command(command.snippet, tuple(job), command.folder), tree, number, excused)


def check_path(word: str, tree: Path) -> None:
    """What a command names in the tree is there; ``var/cluster`` is the guide's copy of ``cluster``."""
    path = re.search(r"(?:^|=)(?:var/)?((?:cluster|docs|jobs|tests|benchmarks|drl_dist|datasets_prep)/[\w./-]+)$", word)
    if path and not (tree / path[1]).exists():
        raise programs.Refused(f"there is no {path[1]}")


def with_stand_ins(words: tuple[str, ...], folder: Path, made: Path) -> tuple[str, ...]:
    """A command of ``datasets_prep`` with folders for buckets and a small source; a spool for ``--spool``."""
    if "--spool" in words[:-1]:
        # As training leaves it, with its log.
        Spool(made).close()
        (made / "run.json").write_text('{"uri": "http://127.0.0.1:9", "run_id": "run"}')
        return tuple(
            str(made) if before == "--spool" else word for before, word in zip(("", *words), words, strict=False)
        )
    if words[:1] != ("-m",) or not words[1].startswith("datasets_prep.") or words[-1] == programs.ELIDED:
        return words
    shutil.rmtree(made, ignore_errors=True)
    words = tuple(re.sub(r"^(gs|s3)://[^/]+", str(made), programs.filled(word)) for word in words)
    given = dict(zip(words[2::2], words[3::2], strict=False))
    if "--out" in given:
        words = tuple(str(made / "out") if word == given["--out"] else word for word in words)
    source = folder / given["--source"] if "--source" in given else made / "source"
    if source.is_dir():
        shutil.rmtree(source)
    kind = words[1].rpartition(".")[2]
    if kind == "digits":
        return words
    if kind == "fashion_mnist" and "--source" not in given:
        # By default that is Debian's package, of 60,000 images.
        words = (*words, "--source", str(source))
    write_small(kind, source)
    return (*words, "--workers", "1")


def write_small(kind: str, source: Path) -> None:
    """A small source of one command of ``datasets_prep``."""
    match kind:
        case "fashion_mnist":
            write_fashion(source, 3, packed=True)
        case "cifar10":
            write_cifar10(source, 2)
        case "cifar100":
            write_cifar100(source, 2)
        case "celeba":
            write_celeba(source, [0, 0, 1, 2], packed=True)
        case "lsun":
            write_lsun(source, {bytes([number]) * 40: encoded(photo(number, 40, 60), "WEBP") for number in (1, 2)})
        case "folder" | "parquet" as kind:
            write_own(source, kind)
        case other:
            raise AssertionError(f"say here what a small source of {other} is")


def write_own(source: Path, kind: str) -> None:
    """A folder of images, as many as a split into nine tenths and one needs; or one image in a table."""
    source.mkdir(parents=True)
    if kind == "parquet":
        rows = {"image": [encoded(photo(0, 40, 60), "PNG")], "label": [0]}
        pq.write_table(pa.table(rows), source / "train.parquet")
        return
    for number in range(30):
        (source / f"{number}.png").write_bytes(encoded(photo(number, 40, 60), "PNG"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_option_named_alone_is_understood(page: str) -> None:
    wrong = [f"{page}:{line}: {code}" for line, code in option_strings(PAGES[page]) if not is_understood(code)]
    assert not wrong, "no program of ours takes\n" + "\n".join(wrong)


@cache
def is_understood(code: str) -> bool:
    """Whether a program of ours takes these options, or knows ones that begin so (``--rescore-*``)."""
    words = code.split()
    if words[0] in OF_RAY_JOB_SUBMIT:
        programs.ray(["job", "submit", words[0], "value", programs.ELIDED], ROOT)
        return True
    if prefix := re.fullmatch(r"--([\w.-]+?)[*…]", code):
        names = [name.removeprefix("experiment.") for name in FIELDS] + [field.name for field in fields(SweepOptions)]
        return any(name.replace("_", "-").startswith(prefix[1]) for name in names)
    # Some values need another setting, or another value beside them.
    beside = [["--setting", "t1k"], ["--diffusion.last-variance", "0.02"], ["--num-workers", "2"]]
    # Most options are those of training.
    programs_of_ours = sorted(OURS, key=lambda program: program != "jobs/train_digits.py")
    return any(knows(program, *words) for program in programs_of_ours) or any(
        knows("jobs/train_digits.py", *others, *words) for others in beside
    )


def knows(program: str, *words: str) -> bool:
    """Whether a program takes these options, whatever else it needs; of an option without a value, its name."""
    arguments = [*program.split(), *(["--preset", "digits"] if program == "jobs/sweep.py" else [])]
    try:
        programs.python([*arguments, *words, programs.ELIDED], ROOT)
    except programs.Refused as error:
        return len(words) == 1 and "no value" in str(error)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_field_of_the_config_is_one(page: str) -> None:
    wrong: list[str] = []
    for line, code in inline_code(PAGES[page]):
        if found := re.match(r"([a-z]+)\.([a-z_]+)(?: (\S+))?$", code):
            section, name, value = found.groups()
            if section not in SECTIONS or name in ("py", "json", "md", "safetensors", "experiment"):
                continue
            known = [LEVEL_SCALE, *(field.removeprefix("experiment.") for field in FIELDS)]
            if f"{section}.{name}" not in known or (
                value and not is_understood(f"--{section}.{name.replace('_', '-')} {value}")
            ):
                wrong.append(f"{page}:{line}: {code}")
    assert not wrong, "\n".join(wrong)
