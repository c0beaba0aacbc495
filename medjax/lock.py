"""One run at a time in a workdir: two would write over each other's checkpoints and logs.

The lock is the operating system's. It goes with the process that holds it, however that ends, so a
run that was killed is in nobody's way. The file stays, and is of no meaning by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import socket

FILE = ".lock"
_UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # of file systems without


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps a workdir, which is there, from other runs while inside.

  Where the file system knows no locks, that is said, and nothing is kept.

  Raises:
    BlockingIOError: another run holds it; tells which.
    OSError: the folder cannot be written to.
  """
  path = workdir / FILE
  file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
  try:
    _take(file, workdir)
    with contextlib.suppress(OSError):  # a full disk is told by what needs the room
      os.ftruncate(file, 0)
      os.pwrite(file, _oneself().encode(), 0)
    yield
  finally:
    os.close(file)


def _take(file: int, workdir: pathlib.Path) -> None:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    who = os.pread(file, 200, 0).decode(errors="replace").strip() or "one that begins just now"
    raise BlockingIOError(
      f"another run works in {workdir}: {who}. Wait until it ends, stop it (kill PID; it saves"
      " its state first), or give this one another --workdir"
    ) from None
  except OSError as error:
    if error.errno not in _UNKNOWN:
      raise
    text = f"{workdir} lies on a file system without locks ({error.strerror}): make sure yourself"
    print(f"{text} that no other run works there", flush=True)


def _oneself() -> str:
  now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
  return f"process {os.getpid()} on {socket.gethostname()}, since {now}\n"
