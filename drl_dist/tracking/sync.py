"""Send what training left in a spool: ``python -m drl_dist.tracking.sync --spool DIR``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import tyro

from drl_dist.common.errors import UserError
from drl_dist.common.program import EXIT_USER_ERROR
from drl_dist.common.validation import local_of
from drl_dist.tracking.sender import Sender, ServerAway
from drl_dist.tracking.server.address import choose_option
from drl_dist.tracking.server.client import connect
from drl_dist.tracking.spool import Spool


def sync(spool: Path, uri: str | None = None) -> int:
    """Send everything that is pending, with progress on standard error.

    Args:
        spool: folder that a `Tracker` wrote.
        uri: another server than the one that the spool was written for.

    Returns:
        bytes of records sent.

    Raises:
        UserError: this is no spool, its training still runs, or the server does not answer or does not take all.
    """
    run = _run_of(spool)
    client = connect(uri or run["uri"])
    log = Spool(spool, lock_seconds=2)
    try:
        sender = Sender(client.tracking_uri, run["run_id"], log)
        total = log.unsent_bytes
        began = reported = time.monotonic()
        while log.unsent_bytes:
            try:
                sender.send_some()
            except ServerAway as error:
                raise UserError(
                    f"MLflow server {client.tracking_uri}",
                    got=str(error),
                    expected="the records taken",
                    remedy="run this again, it continues from here",
                ) from error
            now, done = time.monotonic(), total - log.unsent_bytes
            if now - reported > 3:
                reported, rate = now, done / (now - began)
                print(
                    f"sent {done:,} of {total:,} bytes, {rate:,.0f} bytes/s, {(total - done) / rate:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        log.close()
    if log.num_refused:
        raise UserError(
            f"MLflow server {client.tracking_uri}",
            got=f"a refusal for good (records: {log.num_refused})",
            expected="all records taken",
            remedy=f"look at {spool / 'refused.jsonl'}, which keeps them with the reasons; the rest is sent",
        )
    return total


def _run_of(spool: Path) -> dict[str, str]:
    """Server and run of a spool; looked at before `Spool` makes its files in a folder of something else."""
    try:
        run = json.loads((spool / "run.json").read_bytes())
        got = "a run.json of something else"
        if {"uri", "run_id"} <= run.keys() and all(isinstance(run[name], str) for name in ("uri", "run_id")):
            if (spool / "records.jsonl").is_file():
                return run
            got = "no records.jsonl"
    except OSError as error:
        got = f"no run.json ({error.strerror})"
    except (ValueError, AttributeError):
        got = "a run.json of something else"
    raise UserError(
        f"spool {spool}",
        got=got,
        expected="the folder that a training run spools to",
        remedy="correct --spool",
    )


def main(spool: str, uri: str | None = None) -> None:
    """Send to the MLflow server what training could not send.

    Args:
        spool: folder that the training run named when it ended.
        uri: another server than the one that the run used.
    """
    choose_option(["--uri"])
    try:
        sent = sync(local_of(spool, "--spool"), uri)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    print(f"sent {sent:,} bytes of records; nothing is left in {spool}")


if __name__ == "__main__":
    tyro.cli(main)
