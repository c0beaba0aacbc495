"""Synthetic chest films of patients who never lived: what the quickstart learns from.

Every image is drawn by formulas from (seed, patient, image); nothing is read. A patient has an
anatomy, a scanner, one class, and two to four films, each in its own pose and exposure. Everybody
has two to four marks in the lungs, and a mark adds the same amount of light whatever the class, so
that only shape and texture tell the classes apart:

- `clear`: bent streaks, as vessels and scars throw them; by default six patients of ten;
- `nodular`: smooth round nodules; three of ten;
- `spiculated`: mottled stars; one of ten.

Position, size, number and opacity of the marks, and the scanner, are drawn alike for all classes.

A linear model sees little of that: logistic regression on standardised pixels reaches a balanced
accuracy of 0.343 (0.302 on 64 principal components) where chance is 0.333, over 4 grouped folds of
200 patients, and 0.399 with 1000 patients (64 components). To measure it again:

    python -m pytest tests/data/test_phantom.py -k linear -s -m "slow or not slow"

The drawing was fixed before any network was trained on it and is not changed to improve a result; a
change for another reason raises `VERSION`.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import re
import threading
from typing import NamedTuple

import cv2
import numpy as np

from medjax import contract, settings
from medjax.data import catalogue as catalogue_lib

VERSION = 1  # of the drawing: a cache of other drawings must not be taken for this one
SIZE = 64  # pixels, height and width
CLASSES = ("clear", "nodular", "spiculated")
MARK_ZONES = ((0, -1), (0, 0), (0, 1), (1, -1), (1, 0))  # (side, height); the heart has the sixth

_CLASS, _PATIENT, _IMAGE = range(3)  # streams of random numbers
_Y, _X = (np.mgrid[:SIZE, :SIZE].astype(np.float32) + 0.5) * (2 / SIZE) - 1  # [H, W], y is down


class Scanner(NamedTuple):
  """How a machine turns opacity into grey: blur in pixels, noise and border as shares of 1."""

  gain: float
  gamma: float
  blur: float
  noise: float
  border: float


SCANNERS = (
  Scanner(gain=1.00, gamma=1.00, blur=0.45, noise=0.015, border=0.00),
  Scanner(gain=0.85, gamma=1.25, blur=0.60, noise=0.025, border=0.12),
  Scanner(gain=1.10, gamma=0.80, blur=0.70, noise=0.015, border=0.20),
  Scanner(gain=0.95, gamma=0.90, blur=0.50, noise=0.035, border=0.06),
  Scanner(gain=1.05, gamma=1.15, blur=0.85, noise=0.020, border=0.00),
)


class Lungs(NamedTuple):
  """Two rounded columns on domed floors; `x`, `width`, `floor` are [2], the film's left first."""

  x: np.ndarray
  y: np.float32
  width: np.ndarray
  height: np.float32
  floor: np.ndarray


class Mark(NamedTuple):
  """A class's sign: its place, radius of the disc of its area, turn, opacity, and two oddities."""

  x: np.float32
  y: np.float32
  radius: np.float32
  angle: np.float32
  opacity: np.float32
  bend: np.float32
  phase: np.float32


@dataclasses.dataclass(frozen=True)
class Patient:
  """Everything about a patient that all films share, in half-widths of the film.

  Attributes:
    label: index into `CLASSES`. images: number of films.
    trunk: half-widths of torso and neck, height of the shoulder.
    heart: x, y, half-width, half-height. spine: half-width, frequency and phase of the vertebrae.
    ribs: frequency, phase, tilt, opacity.
    vessels: [6, n] start x, y, end x, y, radius, opacity. dots: [4, n] x, y, radius, opacity of
      vessels seen end-on. clouds: [4, n] wave vector x, y, phase, opacity.
  """

  label: int
  images: int
  scanner: Scanner
  trunk: np.ndarray
  lungs: Lungs
  heart: np.ndarray
  spine: np.ndarray
  ribs: np.ndarray
  vessels: np.ndarray
  dots: np.ndarray
  clouds: np.ndarray
  marks: tuple[Mark, ...]


def catalogue(cfg: settings.Phantom) -> catalogue_lib.Catalogue:
  """Lists the films of `cfg.patients` patients; `read` draws one, uint8 [64, 64].

  Raises:
    ValueError: if there is no patient, or the seed or a share is negative.
  """
  if min(cfg.shares) < 0 or sum(cfg.shares) < 1:
    raise ValueError(f"data.shares={cfg.shares}: none below 0, and a patient at least")
  if cfg.patients < 1 or cfg.seed < 0:
    raise ValueError(
      f"data.patients={cfg.patients} and data.seed={cfg.seed}: the phantom draws 1 patient or more "
      "from a seed of 0 or more, e.g. data.patients=200 and data.seed=0"
    )
  patients = [_draw_patient(cfg.seed, number, cfg.shares) for number in range(cfg.patients)]
  rows = [(number, film) for number, who in enumerate(patients) for film in range(who.images)]
  groups = tuple(f"phantom-s{cfg.seed}-p{number:05d}" for number, _ in rows)

  # A film is many short steps of NumPy, each of which hands on the interpreter's lock: two threads
  # drew 0.7 times as many films a second as one, four half as many.
  turn = threading.Lock()

  def read(row: int) -> np.ndarray:
    number, film = rows[row]
    with turn:
      return _draw_film(patients[number], _rng(_IMAGE, cfg.seed, number, film))

  return catalogue_lib.Catalogue(
    ids=tuple(f"{group}-i{film}" for group, (_, film) in zip(groups, rows, strict=True)),
    groups=groups,
    labels=_labels(cfg, [patients[number].label for number, _ in rows]),
    parts=np.full(len(rows), ""),
    classes=CLASSES if cfg.labelled else (),
    read=read,
    content=f"phantom {VERSION} patients={cfg.patients} seed={cfg.seed} shares={cfg.shares}",
    synthetic=True,
  )


def marks(cfg: settings.Phantom, name: str) -> np.ndarray:
  """Where a film shows its patient's marks: all that tells the classes apart.

  Args:
    cfg: of the set. name: the film's id in the catalogue.

  Returns:
    [64, 64] bool.
  """
  found = re.fullmatch(rf"phantom-s{cfg.seed}-p(\d+)-i(\d+)", name)
  if found is None:
    raise KeyError(f"no film {name!r} among patients of the seed {cfg.seed}")
  number, film = map(int, found.groups())
  patient = _draw_patient(cfg.seed, number, cfg.shares)
  x, y = _pose(_rng(_IMAGE, cfg.seed, number, film))
  blots = [_blot(MARKS[patient.label], mark, x, y) for mark in patient.marks]
  return np.max(blots, axis=0) > 0.25  # half the least that lies inside: stars are mottled


def _labels(cfg: settings.Phantom, labels: list[int]) -> np.ndarray:
  known = np.asarray(labels, np.int32)
  return known if cfg.labelled else np.full_like(known, contract.UNLABELLED)


def _rng(stream: int, seed: int, *index: int) -> np.random.Generator:
  return np.random.default_rng((VERSION, stream, seed, *index))


def _uniform(rng: np.random.Generator, *ranges: tuple[float, float], size=None) -> np.ndarray:
  """float32 [len(ranges)] or [len(ranges), size], one row a range."""
  low, high = np.asarray(ranges).T.reshape(2, -1, *([1] if size else []))
  return rng.uniform(low, high, (len(ranges), size) if size else None).astype(np.float32)


# --- What a patient is.


def _draw_patient(seed: int, number: int, shares: tuple[int, int, int]) -> Patient:
  """The patient of that number; the first ones stay the same when more are drawn."""
  rng = _rng(_PATIENT, seed, number)
  row = np.repeat(np.arange(len(shares)), shares)  # classes of so many patients, to be shuffled
  shuffled = _rng(_CLASS, seed, number // len(row)).permutation(row)
  lungs = _draw_lungs(rng)
  return Patient(
    label=int(shuffled[number % len(row)]),
    images=int(rng.integers(2, 5)),
    scanner=SCANNERS[rng.integers(len(SCANNERS))],
    trunk=_uniform(rng, (0.78, 0.92), (0.20, 0.28), (-0.82, -0.68)),
    lungs=lungs,
    heart=_uniform(rng, (0.08, 0.16), (0.18, 0.28), (0.24, 0.34), (0.22, 0.30)),
    spine=_uniform(rng, (0.06, 0.085), (16, 21), (0, 6.28)),
    ribs=_uniform(rng, (11, 15), (0, 6.28), (0.25, 0.5), (0.05, 0.08)),
    vessels=_draw_vessels(rng, branches=5),
    dots=_draw_dots(rng, lungs, count=5),
    clouds=_uniform(rng, (-7, 7), (-7, 7), (0, 6.28), (0.01, 0.03), size=5),
    marks=_draw_marks(rng, lungs),
  )


def _draw_lungs(rng: np.random.Generator) -> Lungs:
  x, width, depth = _uniform(rng, (0.38, 0.44), (0.27, 0.33), (0.62, 0.85), size=2)
  y, height = _uniform(rng, (-0.12, -0.04), (0.60, 0.72))
  return Lungs(x, y, width, height, floor=y + height * depth)


def _draw_vessels(rng: np.random.Generator, branches: int) -> np.ndarray:
  """[6, 2 * branches]: a fan out of each hilum."""
  side = np.repeat(np.array([-1, 1], np.float32), branches)
  fan = np.tile(np.linspace(-1.2, 1.2, branches, dtype=np.float32), 2)
  ranges = ((0.14, 0.20), (-0.08, 0.08), (0.2, 0.42), (-0.2, 0.2), (0.012, 0.026), (0.06, 0.14))
  x, y, length, turn, radius, opacity = _uniform(rng, *ranges, size=2 * branches)
  end_x = side * (x + length * np.cos(fan + turn))
  end_y = y + 1.3 * length * np.sin(fan + turn)
  return np.stack([side * x, y, end_x, end_y, radius, opacity])


def _draw_dots(rng: np.random.Generator, lungs: Lungs, count: int) -> np.ndarray:
  """[4, count], anywhere in the lungs."""
  side = rng.integers(0, 2, count)
  ranges = ((-0.6, 0.6), (-0.6, 0.6), (0.02, 0.045), (0.05, 0.15))
  across, down, radius, opacity = _uniform(rng, *ranges, size=count)
  return np.stack([*_in_lungs(lungs, side, across, down), radius, opacity])


def _draw_marks(rng: np.random.Generator, lungs: Lungs) -> tuple[Mark, ...]:
  """Two to four marks, each in a zone of its own so that they do not hide one another."""
  count = rng.integers(2, 5)
  side, height = np.transpose(rng.permutation(MARK_ZONES)[:count])
  ranges = ((-0.35, 0.35), (-0.14, 0.14), (0.11, 0.16), (0, 6.28), (0.18, 0.28), (-1, 1), (0, 6.28))
  across, down, *rest = _uniform(rng, *ranges, size=count)
  x, y = _in_lungs(lungs, side, across, 0.48 * height - 0.08 + down)
  return tuple(Mark(*row) for row in np.stack([x, y, *rest], axis=1).astype(np.float32))


def _in_lungs(lungs: Lungs, side, across, down) -> tuple[np.ndarray, np.ndarray]:
  """Film coordinates of points given in half-widths and half-heights of their lung."""
  x = (2 * side - 1) * (lungs.x[side] + lungs.width[side] * across)
  return x.astype(np.float32), (lungs.y + lungs.height * down).astype(np.float32)


# --- What a film shows. Arrays are [H, W] float32: x, y where a pixel looks, or opacity there.


def _draw_film(patient: Patient, rng: np.random.Generator) -> np.ndarray:
  """One film of a patient, uint8 [64, 64]; pose, exposure and noise come from `rng`."""
  x, y = _pose(rng)
  return _expose(patient.scanner, _opacity(patient, x, y), rng)


def _pose(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  turn, scale, right, down, breath = _uniform(
    rng, (-0.09, 0.09), (0.94, 1.06), (-0.06, 0.06), (-0.06, 0.06), (0.96, 1.04)
  )
  cos, sin = scale * np.cos(turn), scale * np.sin(turn)
  return cos * _X - sin * _Y + right, breath * (sin * _X + cos * _Y + down)


def _opacity(patient: Patient, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  lung, cage = _lung_and_cage(patient.lungs, x, y)
  body, thickness = _trunk(patient.trunk, x, y)
  air = lung * (1 - _heart(patient.heart, x, y))
  bones = _spine(patient.spine, x, y) + _clavicles(patient.lungs, x, y)
  film = body * ((0.22 + 0.42 * thickness) * (1 - 0.66 * air) + bones)
  film += cage * _ribs(patient.ribs, x, y)
  film += lung * (_vessels(patient.vessels, x, y) + _dots(patient.dots, x, y))
  film += lung * _clouds(patient.clouds, x, y)
  for mark in patient.marks:
    film += _mark(MARKS[patient.label], mark, x, y)
  return film


def _expose(scanner: Scanner, opacity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  exposure, *border = _uniform(rng, (0.92, 1.08), (0.5, 1.0), (0.5, 1.0))
  film = exposure * scanner.gain * np.maximum(opacity, 0) ** np.float32(scanner.gamma)
  film = cv2.GaussianBlur(film, (0, 0), scanner.blur)
  film += scanner.noise * rng.standard_normal(film.shape, dtype=np.float32)
  if scanner.border:  # a collimated beam leaves the rim black
    rim_x, rim_y = (1 - scanner.border * share for share in border)
    film *= _inside(np.minimum(rim_x - np.abs(_X), rim_y - np.abs(_Y)), 0.01)
  return (255 * np.clip(film, 0, 1) + 0.5).astype(np.uint8)


def _inside(depth: np.ndarray, softness: float) -> np.ndarray:
  """1 where `depth` is well above 0, 0 where it is well below: an edge as soft as wanted."""
  return 0.5 + 0.5 * np.tanh(depth * (0.5 / softness))


def _trunk(trunk: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  torso, neck, shoulder = trunk
  width = neck + (torso - neck) * _inside(y - shoulder, 0.05)
  return _inside(width - np.abs(x), 0.012), np.sqrt(np.maximum(1 - (x / width) ** 2, 0))


def _lung_and_cage(lungs: Lungs, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  side = (x > 0).astype(np.int8)
  beside, down = np.abs(x) - lungs.x[side], (y - lungs.y) / lungs.height
  across = np.abs(beside) / (lungs.width[side] * (0.86 + 0.2 * np.clip(down, -1, 1)))
  down = np.abs(down)
  radius = np.sqrt(across * across * np.sqrt(across) + down * down * np.sqrt(down))
  above_floor = _inside(lungs.floor[side] + 0.9 * beside * beside - y, 0.02)
  return _inside(1 - radius, 0.05) * above_floor, _inside(1.12 - radius, 0.04)


def _heart(heart: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  middle_x, middle_y, width, height = heart
  across, down = (x - middle_x) / width, (y - middle_y) / height
  return _inside(1 - across * across - down * down, 0.12)


def _spine(spine: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  width, frequency, phase = spine
  vertebrae = _inside(width - np.abs(x), 0.012) * (1 + 0.5 * np.cos(frequency * y + phase))
  return 0.10 * _inside(0.15 - np.abs(x), 0.03) + 0.06 * vertebrae


def _ribs(ribs: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  frequency, phase, tilt, opacity = ribs
  x = np.abs(x)
  wave = np.maximum(np.cos(frequency * (y + tilt * x + 0.5 * x * x) + phase), 0)
  return opacity * wave * wave * wave


def _clavicles(lungs: Lungs, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  x = np.abs(x)
  off = np.abs(y - lungs.y + 0.78 * lungs.height + 0.28 * (x - 0.1))
  return 0.09 * _inside(0.03 - off, 0.012) * _inside(np.minimum(0.62 - x, x - 0.08), 0.025)


def _vessels(vessels: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  start_x, start_y, end_x, end_y, radius, opacity = _each(vessels)
  along_x, along_y = end_x - start_x, end_y - start_y
  right, down = x - start_x, y - start_y
  along = (right * along_x + down * along_y) / (along_x * along_x + along_y * along_y)
  along = np.minimum(np.maximum(along, 0), 1)
  right, down, taper = right - along * along_x, down - along * along_y, radius * (1.2 - along)
  blur = np.exp(-(right * right + down * down) / (taper * taper + 1e-4))
  return (opacity * blur).max(axis=0)


def _dots(dots: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  middle_x, middle_y, radius, opacity = _each(dots)
  right, down = (x - middle_x) / radius, (y - middle_y) / radius
  square = right * right + down * down
  return (opacity * np.exp(-square * square)).max(axis=0)


def _clouds(clouds: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  wave_x, wave_y, phase, opacity = _each(clouds)
  return (opacity * np.sin(wave_x * x + wave_y * y + phase)).sum(axis=0)


def _each(things: np.ndarray) -> np.ndarray:
  """[m, n, 1, 1] of [m, n]: m numbers of n things, each to meet all pixels."""
  return things[:, :, None, None]


# --- Marks: the only thing that differs between classes. Coordinates are in radii of the mark.


def _mark(shape: Callable, mark: Mark, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  blot = _blot(shape, mark, x, y)
  disc = np.pi * (mark.radius * SIZE / 2) ** 2  # pixels: every shape gets the light of a disc
  return blot * (mark.opacity * disc / blot.sum())


def _blot(shape: Callable, mark: Mark, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Its form: about 1 inside and 0 outside."""
  x, y = (x - mark.x) / mark.radius, (y - mark.y) / mark.radius
  cos, sin = np.cos(mark.angle), np.sin(mark.angle)
  return shape(cos * x + sin * y, cos * y - sin * x, mark)


def _streak(x: np.ndarray, y: np.ndarray, mark: Mark) -> np.ndarray:
  past_end = np.maximum(np.abs(x) - 1.5, 0)
  aside = y + 0.25 * mark.bend * x * x
  return _inside(0.42 - np.sqrt(past_end * past_end + aside * aside), 0.12)


def _nodule(x: np.ndarray, y: np.ndarray, mark: Mark) -> np.ndarray:
  flat = 1 + 0.08 * mark.bend
  return _inside(1 - np.sqrt((x * flat) ** 2 + (y / flat) ** 2), 0.12)


def _star(x: np.ndarray, y: np.ndarray, mark: Mark) -> np.ndarray:
  turn = np.arctan2(y, x)
  spikes = 6 + round(float(mark.bend))
  ray = np.cos(0.5 * spikes * turn) ** 2
  edge = 0.62 + 1.1 * ray * ray * ray * (1 + 0.3 * np.cos(2 * turn + mark.phase))
  mottle = 1 + 0.5 * np.cos(7 * x + mark.phase) * np.cos(7 * y)
  return mottle * _inside(edge - np.sqrt(x * x + y * y), 0.12)


MARKS = (_streak, _nodule, _star)  # by label
