#!/usr/bin/env bash
# Lint, format, types, tests:  bash launch/test.sh [flags of pytest], e.g. -m slow, or tests/test_house.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_venv.sh
ensure_venv requirements-dev.txt

.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
# Two processes: tests mostly compile, on one core each; a file's tests share what its first one makes.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
