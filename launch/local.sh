#!/usr/bin/env bash
# Starts `python -m medjax.main "$@"` here, in .venv, which the first start makes: with CUDA where a
# GPU is found and JAX_PLATFORMS=cpu does not forbid it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if has_gpu; then ensure cuda; else ensure run; fi
exec "$venv/bin/python" -m medjax.main "$@"
