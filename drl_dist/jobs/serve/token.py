"""The token of a server, in a file that only its owner reads."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from drl_dist.common.errors import UserError

MIN_CHARACTERS = 20


def read_token(path: str, *, create: bool) -> str:
    """The token in a file.

    Args:
        path: of the file.
        create: write a new one, if there is no such file, which only this user can read.

    Raises:
        UserError: the file cannot be read or written, or holds something that can be guessed.
    """
    try:
        if create:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                pass
            else:
                with os.fdopen(descriptor, "w") as file:
                    file.write(secrets.token_urlsafe(32) + "\n")
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"token file {path}", got=f"{error}", expected="a file with a token", remedy="correct --token-file"
        ) from error
    if len(token) < MIN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"token file {path}",
            got=f"{len(token)} characters" if token.isascii() else "other characters than of ASCII",
            expected=f"at least {MIN_CHARACTERS} of ASCII without a space, so that nobody guesses them",
            remedy="remove the file, and a new one is written",
        )
    return token
