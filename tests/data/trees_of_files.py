"""A mixed tree with everything in it that a gathering meets, and how collections are compared."""

import io
import pathlib
import tarfile
import zipfile

import cv2
import numpy as np
from PIL import Image


def picture(seed: int, side: int = 96, colour: bool = False) -> np.ndarray:
  """uint8 [side, side(, 3)], smooth enough that JPEG keeps it and unlike any other."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (6, 6, 3) if colour else (6, 6), np.uint8)
  return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
  data = io.BytesIO()
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  image.save(data, kind, **options)
  return data.getvalue()


def write(path: pathlib.Path, data: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def mixed_tree(root: pathlib.Path) -> None:
  """23 files: 13 are images, 3 no images by their names, 7 must be refused."""
  grey, colour = picture(1), picture(2, colour=True)
  write(root / "Doe^John/grey.png", encoded(grey))
  write(root / "Doe^John/same_bytes.png", encoded(grey))
  write(root / "Doe^John/same_pixels.bmp", encoded(grey, "BMP"))
  write(root / "Doe^John/grey_as_rgb.png", encoded(np.repeat(grey[..., None], 3, 2)))
  write(root / "near.jpg", encoded(grey, "JPEG", quality=40))
  write(root / "colour.jpg", encoded(colour, "JPEG"))
  write(root / "small.png", encoded(picture(3, 20)))
  write(root / "deep.png", encoded(picture(4).astype(np.uint16) * 256))
  write(root / "odd name\t\n.png", encoded(picture(5)))
  write(root / "notes.txt", b"no image")
  write(root / ".hidden/thumb.png", encoded(grey))
  write(root / "broken.png", encoded(grey)[:300])
  write(root / "empty.dcm", b"")
  write(root / "text.jpg", b"this is no image")
  with zipfile.ZipFile(root / "films.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a/1.png", encoded(picture(6)))
    archive.writestr("a/2.png", encoded(picture(7)))
    archive.writestr("a/readme.txt", "no image")
    archive.writestr("../escape.png", encoded(picture(8)))
    archive.writestr("bomb.png", bytes(2**26 + 1))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as nested:
      nested.writestr("3.png", encoded(picture(9)))
    archive.writestr("inner.zip", inner.getvalue())
  with tarfile.open(root / "more.tar.gz", "w:gz") as archive:
    data = encoded(picture(10))
    info = tarfile.TarInfo("4.png")
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
  write(root / "damaged.zip", b"PK, but no more")
  (root / "loop").symlink_to(root)


def classes(
  root: pathlib.Path, per_class=12, names=("a", "b"), size=10, channels=3
) -> dict[str, np.ndarray]:
  """Class folders of random images; the pixels by id."""
  rng = np.random.default_rng(0)
  pixels = {}
  for name in names:
    (root / name).mkdir(parents=True)
    for i in range(per_class):
      shape = (size, size, channels) if channels == 3 else (size, size)
      pixels[f"{name}/{i:03}.png"] = rng.integers(0, 256, shape, dtype=np.uint8)
      Image.fromarray(pixels[f"{name}/{i:03}.png"]).save(root / name / f"{i:03}.png")
  return pixels


def many(root: pathlib.Path, count: int) -> None:
  """Small pictures, each its own, in more than one shard."""
  for i in range(count):
    write(root / f"{i % 5}/{i:05d}.png", encoded(picture(i, 16)))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """Every file of a folder."""
  files = (path for path in folder.rglob("*") if path.is_file())
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
