#!/usr/bin/env bash
# Starts `python -m medjax.export.converting "$@"` in .venv-onnx, which the first start makes: what
# converts to ONNX wants other versions than medjax. `python -m medjax.export --onnx` calls this.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
venv=$root/.venv-onnx
log=$venv/install.log

ensure onnx
JAX_PLATFORMS=cpu exec "$venv/bin/python" -m medjax.export.converting "$@"
