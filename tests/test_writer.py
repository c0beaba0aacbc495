"""Logs: the exact rows, what TensorBoard reads back, kills and full disks."""

import io
import json
import subprocess
import sys
import textwrap

from matplotlib import figure as mpl_figure
import numpy as np
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator

from medjax import writer


def _events(folder) -> event_accumulator.EventAccumulator:
  return event_accumulator.EventAccumulator(str(folder)).Reload()


def _log(folder, steps, resume_step=None):
  log = writer.make(folder, "train", resume_step)
  for step in steps:
    log.scalars(step, {"loss": np.float32(1 / step), "epoch": step // 2})
  log.close()


def _picture(events, name) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(events.Images(name)[0].encoded_image_string)))


def test_rows_keep_every_bit(tmp_path):
  log = writer.make(tmp_path / "new" / "folder", "pretrain")
  values = [0.1, np.float32(0.1), np.float64(1) / 3, 1e-300, -0.0]
  for step, value in enumerate(values):
    log.scalars(step, {"loss": value, "epoch": np.int32(step)})
  log.close()
  rows = writer.read(tmp_path / "new" / "folder" / writer.FILE)
  assert [row["loss"] for row in rows] == [float(v) for v in values]
  assert rows[1] == {"stage": "pretrain", "step": 1, "loss": float(np.float32(0.1)), "epoch": 1}
  assert isinstance(rows[0]["epoch"], int)


def test_numbers_that_are_not_finite_become_null(tmp_path):
  log = writer.make(tmp_path, "train")
  log.scalars(1, {"loss": np.float32("nan"), "other": float("inf")})
  log.close()
  assert '"loss": null, "other": null' in (tmp_path / writer.FILE).read_text()


def test_rows_are_on_the_file_at_once(tmp_path):
  log = writer.make(tmp_path, "train")
  log.scalars(1, {"loss": 0.5})
  assert len(writer.read(tmp_path / writer.FILE)) == 1
  log.close()


def test_the_clock_stays_out_of_the_rows(tmp_path):
  log = writer.make(tmp_path, "train")
  log.scalars(4, {"loss": 0.5})
  log.timings(4, {"steps_per_second": 12.5})
  log.close()
  assert "second" not in (tmp_path / writer.FILE).read_text()
  assert _events(tmp_path).Scalars("steps_per_second")[0].value == 12.5


@pytest.mark.parametrize("kept", [0, 1, 5, 8])
def test_a_resumed_run_leaves_the_bytes_of_an_unbroken_one(tmp_path, kept):
  _log(tmp_path / "whole", range(1, 13))
  _log(tmp_path / "cut", range(1, 9))
  _log(tmp_path / "cut", range(kept + 1, 13), resume_step=kept)
  whole, cut = (tmp_path / name / writer.FILE for name in ("whole", "cut"))
  assert cut.read_bytes() == whole.read_bytes()


def test_a_fresh_start_drops_all_rows(tmp_path):
  log = writer.make(tmp_path, "train")
  log.scalars(0, {"loss": 9.0})
  log.close()
  _log(tmp_path, [1, 2])
  assert [row["step"] for row in writer.read(tmp_path / writer.FILE)] == [1, 2]


@pytest.mark.parametrize("torn", range(1, 40, 6))
def test_a_torn_last_line_is_dropped(tmp_path, torn):
  _log(tmp_path, range(1, 4))
  path = tmp_path / writer.FILE
  whole = path.read_bytes()
  last = whole.splitlines(keepends=True)[-1]
  path.write_bytes(whole[: len(whole) - min(torn, len(last) - 1)])
  writer.truncate(path, 10)
  assert path.read_bytes() == whole[: -len(last)]


def test_a_line_torn_by_a_kill_is_repaired_by_the_next_start(tmp_path):
  script = f"""
    import os, signal
    from medjax import writer
    log = writer.make({str(tmp_path)!r}, "train")
    for step in range(1, 4):
      log.scalars(step, {{"loss": 1 / step}})
    os.write(log._rows._file, b'{{"stage": "train", "step": 4, "lo')
    os.kill(os.getpid(), signal.SIGKILL)
  """
  killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
  assert killed.returncode == -9
  log = writer.make(tmp_path, "train", resume_step=2)
  log.scalars(3, {"loss": 1 / 3})
  log.close()
  assert [row["step"] for row in writer.read(tmp_path / writer.FILE)] == [1, 2, 3]


def test_a_foreign_line_is_an_error_that_names_it(tmp_path):
  path = tmp_path / writer.FILE
  path.write_text('{"stage": "train", "step": 1, "loss": 1.0}\nhello\n{"step": 2}\n')
  with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl .*hello"):
    writer.make(tmp_path, "train", resume_step=9)
  assert "hello" in path.read_text()


def test_tensorboard_reads_scalars_and_forgets_what_a_resume_repeats(tmp_path):
  _log(tmp_path, range(1, 9))
  _log(tmp_path, range(6, 11), resume_step=5)
  scalars = _events(tmp_path).Scalars("loss")
  assert [s.step for s in scalars] == list(range(1, 11))
  np.testing.assert_allclose([s.value for s in scalars], [1 / s for s in range(1, 11)], rtol=1e-6)


def test_tensorboard_reads_images_as_they_were(tmp_path):
  ramp = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1) * 4
  colours = np.random.default_rng(0).random((3, 4, 4, 3)).astype(np.float32)
  log = writer.make(tmp_path, "train")
  log.images(2, {"ramp": ramp, "colours": colours, "one": colours[0], "beyond": colours * 3 - 1})
  log.close()
  events = _events(tmp_path)
  np.testing.assert_array_equal(_picture(events, "ramp"), np.repeat(ramp[0], 3, -1))
  grid = np.concatenate(list(np.round(colours * 255).astype(np.uint8)), 1)
  np.testing.assert_array_equal(_picture(events, "colours"), grid)
  np.testing.assert_array_equal(_picture(events, "one"), grid[:, :4])
  clipped = np.clip(colours[0] * 3 - 1, 0, 1) * 255
  np.testing.assert_allclose(_picture(events, "beyond")[:, :4], clipped, atol=1)


def test_tensorboard_reads_a_figure(tmp_path):
  figure = mpl_figure.Figure(figsize=(3, 2), dpi=50, facecolor="red")
  log = writer.make(tmp_path, "train")
  log.figure(1, "confusion", figure)
  log.close()
  picture = _picture(_events(tmp_path), "confusion")
  assert picture.shape == (100, 150, 3)
  np.testing.assert_array_equal(picture[0, 0], [255, 0, 0])


def test_tensorboard_reads_hyper_parameters(tmp_path):
  log = writer.make(tmp_path, "train")
  log.hparams({"optimizer.lr": 1e-3, "model": "mednet", "resume": True, "widths": (32, 64)})
  log.close()
  content = _events(tmp_path).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
  for text in (b"optimizer.lr", b"mednet", b"resume", b"(32, 64)"):
    assert text in content


def test_clu_works_without_tensorflow(tmp_path):
  # Importable only now that medjax.writer is: clu itself asks for TensorFlow here.
  from clu import metric_writers, periodic_actions

  log = metric_writers.create_default_writer(str(tmp_path))
  report = periodic_actions.ReportProgress(num_train_steps=10, every_steps=1, writer=log)
  for step in range(3):
    report(step)
  log.write_texts(1, {"note": "text"})
  log.write_histograms(1, {"weights": np.arange(10.0)})
  log.close()
  events = _events(tmp_path)
  assert [e.step for e in events.Scalars("steps_per_sec")] == [1, 2]
  assert events.Histograms("weights")[0].histogram_value.num == 10
  assert "note/text_summary" in events.Tags()["tensors"]


LIMITED = """
  import resource, sys
  import numpy as np
  from medjax import writer
  what, folder = sys.argv[1:]
  log = writer.make(folder, "train")
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
  for step in range(10_000):
    if what == "rows":
      log.scalars(step, {"loss": 0.125})
    else:
      log.images(step, {"noise": np.random.default_rng(step).random((1, 64, 64, 1))})
"""


@pytest.mark.parametrize(("what", "name"), [("rows", writer.FILE), ("images", "")])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, what, name):
  command = [sys.executable, "-c", textwrap.dedent(LIMITED), what, str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("OSError") and f"cannot write {tmp_path / name}" in last
  assert "start the same command again" in last
  assert "producer thread" not in done.stderr
  if what == "rows":
    writer.truncate(tmp_path / writer.FILE, 10_000)
    rows = [json.loads(line) for line in (tmp_path / writer.FILE).read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows))) and len(rows) > 10


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match=r"cannot write .*file/stage.*: Not a directory"):
    writer.make(tmp_path / "file" / "stage", "train")
