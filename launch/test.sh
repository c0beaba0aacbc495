#!/usr/bin/env bash
# Runs the tests on the CPU, in .venv with the test extras. Arguments go to pytest: `-m slow`,
# `tests/test_losses.py`, ...; figures of speed need `-n 0 -s`: one process, which prints. The eight
# fake devices are made by tests/conftest.py.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ensure test
cd "$root"
JAX_PLATFORMS=cpu exec "$venv/bin/python" -m pytest -n auto --maxprocesses 8 --dist loadfile "$@"
