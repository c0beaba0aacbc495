#!/usr/bin/env bash
# Runs a comparison with other libraries in an environment of its own, tests/peers/.venv:
#
#   ./tests/peers/run.sh bench.py --rows training --networks quadsnet_exact
#
# The environment holds what the tests run with, JAX for CUDA where --device gpu asks for it, and on
# top of that requirements.txt. A start that finds all of it unchanged installs nothing.
set -euo pipefail
peers=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
source "$peers/../../launch/environment.sh"

venv=$peers/.venv
log=$venv/install.log
has_uv() { false; } # it passes over the builds that pip is told of

[[ $# -gt 0 ]] || fail "say which script, for example: $0 bench.py --quick"
on_gpu() { [[ " $* " =~ \ --device[=\ ]gpu\  ]]; }
if on_gpu "$@" && ! has_gpu; then
  fail "--device gpu: there is no NVIDIA GPU here, or JAX_PLATFORMS=cpu forbids it"
fi
ensure test
if on_gpu "$@"; then ensure cuda; fi
if ! cmp -s "$peers/requirements.txt" "$venv/requirements.txt"; then
  say "installing tests/peers/requirements.txt"
  # Under the test lock's versions: a peer that wants others must not move JAX.
  sed -E '/^ *--hash/d; s/ *\\$//' "$root/launch/locks/test.txt" >"$venv/constraints.txt"
  logged "$venv/bin/python" -m pip install --no-input -c "$venv/constraints.txt" \
    -r "$peers/requirements.txt"
  cp "$peers/requirements.txt" "$venv/requirements.txt"
fi
script=$peers/$1
shift
exec "$venv/bin/python" "$script" "$@"
