#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0: `--dist loadgroup` spreads the tests of a group over all workers, without a word.
#
# Expected: all tests with the same `xdist_group` mark run in one worker, as the documentation of the option says.
# What happens: xdist appends the group's name to the attribute from which pytest up to 9.1 made a test's id; pytest 9.2
# makes the id from another one, so that the scheduler sees tests without groups. Fixtures of a session that a group is
# meant to share, such as a server, are made once in every worker.
#
# Seen:
#   pytest 9.2.0: 2 workers ran the 8 tests of one group
#   pytest 9.1.0: 1 workers ran the 8 tests of one group
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/test_group.py" <<'PYTHON'
import os
import time
from pathlib import Path

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_it(number: int) -> None:
    time.sleep(0.3)
    (Path(os.environ["SEEN"]) / os.environ["PYTEST_XDIST_WORKER"]).touch()
PYTHON
status=0
for pair in 9.2.0:2 9.1.0:1; do
    version=${pair%:*} expected=${pair#*:}
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet "pytest==$version" pytest-xdist==3.8.0
    mkdir "$folder/seen-$version"
    (cd "$folder" && SEEN="$folder/seen-$version" "$folder/$version/bin/python" -m pytest -q -n 2 --dist loadgroup -p no:cacheprovider test_group.py) >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
    count=$(find "$folder/seen-$version" -type f | wc -l)
    echo "pytest $version: $count workers ran the 8 tests of one group"
    [ "$count" = "$expected" ] || status=1
done
[ $status = 0 ] || echo "the behaviour has changed" >&2
exit $status
