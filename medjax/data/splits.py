"""Who goes to train, val and test: grouped, stratified, seeded, and checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

from medjax import contract, settings
from medjax.data import catalogue as catalogue_lib

_VISITS = 3  # the first finds the groups, the others mend what is left over


def deal(rows: catalogue_lib.Catalogue, cfg: settings.Split) -> np.ndarray:
  """The part of each image.

  Official parts stay as they are (unless the mode says otherwise); a missing test, then a missing
  val, is taken from train by whole groups, so that each class's share comes as near to the asked
  one as the groups allow. Where folds are asked for, one of them is `cfg.folded`, val or test.
  Nothing is taken from an unlabelled set, which nothing is scored on. Depends on ids, groups,
  labels and the seed, not on the rows' order.

  Returns:
    [n] str of `contract.PARTS`.

  Raises:
    ValueError: nothing is in train, or a class has fewer groups than there are folds.
  """
  if cfg.mode == "image_random":
    rows = dataclasses.replace(rows, groups=rows.ids)
  parts = rows.parts.astype(object) if cfg.mode == "official" else np.full(len(rows), "", object)
  if cfg.folds:
    parts[(parts == "val") | (cfg.folded == "test")] = ""
  groups = np.array(rows.groups)
  given = set(parts)
  missing = [(name, share) for name, share in _asked(rows, cfg).items() if name not in given]
  parts[parts == ""] = "train"
  if "train" not in parts:
    raise ValueError("no image is in the part 'train'")
  for i, (name, share) in enumerate(missing):
    if name == cfg.folded and cfg.folds:
      parts[folds(rows, parts, cfg.folds, cfg.seed) == cfg.fold] = name
      continue
    pool = np.flatnonzero(parts == "train")
    base = len(rows) / len(pool) if name == "test" else 1.0  # test is a share of all images
    rng = np.random.default_rng((cfg.seed, contract.PARTS.index(name)))
    taken = _take(groups[pool], rows.strata[pool], share * base, len(missing) - i, rng)
    parts[pool[taken]] = name
  return parts.astype(str)


def _asked(rows: catalogue_lib.Catalogue, cfg: settings.Split) -> dict[str, float]:
  """The shares of test and val that the settings ask for."""
  shares = {"test": cfg.test, "val": cfg.val} if rows.classes else {}
  if cfg.folds and rows.classes:
    shares[cfg.folded] = 1 / cfg.folds
  return {part: share for part, share in shares.items() if share}


def folds(rows: catalogue_lib.Catalogue, parts: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Deals the training part to folds: whole groups, each class as evenly as they allow.

  By scikit-learn's StratifiedGroupKFold. Of a multi-label image the rarest class counts.

  Args:
    rows: the images.
    parts: [n] str; only images in train are dealt.
    count: how many folds, 2 or more.
    seed: which of the possible folds.

  Returns:
    [n] int, from 0 on; -1 outside the training part. Independent of the rows' order.

  Raises:
    ValueError: a class has fewer groups in train than there are folds.
  """
  from sklearn import model_selection  # takes a second to import, which few runs need

  own = np.flatnonzero(parts == "train")
  groups, strata = np.array(rows.groups)[own], rows.strata[own]
  _check_folds(rows.classes, groups, strata, count)
  rarest = np.argsort(strata.sum(0), kind="stable")
  kinds = rarest[strata[:, rarest].argmax(1)]
  dealer = model_selection.StratifiedGroupKFold(count, shuffle=True, random_state=seed)
  dealt = np.full(len(rows), -1)
  for fold, (_, inside) in enumerate(dealer.split(own, kinds, groups)):
    dealt[own[inside]] = fold
  return dealt


def _check_folds(
  classes: Sequence[str], groups: np.ndarray, strata: np.ndarray, count: int
) -> None:
  for name, mine in zip(classes, strata.T, strict=False):  # the last may be those without a class
    found = len(np.unique(groups[mine]))
    if found < count:
      raise ValueError(
        f"class {name!r} has {found} groups in the training part, fewer than {count} folds: ask for"
        f" fewer (--config.data.split.folds={max(found, 2)}), or leave the class out"
      )


def _take(
  groups: np.ndarray, members: np.ndarray, share: float, leave: int, rng: np.random.Generator
) -> np.ndarray:
  """Chooses whole groups that hold about `share` of every class, by `members` [n, K]: [n] bool.

  Of every class at least `leave` groups stay, and at least one is taken, where it has that many.
  """
  names, member = np.unique(groups, return_inverse=True)
  counts = np.zeros((len(names), members.shape[1]))  # [G, K]
  np.add.at(counts, member, members)
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


def thinned(rows: catalogue_lib.Catalogue, parts: np.ndarray, cfg: settings.Split) -> np.ndarray:
  """The parts with `cfg.fraction` of the training part's groups; its other images are in none, "".

  Every group counts for the rarest class that it holds an image of, and of every class the first
  groups in an order drawn by `cfg.fraction_seed` are kept, so that a smaller fraction of the same
  seed lies in a larger one. Groups that together hold every class come first. Does not depend on
  the rows' order.

  Args:
    rows: the images. parts: [n] str, of `deal`. cfg: how to deal.
  """
  if cfg.fraction == 1:
    return parts
  own = np.flatnonzero(parts == "train")
  units = rows.ids if cfg.mode == "image_random" else rows.groups
  names, member = np.unique(np.array(units)[own], return_inverse=True)
  everyone = np.ones((len(names), 1), bool)  # what groups without a class count for
  holds = np.column_stack([_held(member, rows.strata[own]), everyone])  # [G, S]
  kept = _first_of_each(holds, cfg.fraction, np.random.default_rng(cfg.fraction_seed))
  parts = parts.copy()
  parts[own[~kept[member]]] = ""
  return parts


def _held(member: np.ndarray, strata: np.ndarray) -> np.ndarray:
  """[G, S] bool: which group has an image of which stratum; `member` [n] is an image's group."""
  holds = np.zeros((member.max() + 1, strata.shape[1]), bool)
  np.logical_or.at(holds, member, strata)
  return holds


def _first_of_each(holds: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
  """[G] bool: of the groups of each stratum the share that comes first in an order drawn by `rng`.

  Of every stratum at least one group, among them those by which `holds` [G, S] is covered.
  """
  order = rng.permutation(len(holds))
  rarest = np.argsort(holds.sum(0), kind="stable")
  kind = rarest[holds[:, rarest].argmax(1)]  # [G]
  kept = np.zeros(len(holds), bool)
  for stratum in rarest[holds[:, rarest].any(0)]:
    if not (kept & holds[:, stratum]).any():
      kept[order[holds[order, stratum]][0]] = True
  order = order[np.argsort(~kept[order], kind="stable")]  # those that cover all come first
  for stratum in np.unique(kind):
    alike = order[kind[order] == stratum]
    kept[alike[: round(share * len(alike))]] = True
  return kept


def joined(rows: catalogue_lib.Catalogue, pictures: np.ndarray) -> catalogue_lib.Catalogue:
  """Makes one group of those that share a picture, over any number of steps.

  Args:
    rows: the set.
    pictures: [n] int, the same number for equal images; -1 where that is not known.

  Returns:
    The set, with every such group named by the first of its names.
  """
  from scipy import sparse  # only here, as scikit-learn above

  names, group = np.unique(rows.groups, return_inverse=True)
  known = np.flatnonzero(pictures >= 0)
  nodes = len(names) + pictures.max(initial=-1) + 1
  edges = (np.ones(len(known)), (group[known], len(names) + pictures[known]))
  graph = sparse.coo_array(edges, shape=(nodes, nodes))
  _, component = sparse.csgraph.connected_components(graph, directed=False)
  _, first, own = np.unique(component[: len(names)], return_index=True, return_inverse=True)
  return dataclasses.replace(rows, groups=tuple(names[first[own]][group].tolist()))


def conflicts(rows: catalogue_lib.Catalogue, pictures: np.ndarray) -> str:
  """A sentence about pictures that stand under more than one label, or "" where none does."""
  labels = np.unique(rows.members, axis=0, return_inverse=True)[1]
  known = pictures >= 0
  pairs = np.unique(np.stack([pictures, labels])[:, known], axis=1)
  numbers, counts = np.unique(pairs[0], return_counts=True)
  twice = numbers[counts > 1]
  if not len(twice):
    return ""
  shown = [rows.ids[row] for row in np.flatnonzero(pictures == twice[0])[:3]]
  return f"{len(twice)} pictures stand under more than one label, such as {', '.join(shown)}"


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
  if cut and not rows.published and cfg.leaks == "refuse":
    raise ValueError(
      f"{len(cut)} groups stand in more than one part, so that scores would be too good: {shown}"
      f"{more}. Put each group into one part, or let it be dealt: --config.data.split.mode=grouped."
      " To go on, every output stamped leaky: --config.data.split.leaks=stamp. Groups that share a"
      " picture count as one"
    )
  if cut:
    return (
      f"LEAKY: the {'published' if rows.published else 'given'} split cuts {len(cut)} groups across"
      f" parts: {shown}{more}."
      " data.split.mode=grouped deals them anew"
    )
  return ""


def check_classes(rows: catalogue_lib.Catalogue, parts: np.ndarray, cfg: settings.Split) -> None:
  """Refuses a part that is empty or lacks a class; images with "" are in none."""
  needed = {"train", *_asked(rows, cfg), *parts.tolist()}
  expected = [part for part in contract.PARTS if part in needed]
  for label, name in enumerate(rows.classes):
    mine = rows.members[:, label]
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


def without_labels(
  rows: catalogue_lib.Catalogue, before: np.ndarray, parts: np.ndarray
) -> catalogue_lib.Catalogue:
  """The set, in which those images have no label that `thinned` took out of the parts `before`.

  They are the second of two sets, the labelled ones the first.

  Raises:
    ValueError: the set is several already, or its images have several labels.
  """
  if rows.sets is not None or rows.multi_label:
    raise ValueError(
      "data.split.rest=unlabelled makes two sets of one whose images have one label: set it to drop"
    )
  bare = parts != before
  labels = np.where(bare, contract.UNLABELLED, rows.labels).astype(rows.labels.dtype)
  return dataclasses.replace(rows, labels=labels, sets=bare.astype(np.int32))


def thinning(rows: catalogue_lib.Catalogue, before: np.ndarray, parts: np.ndarray) -> str:
  """A sentence about what `thinned` made of the parts `before`, or "" where it kept all."""
  was, left = before == "train", parts == "train"
  if (was == left).all():
    return ""
  groups = np.array(rows.groups)
  all_groups, some = len(np.unique(groups[was])), len(np.unique(groups[left]))
  return (
    f"train holds {left.sum():,} of its {was.sum():,} images and {some:,} of its {all_groups:,}"
    " groups, by data.split.fraction"
  )


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
      classes = zip(rows.classes, rows.members.T, strict=True)
      yield from ((part, name, inside & mine) for name, mine in classes)
      yield part, "all", inside
