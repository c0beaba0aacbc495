#!/usr/bin/env bash
# Starts `python -m medjax.export.converting "$@"` in .venv-onnx, which the first start makes: what
# converts to ONNX wants other versions than medjax. `python -m medjax.export --onnx` calls this.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
venv=$root/.venv-onnx
log=$venv/install.log

ensure onnx
export JAX_PLATFORMS=cpu
# Constants are computed operation by operation; most are the same from network to network.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-$HOME/.cache/medjax/xla-onnx}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
exec "$venv/bin/python" -m medjax.export.converting "$@"
