"""What is told of a public set beside its images: classes, sources, and what to beware of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import dataclasses
from typing import Any

from medjax.data import catalogue as catalogue_lib
from medjax.data import metadata


@dataclasses.dataclass(frozen=True)
class Paper:
  """A set of the papers.

  Attributes:
    examples: settings -> its images, in a fixed order; nothing is opened but lists and tables.
    classes: settings -> class names in label order.
    citation: the publication to cite. licence: the terms, in the authors' words.
    download: what to get from where, and how to lay it out.
    traps: what has misled users of the set.
    fields: the metadata that a network may see.
    multi_label: settings -> whether an image may have several classes, or none.
  """

  examples: Callable[[Any], Iterable[catalogue_lib.Example]]
  classes: Callable[[Any], tuple[str, ...]]
  citation: str
  licence: str
  download: str
  traps: str
  fields: tuple[metadata.Field, ...] = ()
  multi_label: Callable[[Any], bool] = lambda _: False

  def catalogue(self, cfg: Any) -> catalogue_lib.Catalogue:
    """The set's columns.

    Raises:
      FileNotFoundError: the set is not where the settings say; tells how to get it.
    """
    return catalogue_lib.of(self.examples(cfg), self.classes(cfg), self.fields, published=True)
