"""Reading all keys of an LMDB database in a separate process, which writes each to stdout after its length in 4 bytes.

Some kinds of damage make LMDB end its process, which must not be the one that reports to the user.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lmdb


def read_keys(path: Path) -> list[bytes]:
    """The keys of a database in order, read by another process.

    Raises:
        ValueError: the database is damaged; the message says how.
    """
    done = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(lines[-1][:200] if lines else f"its reader ended with status {done.returncode}")
    keys: list[bytes] = []
    place = 0
    while place < len(done.stdout):
        size = int.from_bytes(done.stdout[place : place + 4], "little")
        keys.append(done.stdout[place + 4 : place + 4 + size])
        place += 4 + size
    return keys


def _write_keys(path: str) -> int:
    try:
        with (
            lmdb.open(path, readonly=True, lock=False, readahead=False, create=False) as database,
            database.begin() as view,
            view.cursor() as cursor,
        ):
            count = 0
            for key in cursor.iternext(keys=True, values=False):
                sys.stdout.buffer.write(len(key).to_bytes(4, "little") + key)
                count += 1
            if count != (expected := view.stat()["entries"]):
                print(f"{count} entries instead of the {expected} that it declares", file=sys.stderr)
                return 1
    except (lmdb.Error, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_write_keys(sys.argv[1]))
