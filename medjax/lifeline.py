"""Processes that work together learn at once when one of them ends before its time.

Everyone holds a connection to the first process, which the operating system closes when its holder
ends, however that was. JAX's own service finds it out by heartbeats, a minute later, and ends the
others without a word that a user understands.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import json
import os
import socket
import sys
import threading
from typing import Any

_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # seconds; half a minute

MEETING = 300  # seconds until all must have come
ON = "the same command goes on from the last checkpoint"
_GRACE = 0.5  # seconds that the first process stays: JAX cuts short who sees it gone


class Line:
  """This process's end of the connections; made by `hub` or `spoke`."""

  def __init__(self, cleanup: Callable[[], None], grace: float = 0.0):
    self._cleanup, self._grace = cleanup, grace
    self._peers: dict[str, socket.socket] = {}
    self._leaving = threading.Lock()  # taken for good by the one who ends this process

  def watch(self, name: str, peer: socket.socket) -> None:
    """Ends this process when a peer does, unless that one has said goodbye with status 0."""
    self._peers[name] = peer
    threading.Thread(target=self._watch, args=(name, peer), daemon=True).start()

  def leave(self, status: int = 0, text: str = "") -> None:
    """Says goodbye; with another status than 0, everyone ends with it and tells the text."""
    if self._leaving.acquire(blocking=False):
      self._tell(status, text)

  def broken(self, seconds: float) -> None:
    """Waits for the news of who is gone, which ends this process, for so long at most."""
    threading.Event().wait(seconds)

  def _tell(self, status: int, text: str) -> None:
    for peer in self._peers.values():
      with contextlib.suppress(OSError):
        peer.sendall(json.dumps([status, text]).encode() + b"\n")
    if status:
      threading.Event().wait(self._grace)

  def _watch(self, name: str, peer: socket.socket) -> None:
    with contextlib.suppress(OSError), peer.makefile("rb") as lines:
      line = lines.readline()
    status, text = json.loads(line) if line else (1, f"{name} of this run was killed or lost; {ON}")
    if status and self._leaving.acquire(blocking=False):
      self._end(status, text)

  def _end(self, status: int, text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    self._tell(status, text)
    self._cleanup()
    os._exit(status)


def hub(host: str, count: int, cleanup: Callable[[], None], publish: Callable[[str], Any]) -> Line:
  """The first process's: waits until `count` others have connected.

  Args:
    host: of this process, as others call it. cleanup: before this process is ended.
    publish: tells the others the address that `spoke` takes.

  Raises:
    TimeoutError: one did not within `MEETING`.
  """
  line = Line(cleanup, _GRACE)
  family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
  dual = family == socket.AF_INET6
  with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as server:
    server.settimeout(MEETING)
    publish(f"{host}:{server.getsockname()[1]}")
    for _ in range(count):
      peer = _kept_alive(server.accept()[0])
      line.watch(f"process {int.from_bytes(peer.recv(4), 'big')}", peer)
  return line


def spoke(address: str, process: int, cleanup: Callable[[], None]) -> Line:
  """That of any other process; `address` is what the first one published."""
  host, port = address.rsplit(":", 1)
  peer = _kept_alive(socket.create_connection((host.strip("[]"), int(port))))
  peer.sendall(process.to_bytes(4, "big"))
  line = Line(cleanup)
  line.watch("process 0", peer)
  return line


def _kept_alive(peer: socket.socket) -> socket.socket:
  """Also a machine that vanished is noticed then, within half a minute."""
  peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for option, value in _KEEPALIVE.items():
    if hasattr(socket, option):
      peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
  return peer
