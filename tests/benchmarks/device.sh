#!/usr/bin/env bash
# Everything that needs a GPU, in nine minutes on a machine without a network; tests/benchmarks/device.py says what.
#
#   tests/benchmarks/device.sh [--wheels DIR] [--out DIR] [--reference DIR] [--train] [--minutes N] [--tiny]
#
# --wheels: a folder of packages to install first.
set -euo pipefail
cd "$(dirname "$0")/../.."
options=()
while [ $# -gt 0 ]; do
  if [ "$1" = --wheels ]; then
    python -m pip install --quiet --no-index --no-deps "$2"/*.whl
    shift 2
  else
    options+=("$1")
    shift
  fi
done
PYTHONPATH=$PWD exec python tests/benchmarks/device.py "${options[@]}"
