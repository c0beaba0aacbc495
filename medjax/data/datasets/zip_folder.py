"""A folder of zip files of images, read in place; the zip's name is the source label."""

from __future__ import annotations

import hashlib
import pathlib
import zipfile
import zlib

import numpy as np

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files


def catalogue(cfg: settings.ZipFolder) -> catalogue_lib.Catalogue:
  """Lists the members of every .zip in `cfg.root`; nothing is unpacked to disk.

  The label tells the zip an image came from: the source, which pretext tasks can learn and which
  self-supervised training does not look at. Every image is its own group.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: no zips, a damaged one, or one without images.
  """
  root = files.root(cfg.root, "a folder of zip files")
  archives = [_opened(path) for path in sorted(root.glob("[!.]*.zip"))]
  if not archives:
    raise ValueError(f"no .zip file in {root}")
  members = [(a, info) for a in archives for info in a.infolist() if not info.is_dir()]
  _, notes = files.without_clutter(info.filename for _, info in members)
  members = [(a, info) for a, info in members if not files.is_clutter(info.filename)]
  sources = [pathlib.Path(str(archive.filename)).stem for archive, _ in members]
  classes = tuple(pathlib.Path(str(archive.filename)).stem for archive in archives)
  empty = sorted(set(classes) - set(sources))
  if empty:
    raise ValueError(f"zip files without an image in {root}: {files.some(empty)}")
  ids = tuple(
    f"{source}.zip/{info.filename}" for source, (_, info) in zip(sources, members, strict=True)
  )
  return catalogue_lib.Catalogue(
    ids=ids,
    groups=ids,
    labels=files.index(sources, classes),
    parts=np.full(len(ids), ""),
    classes=classes,
    read=lambda row: _read(*members[row]),
    content=_content(members),
    notes=notes,
    sources=tuple(sources),
  )


def _opened(path: pathlib.Path) -> zipfile.ZipFile:
  """Stays open as long as the catalogue lives; its reads take turns by a lock of their own."""
  try:
    return zipfile.ZipFile(path)
  except zipfile.BadZipFile as error:
    raise ValueError(f"{path} is damaged or no zip file: {error}") from None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
  try:
    return archive.read(info)
  except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: encrypted
    raise OSError(str(error)) from error


def _content(members: list[tuple[zipfile.ZipFile, zipfile.ZipInfo]]) -> str:
  """A digest of the members' names and checksums, which zip files carry."""
  digest = hashlib.sha256()
  for archive, info in members:
    digest.update(f"{archive.filename} {info.filename} {info.CRC} {info.file_size}\n".encode())
  return digest.hexdigest()
