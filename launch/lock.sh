#!/usr/bin/env bash
# Resolves pyproject.toml, or a NAME.in there, into launch/locks/NAME.txt, for every Python from 3.11
# on. Needs uv.
# Versions that stand there stay where they still fit; `./launch/lock.sh --upgrade` takes the newest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock() {
  local name=$1 needs=pyproject.toml
  shift
  if [[ -f launch/locks/$name.in ]]; then needs=launch/locks/$name.in; fi
  uv pip compile "$needs" --quiet --python-version 3.11 --universal --generate-hashes --group build \
    --no-annotate --no-emit-index-url --no-emit-find-links \
    --custom-compile-command ./launch/lock.sh -o "launch/locks/$name.txt" "$@"
}

lock run "$@"
lock cuda --extra cuda -c launch/locks/run.txt "$@"
lock test --extra test -c launch/locks/run.txt "$@"
lock beam --extra beam "$@"  # its pins are its own
lock onnx "$@"                # likewise, by launch/locks/onnx.in
