"""A place is a name: it works exactly as it is written, or it is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets_prep._source import require_source
from drl_dist.common.errors import UserError
from drl_dist.common.places import Place, PlaceError, parse_file, parse_place
from drl_dist.common.validation import file_rule, local_of, local_rule, place_rule
from drl_dist.data.cache import ShardCache
from drl_dist.data.filesystem import Folder, check_reachable, open_filesystem, write_local
from drl_dist.data.index import open_index
from tests.data.sets import write_set

ODD = (
    "photos::v2",
    "data:v2",
    "local:x",
    "file:x",
    "a#b",
    "a#17",
    "a*b",
    "a?b",
    "a[1]",
    "{000..010}",
    "a b",
    "end ",
    " start",
    "tail.",
    "...",
    "a%20b",
    "~",
    "-d",
    "C:\\data",
    "simplecache::gs:",
    "pipe:ls",
    "é",
    "x" * 255,
)
"""Legal names of folders that some library reads something else into."""

REFUSED = (
    "",
    "gs:///x",
    "gs://",
    "GS://bucket/x",
    "Gs://bucket/x",
    "FILE:///x",
    "memory://x",
    "http://host/x",
    "pipe:ls://x",
    "simplecache::gs://bucket/x",
    "gs:/bucket/x",
    "s3:/bucket/x",
    "file:/tmp/x",
    "file://host/x",
    "file://relative",
    "file:///a%20b",
    "file:///a#b",
    "file:///a?b",
    "gs://bucket/a#17",
    "gs://bucket/a?generation=17",
    "gs://bucket/a*",
    "gs://bucket/a[1]",
    "gs://bucket//a",
    "gs://bucket/a/../b",
    "gs://bucket/./a",
    "gs://bucket/a ",
    "s3://bucket/a?versionId=3",
    "s3://key:secret@bucket/a",
    " gs://bucket/x",
    " /x",
    "~/x",
    "~user/x",
    "C:\\data",
    "/a\nb",
    "/a\0b",
    "/a\tb",
    "/a\udcff",
    "/" + "x" * 256,
    "/x" * 2048,
    "gs://bucket/" + "x" * 1025,
)


@pytest.mark.parametrize("name", ODD)
def test_a_local_name_is_what_it_says(name: str, tmp_path: Path) -> None:
    beside = {tmp_path / part for part in ("photos", "a", "data", "v2", "a b", "1", "x")}
    for path in beside - {tmp_path / name}:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    folder = Folder(f"{tmp_path}/{name}")
    check_reachable(folder.url)
    assert folder.local == tmp_path / name
    folder.write("one", b"hello")
    Folder(folder.url + "/below").write("two", b"deep")
    assert (tmp_path / name / "one").read_bytes() == b"hello"
    assert folder.sizes() == {"one": 5}
    assert (folder.read("one"), folder.read("one", 1, 3)) == (b"hello", b"el")
    filesystem, path = open_filesystem(folder.url_of("one"))
    with filesystem.open(path, "rb") as file:
        assert file.read() == b"hello"
    folder.remove_written(["one"])
    assert [path.name for path in (tmp_path / name).iterdir()] == ["below"]
    for path in beside - {tmp_path / name}:
        assert (path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["a*b", "photos::v2", "a#17", "a%20b"])
def test_shards_are_read_from_where_they_were_written(name: str, tmp_path: Path) -> None:
    written = write_set(f"{tmp_path}/{name}", (4,))
    index = open_index(f"{tmp_path}/{name}")
    assert index.fingerprint == written.fingerprint
    shard = ShardCache(index.url).open(index.shards[0])
    assert shard.read_sample(0)
    shard.close()


@pytest.mark.parametrize("name", ["data:v2", "photos::v2", "./~x", "local:x"])
def test_a_relative_name_lies_in_the_working_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Folder(name).write("one", b"hello")
    assert (tmp_path / name / "one").read_bytes() == b"hello"
    assert local_of(name, "--out") == Path(name)


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_plain_name_is_refused_in_one_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (open_filesystem, check_reachable, lambda url: Folder(url).sizes(), lambda url: Folder(url).local):
        with pytest.raises(UserError) as caught:
            use(text)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
        assert str(caught.value).isprintable()
    for rule in (place_rule, file_rule, local_rule):
        assert not rule("--out", text)[3]
    with pytest.raises(UserError):
        Folder(text).write("one", b"hello")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("gs://b", Place("gs", "b")),
        ("gs://b/", Place("gs", "b")),
        ("gs://b/x/", Place("gs", "b/x")),
        ("gs://b/photos::v2", Place("gs", "b/photos::v2")),
        ("gcs://b/a b%20", Place("gcs", "b/a b%20")),
        ("s3a://arn:aws:s3:eu-west-1:123456789012:accesspoint:mine/x", None),
        ("file:///a b/", Place("file", "/a b")),
        ("/a/://b", Place("file", "/a/://b")),
        ("/", Place("file", "/")),
    ],
)
def test_its_parts(text: str, place: Place | None) -> None:
    assert parse_place(text) == (place or Place("s3a", text.partition("://")[2]))


def test_s3_takes_the_path_as_one_key() -> None:
    """Without a server: what the client makes of a path is its own function."""
    filesystem, path = open_filesystem("s3://bucket/photos::v2/50%20/x")
    assert filesystem.split_path(path) == ("bucket", "photos::v2/50%20/x", None)  # pyright: ignore
    assert filesystem.version_aware is False  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "parts"), [("/a::b/c*.png", ("/a::b", "c*.png")), ("/x", ("/", "x")), ("x", (".", "x"))]
)
def test_a_file_is_a_folder_and_a_name(text: str, parts: tuple[str, str]) -> None:
    assert parse_file(text) == parts


@pytest.mark.parametrize("text", ["/a/", "/", "gs://bucket", "gs://bucket/", "/a/..", ""])
def test_a_place_without_a_file_in_it_is_no_file(text: str) -> None:
    with pytest.raises(PlaceError):
        parse_file(text)


@pytest.mark.parametrize("below", ["", "/deeper/still"])
def test_a_file_in_place_of_a_folder_is_refused(below: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"got a file at .*notes.txt, expected a folder"):
        check_reachable(f"{tmp_path}/notes.txt{below}")
    assert Folder(f"{tmp_path}/notes.txt{below}").sizes() == {}
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"a symbolic link to nothing"):
        check_reachable(f"{tmp_path}/gone{below}")


def test_only_files_of_these_names_are_removed(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    ours = ["a", "b.tar"]
    parts = [".a.0123abcd.part", ".b.tar.89abcdef.part"]
    theirs = ["notes.txt", "a.bak", ".notes.txt.0123abcd.part", ".a.part", "a.part", ".a.0123abcd.part.bak", "A"]
    for name in [*ours, *parts, *theirs]:
        write_local(tmp_path / name, b"x")
    folder.remove_written(ours)
    folder.remove_if_empty()
    assert sorted(folder.sizes()) == sorted(theirs)
    for name in theirs:
        folder.remove(name)
    folder.remove_if_empty()
    assert not tmp_path.exists()


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    folder = Folder(f"{tmp_path}/link")
    folder.remove_written(["a"])
    folder.remove_if_empty()
    assert (tmp_path / "link" / "a").read_text() == "x"


@pytest.mark.integration
@pytest.mark.parametrize("name", ["photos::v2", "a b", "50%20", "a:b", "{1..3}", "é"])
def test_a_bucket_holds_a_name_as_it_is(name: str, gcs_bucket: str) -> None:
    Folder(f"{gcs_bucket}/photos").write("notes.txt", b"mine")
    folder = Folder(f"{gcs_bucket}/{name}")
    folder.write("one", b"hello")
    Folder(f"{gcs_bucket}/{name}/one").write("two", b"deeper")
    assert folder.sizes() == {"one": 5}
    assert folder.read("one") == b"hello"
    filesystem, path = open_filesystem(folder.url_of("one"))
    assert path == f"{gcs_bucket.removeprefix('gs://')}/{name}/one"
    with filesystem.open(path, "rb") as file:
        assert file.read() == b"hello"
    folder.remove_written(["one"])
    assert folder.sizes() == {}
    assert Folder(f"{gcs_bucket}/photos").read("notes.txt") == b"mine"
    # An object in the folder's place is no file in it.
    Folder(gcs_bucket).write("object", b"x")
    assert Folder(f"{gcs_bucket}/object").sizes() == {}


def test_a_source_given_as_a_url_is_judged_as_one(tmp_path: Path) -> None:
    (tmp_path / "a%20b").mkdir()
    (tmp_path / "a b").mkdir()
    assert require_source(f"file://{tmp_path}/a b", "pictures") == tmp_path / "a b"
    assert require_source(f"{tmp_path}/a%20b", "pictures") == tmp_path / "a%20b"
    for url in (f"file://{tmp_path}/a%20b", f"file://{tmp_path.name}", f"file://localhost{tmp_path}"):
        with pytest.raises(UserError, match=r"^--source: got file://"):
            require_source(url, "pictures")
