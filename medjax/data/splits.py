"""Who goes to train, val and test: grouped, stratified, seeded, and checked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medjax import contract, settings
from medjax.data import catalogue as catalogue_lib

_VISITS = 3  # the first finds the groups, the others mend what is left over


def deal(rows: catalogue_lib.Catalogue, cfg: settings.Split) -> np.ndarray:
  """The part of each image.

  Official parts stay as they are (unless the mode says otherwise); a missing test, then a missing
  val, is taken from train by whole groups, so that each class's share comes as near to the asked
  one as the groups allow. Nothing is taken from an unlabelled set, which nothing is scored on.
  Depends on ids, groups, labels and the seed, not on the rows' order.

  Returns:
    [n] str of `contract.PARTS`.
  """
  parts = rows.parts.astype(object) if cfg.mode == "official" else np.full(len(rows), "", object)
  groups = np.array(rows.ids if cfg.mode == "image_random" else rows.groups)
  given = set(parts)
  missing = [(name, share) for name, share in _asked(rows, cfg).items() if name not in given]
  parts[parts == ""] = "train"
  if "train" not in parts:
    raise ValueError("no image is in the part 'train'")
  for i, (name, share) in enumerate(missing):
    pool = np.flatnonzero(parts == "train")
    base = len(rows) / len(pool) if name == "test" else 1.0  # test is a share of all images
    rng = np.random.default_rng((cfg.seed, contract.PARTS.index(name)))
    taken = _take(groups[pool], rows.labels[pool], share * base, len(missing) - i, rng)
    parts[pool[taken]] = name
  return parts.astype(str)


def _asked(rows: catalogue_lib.Catalogue, cfg: settings.Split) -> dict[str, float]:
  """The shares of test and val that the settings ask for."""
  shares = {"test": cfg.test, "val": cfg.val} if rows.classes else {}
  return {part: share for part, share in shares.items() if share}


def _take(
  groups: np.ndarray, labels: np.ndarray, share: float, leave: int, rng: np.random.Generator
) -> np.ndarray:
  """Chooses whole groups that hold about `share` of every class: [n] bool.

  Of every class at least `leave` groups stay, and at least one is taken, where it has that many.
  """
  names, member = np.unique(groups, return_inverse=True)
  counts = np.zeros((len(names), labels.max() + 1))  # [G, K]
  np.add.at(counts, (member, labels), 1)
  order = rng.permutation(len(names))
  spare = (counts > 0).sum(0) - leave  # [K] groups of each class that may go
  taken = _near_quotas(counts, share * counts.sum(0), spare, order)
  for label in np.flatnonzero(counts.sum(0)):
    left = spare[label] - (counts[taken, label] > 0).sum()
    if left > 0 and not counts[taken, label].any():
      taken[min(order[counts[order, label] > 0], key=lambda group: counts[group].sum())] = True
  return taken[member]


def _near_quotas(
  counts: np.ndarray, quotas: np.ndarray, spare: np.ndarray, order: np.ndarray
) -> np.ndarray:
  """Groups whose counts add up to about the quotas of the classes: [G] bool.

  Groups are visited in the given order, several times; one changes sides if that brings the sums
  nearer to the quotas (squared distance, in units of the class's size).
  """
  scale = 1 / np.maximum(counts.sum(0), 1)
  short = quotas.copy()  # [K] images that each class still lacks
  taken = np.zeros(len(counts), bool)
  for group in np.tile(order, _VISITS):
    if (np.abs(short) <= 0.5).all():
      break  # no whole image brings the sums nearer
    sign = -1 if taken[group] else 1
    after = short - sign * counts[group]
    allowed = taken[group] or (spare[counts[group] > 0] > 0).all()
    if allowed and ((after * scale) ** 2).sum() < ((short * scale) ** 2).sum():
      taken[group] ^= True
      short, spare = after, spare - sign * (counts[group] > 0)
  return taken


def crossing(groups: tuple[str, ...], parts: np.ndarray) -> dict[str, list[str]]:
  """Groups that stand in more than one part, with those parts."""
  pairs = sorted(
    set(zip(groups, parts.tolist(), strict=True)), key=lambda p: contract.PARTS.index(p[1])
  )
  places: dict[str, list[str]] = {}
  for group, part in pairs:
    places.setdefault(group, []).append(part)
  return {group: where for group, where in sorted(places.items()) if len(where) > 1}


def check(rows: catalogue_lib.Catalogue, parts: np.ndarray, cfg: settings.Split) -> str:
  """Refuses a split that could not be trained on or believed.

  Args:
    rows: the images that are in the split.
    parts: [n] the part of each.
    cfg: how they were dealt.

  Returns:
    A sentence about the leak where groups may cross parts by the mode or the publication, else "".

  Raises:
    ValueError: a class is missing in a part, train is empty, or a group stands in two parts.
  """
  check_classes(rows, parts, cfg)
  cut = crossing(rows.groups, parts)
  shown = "; ".join(f"{group} ({', '.join(cut[group])})" for group in list(cut)[:5])
  more = f"; and {len(cut) - 5} more" if len(cut) > 5 else ""
  if cfg.mode == "image_random":
    return f"LEAKY: dealt by image, {len(cut)} groups stand in more than one part: {shown}{more}"
  if cut and not rows.published:
    raise ValueError(
      f"{len(cut)} groups stand in more than one part, so that scores would be too good: {shown}"
      f"{more}. Put each group into one part, or let it be dealt: --config.data.split.mode=grouped"
    )
  if cut:
    return (
      f"LEAKY: the published split cuts {len(cut)} groups across parts: {shown}{more}."
      " data.split.mode=grouped deals them anew"
    )
  return ""


def check_classes(rows: catalogue_lib.Catalogue, parts: np.ndarray, cfg: settings.Split) -> None:
  """Refuses a part that is empty or lacks a class; images with "" are in none."""
  needed = {"train", *_asked(rows, cfg), *parts.tolist()}
  expected = [part for part in contract.PARTS if part in needed]
  for label, name in enumerate(rows.classes):
    mine = rows.labels == label
    counts = {part: int((mine & (parts == part)).sum()) for part in expected}
    missing = [part for part, count in counts.items() if count == 0]
    if missing:
      groups = len({group for group, own in zip(rows.groups, mine, strict=True) if own})
      raise ValueError(
        f"class {name!r} has no image in {' and '.join(missing)}: its {mine.sum()} images are of"
        f" {groups} groups, {', '.join(f'{count} in {part}' for part, count in counts.items())}."
        " Every part needs a group of every class: add images, leave the class out, have the parts"
        " dealt anew (--config.data.split.mode=grouped), or fewer (--config.data.split.val=0)"
      )
  empty = [part for part in expected if part not in parts]
  if empty:
    raise ValueError(f"no image is in {' and '.join(empty)}: add images or ask for fewer parts")


def table(rows: catalogue_lib.Catalogue, parts: np.ndarray) -> str:
  """Images and groups of each class in each part, as monospace text."""
  width = max(len(name) for name in ("class", *rows.classes))
  lines = [f"{'part':<5}  {'class':<{width}}  {'images':>7}  {'groups':>7}"]
  groups = np.array(rows.groups)
  for part, name, mask in _cells(rows, parts):
    images, own = mask.sum(), len(np.unique(groups[mask]))
    lines.append(f"{part:<5}  {name:<{width}}  {images:>7,}  {own:>7,}")
  return "\n".join(lines)


def _cells(
  rows: catalogue_lib.Catalogue, parts: np.ndarray
) -> Iterator[tuple[str, str, np.ndarray]]:
  """(part, class or "all", [n] bool) of each line of the table."""
  for part in contract.PARTS:
    inside = parts == part
    if inside.any():
      yield from ((part, name, inside & (rows.labels == k)) for k, name in enumerate(rows.classes))
      yield part, "all", inside
