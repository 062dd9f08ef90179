"""Spaces as people write them, in JSON and YAML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drl_dist.common.errors import UserError
from drl_dist.jobs.common.settings_text import MAX_BYTES, SettingsTextError, from_file, from_json
from drl_dist.jobs.sweep.options import parse_sweep

DOCUMENTED = b'{\n\t"optim.learning_rate": {"loguniform": [1e-5, 1E-3]},\n\t"optim.beta1": [0.5]\n}'


def test_a_json_file_is_read_as_json_and_yaml_by_its_newer_rules() -> None:
    wanted = {"optim.learning_rate": {"loguniform": [1e-5, 1e-3]}, "optim.beta1": [0.5]}
    assert from_file(DOCUMENTED) == from_json(DOCUMENTED.decode()) == wanted
    assert from_file(b"\xef\xbb\xbf" + DOCUMENTED) == wanted
    assert from_file(b"a: [1e-5, -2E+4, 1e3]\nb: [no, on, 1:30, 010]\nc: &x [1]\nd: *x\ne: ~\n") == {
        "a": [1e-5, -2e4, 1e3],
        # In YAML 1.1 these are False, True, 90 and 8.
        "b": ["no", "on", "1:30", 10],
        "c": [1],
        "d": [1],
        "e": None,
    }


@pytest.mark.parametrize(
    "text",
    ['{"a": ["\\u00e9\\ud83d\\ude00"]}', '{"a"\n:\n[1]}', '{"%s": [1]}' % ("k" * 2000), '{"a": ["\x7f\x85"]}'],
)
def test_json_that_is_no_yaml_is_json(text: str) -> None:
    assert from_file(text.encode()) == json.loads(text)


TWICE = b"a: [1]\nb: [2]\na: [3]\n"
MANY = b"a: &x [1,1,1,1,1,1,1,1,1,1]\n" + b"\n".join(
    b"%c: &%c [%s]" % (name, name, b",".join([b"*%c" % before] * 10))
    for name, before in zip(b"bcdef", b"xbcde", strict=True)
)


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (TWICE, r'^line 3: found duplicate key "a"$'),
        (b'{"a": [1], "a": [2]}', r"^the key 'a' twice$"),
        (b'{"a": [NaN]}', r"^the number nan, which is not finite$"),
        (b'{"a": [1%s]}' % (b"0" * 30), r"^a whole number of more than thirty digits$"),
        (b"a: [0x%s]" % (b"f" * 5000), r"^a whole number of more than thirty digits$"),
        (b"a: [.inf]", r"^the number inf, which is not finite$"),
        (b'{"a": [1e999]}', r"^the number inf, which is not finite$"),
        (b"a: [2001-01-01]", r"^a date \(2001-01-01\), which JSON does not know$"),
        (b"1: [2]", r"^the key 1, which is no text$"),
        (b"a:\n\t- 1", r"^line 2: found character '\\t' that cannot start any token$"),
        (b"a: !!python/object:os.system x", r"^line 1: could not determine a constructor for the tag"),
        (b"\xff\xfe", r"^no UTF-8 text"),
        (MANY, r"^more than 100,000 values$"),
        (b"a: &a [*a]", r"^more than 100,000 values$"),
        (b" " * (MAX_BYTES + 1), r"^1,048,577 bytes$"),
        (b"[" * 100_000, r"recursion|nest"),
    ],
)
def test_what_json_could_not_hold_is_refused(data: bytes, got: str) -> None:
    with pytest.raises(SettingsTextError, match=got):
        from_file(data)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ('{"a": [1], "a": [2]}', "^the key 'a' twice$"),
        ('{"a": {"b": 1, "b": 2}}', "^the key 'b' twice$"),
        ('{"a": [NaN]}', "^the number nan, which is not finite$"),
        ('{"a": [-Infinity]}', "^the number -inf, which is not finite$"),
        ("{", "^no JSON"),
    ],
)
def test_the_option_is_judged_alike(text: str, got: str) -> None:
    with pytest.raises(SettingsTextError, match=got):
        from_json(text)


def test_the_command_says_it_in_one_sentence(tmp_path: Path) -> None:
    words = ["--preset", "digits", "--data", "/data", "--storage", str(tmp_path), "--sweep-name", "s"]
    path = tmp_path / "space.json"
    path.write_bytes(DOCUMENTED)
    plan, _ = parse_sweep([*words, "--space-file", str(path)])
    assert plan.space.as_json()["optim.learning_rate"] == {"loguniform": [1e-5, 1e-3]}
    path.write_bytes(TWICE)
    with pytest.raises(UserError, match=r"^option --space-file: got .*space\.json: line 3: found duplicate key"):
        parse_sweep([*words, "--space-file", str(path)])
    with pytest.raises(UserError, match=r"^option --space: got the key 'a' twice, expected"):
        parse_sweep([*words, "--space", '{"a": [1], "a": [2]}'])
