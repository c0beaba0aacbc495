"""What a run logs: `metrics.jsonl`, which is exact, and event files for TensorBoard.

`metrics.jsonl` holds one JSON object a line and nothing that depends on the clock, so that a run
that was resumed leaves the bytes of an unbroken one. TensorBoard is written through clu's writer
interface, in a background thread, and needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import importlib.util
import json
import math
import os
import pathlib
import sys
import time
import types
from typing import Any

from matplotlib import figure as mpl_figure
import numpy as np
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

_STAND_IN = types.ModuleType("clu.metric_writers.summary_writer")
_STAND_IN.SummaryWriter = None  # type: ignore[attr-defined]
if importlib.util.find_spec("tensorflow") is None:
  # clu.metric_writers cannot be imported without its TensorFlow writer, which it merely offers.
  sys.modules[_STAND_IN.__name__] = _STAND_IN

from clu import metric_writers  # noqa: E402
from clu.metric_writers import interface, utils  # noqa: E402

from medjax import figures  # noqa: E402

FILE = "metrics.jsonl"


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
  """Says of an OSError which file it was, and what to do."""
  try:
    yield
  except OSError as error:
    text = f"cannot write {path}: {error.strerror}; make that possible"
    raise OSError(error.errno, f"{text} and start the same command again") from error


class TensorBoard(interface.MetricWriter):
  """clu's writer of event files, by tensorboardX.

  tensorboardX's own SummaryWriter is avoided: on a full disk its thread dies, and the run waits for
  ever on a queue that nobody empties. Here the first error is kept in `failure`, because clu's
  background thread could only print it, and nothing is written after it.
  """

  def __init__(self, folder: str, purge_step: int = 0):
    """Starts a new file in `folder`; readers forget what older ones hold from `purge_step` on."""
    self.path = pathlib.Path(folder)
    self.failure: OSError | None = None
    self.path.mkdir(parents=True, exist_ok=True)
    self._events = event_file_writer.EventsWriter(
      str(self.path / "events"), filename_suffix=f".{time.time_ns()}"
    )
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(event_pb2.Event(step=purge_step, session_log=start))

  def _write(self, *events: event_pb2.Event) -> None:
    if self.failure is not None:
      return
    try:
      for event in events:
        event.wall_time = time.time()
        self._events.write_event(event)
      self._events.flush()
    except OSError as error:
      self.failure = error

  def _write_summaries(self, step: int, *summaries: summary.Summary) -> None:
    self._write(*(event_pb2.Event(step=step, summary=s) for s in summaries))

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Adds scalars."""
    self._write_summaries(step, *(summary.scalar(k, float(v)) for k, v in scalars.items()))

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Adds images [n, H, W, C] or [H, W, C], float in [0, 1] or uint8, n of them in one grid."""
    for name, each in images.items():
      layout = "NHWC" if np.ndim(each) == 4 else "HWC"
      self._write_summaries(step, summary.image(name, _to_uint8(each), dataformats=layout))

  def write_histograms(
    self,
    step: int,
    arrays: Mapping[str, np.ndarray],
    num_buckets: Mapping[str, int] | None = None,
  ) -> None:
    """Adds histograms, of 30 buckets unless told."""
    for name, array in arrays.items():
      bins = (num_buckets or {}).get(name, 30)
      self._write_summaries(step, summary.histogram(name, np.asarray(array), bins))

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Adds texts."""
    self._write_summaries(step, *(summary.text(name, text) for name, text in texts.items()))

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Adds the hyper-parameters of the run; what is neither number, bool nor text becomes text."""
    known = {
      k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in hparams.items()
    }
    self._write_summaries(0, *summary.hparams(known, {}))

  def write_summaries(self, step: int, values: Any, metadata: Any = None) -> None:
    """Not offered."""
    raise NotImplementedError("raw summaries are not written: use scalars, images or texts")

  def write_videos(self, step: int, videos: Any) -> None:
    """Not offered."""
    raise NotImplementedError("videos are not written: write their frames as images")

  def write_audios(self, step: int, audios: Any, *, sample_rate: int) -> None:
    """Not offered."""
    raise NotImplementedError("sound is not written")

  def flush(self) -> None:
    """Does nothing: every write is flushed."""

  def close(self) -> None:
    """Closes the file."""
    if self.failure is None:
      self._events.close()


if metric_writers.SummaryWriter is None:
  _STAND_IN.SummaryWriter = TensorBoard  # type: ignore[attr-defined]
  metric_writers.SummaryWriter = utils.SummaryWriter = TensorBoard


def _to_uint8(images: np.ndarray) -> np.ndarray:
  images = np.asarray(images)
  if images.dtype == np.uint8:
    return images
  return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def _plain(value: Any) -> int | float | list[str] | None:
  """A JSON number with every bit of `value`, None where it is not finite; or names."""
  if isinstance(value, list):
    return value
  if isinstance(value, int | np.integer):
    return int(value)
  return float(value) if math.isfinite(value) else None


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a `metrics.jsonl`."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def truncate(path: pathlib.Path, step: int) -> None:
  """Drops the rows beyond `step`, and the end of a last line that a kill tore.

  The file is cut where it stands, which takes no room on the disk and cannot stop half way.

  Raises:
    ValueError: a line before the last is no JSON object with a step.
  """
  keep = 0
  with path.open("rb") as lines:
    for number, line in enumerate(lines, 1):
      if not line.endswith(b"\n"):
        break
      if _step(path, number, line) > step:
        break
      keep += len(line)
  os.truncate(path, keep)


def _step(path: pathlib.Path, number: int, line: bytes) -> int:
  try:
    return json.loads(line)["step"]
  except (ValueError, TypeError, KeyError):
    raise ValueError(
      f"line {number} of {path} is no row of a log: {line[:60]!r}; take the file away to go on"
      " without the earlier rows"
    ) from None


class Rows:
  """Appends rows to a file like `metrics.jsonl`, each on it before `append` returns."""

  def __init__(self, path: pathlib.Path, stage: str):
    self.path, self._stage = path, stage
    self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

  def append(self, step: int, values: Mapping[str, float | list[str]]) -> None:
    """Adds `{"stage": ..., "step": step, **values}`; a number, or names, under each."""
    row = {"stage": self._stage, "step": int(step)} | {k: _plain(v) for k, v in values.items()}
    line = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n")
    while line:
      line = line[os.write(self._file, line) :]

  def close(self) -> None:
    """Closes the file."""
    os.close(self._file)


class Writer:
  """Logs one stage. Every method raises OSError when the disk is full or the folder goes away."""

  def __init__(self, rows: Rows, board: TensorBoard):
    self._rows, self._board = rows, board
    self._async = metric_writers.AsyncWriter(board)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Logs host numbers that a repeated run would log again, bit for bit.

    They go to `metrics.jsonl` and to TensorBoard. A number that is not finite becomes null there.
    """
    with _told(self._rows.path):
      self._rows.append(step, values)
    self.timings(step, values)

  def timings(self, step: int, values: Mapping[str, float]) -> None:
    """Logs host numbers that depend on the clock, to TensorBoard alone."""
    self._async.write_scalars(step, dict(values))
    self._raise_failure()

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Logs images [n, H, W, C], float in [0, 1] or uint8, each name as one grid."""
    self._async.write_images(step, dict(images))
    self._raise_failure()

  def figure(self, step: int, name: str, figure: mpl_figure.Figure) -> None:
    """Logs a figure as an image."""
    self.images(step, {name: figures.rendered(figure)})

  def hparams(self, values: Mapping[str, Any]) -> None:
    """Logs the flat settings of the run, once a start."""
    self._async.write_hparams(dict(values))
    self._raise_failure()

  def flush(self) -> None:
    """Waits until everything is on the files."""
    self._async.flush()
    self._raise_failure()

  def close(self) -> None:
    """Waits, and closes the files."""
    self._async.close()
    self._rows.close()
    self._raise_failure()

  def _raise_failure(self) -> None:
    if self._board.failure is not None:
      with _told(self._board.path):
        raise self._board.failure


def make(folder: str | os.PathLike, stage: str, resume_step: int | None = None) -> Writer:
  """Opens the logs of a stage in its folder.

  Args:
    folder: holds `metrics.jsonl` and the event files; made where it is missing.
    stage: its name, in every row.
    resume_step: the restored step: rows up to and with it stay, later ones are dropped. None starts
      afresh and drops all.
  """
  last = -1 if resume_step is None else resume_step
  path = pathlib.Path(folder) / FILE
  with _told(path):
    rows = lines(path, stage, last)
    board = TensorBoard(os.fspath(folder), purge_step=last + 1)
    return Writer(rows, board)


def lines(path: pathlib.Path, stage: str, step: int) -> Rows:
  """Opens a file of rows, made where it is missing, to go on after `step`; see `make`."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.exists():
    truncate(path, step)
  return Rows(path, stage)
