"""Names that tell nothing: paths and identifiers as hashes that only the salt's holder can redo."""

from __future__ import annotations

from collections.abc import Iterable
import csv
import hashlib
import hmac
import os
import pathlib
import secrets
from typing import TextIO

FILE = "salt"
_HEX = 32  # digits of a key: 128 bits, so that a billion files have no two alike


def key(salt: bytes, source: int, path: str) -> str:
  """The key of a file: the hash of its source's number and its path there."""
  text = f"{source}/".encode() + os.fsencode(path)
  return hmac.new(salt, text, hashlib.sha256).hexdigest()[:_HEX]


def given(salt: str) -> bytes:
  """The salt that a user names: what a file of that name holds, else the text itself.

  Raises:
    ValueError: it is empty.
  """
  path = pathlib.Path(salt)
  data = path.read_bytes().strip() if salt and path.is_file() else salt.encode()
  if not data:
    raise ValueError(f"--salt {salt!r} is empty: give a text or the name of a file that holds one")
  return data


def kept(folder: pathlib.Path) -> bytes:
  """The salt beside a collection, made at random if there is none; its owner alone may read it."""
  path = folder / FILE
  if not path.exists():
    with private(path) as file:
      file.write(secrets.token_hex(32))
  return path.read_bytes()


def private(path: pathlib.Path) -> TextIO:
  """Opens a text file anew that its owner alone may read; paths that are no text are kept."""
  path.unlink(missing_ok=True)
  handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  return os.fdopen(handle, "w", newline="", encoding="utf-8", errors="surrogateescape")


def write_quarantine(folder: pathlib.Path, refused: Iterable[tuple[str, str]]) -> None:
  """Writes (path, reason) of what was refused: paths as they are, hence for the owner alone."""
  with private(folder / "quarantine.tsv") as file:
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerow(("path", "reason"))
    writer.writerows(refused)
