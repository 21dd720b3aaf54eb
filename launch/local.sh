#!/usr/bin/env bash
# Runs vgjax on this machine:  bash launch/local.sh [flags of vgjax.main]
# Without --config it runs the phantom example into runs/phantom. Relative paths start at the root of the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_venv.sh
ensure_venv requirements.txt

config= workdir=
for argument in "$@"; do
  case "$argument" in
    --config | --config=*) config=given ;;
    --workdir | --workdir=*) workdir=given ;;
  esac
done
if [[ -z $config ]]; then
  if [[ -z $workdir ]]; then set -- --workdir=runs/phantom "$@"; fi
  set -- --config=configs/phantom.py "$@"
fi
exec .venv/bin/python -m vgjax.main "$@"
