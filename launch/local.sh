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
# On a CPU: large pages spare the page faults of every step's fresh buffers (about a seventh of its time), and two
# devices keep two cores busy where one computation at a time does not (a further quarter); where other work holds the
# cores up, one device may wait long for the other before XLA gives up. What is set already stays.
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"
export XLA_FLAGS="${XLA_FLAGS---xla_force_host_platform_device_count=2\
 --xla_cpu_collective_call_warn_stuck_timeout_seconds=60\
 --xla_cpu_collective_call_terminate_timeout_seconds=600}"
exec .venv/bin/python -m vgjax.main "$@"
