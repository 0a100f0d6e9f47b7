#!/usr/bin/env bash
# Everything that needs a GPU, in nine minutes on a machine without a network; tests/benchmarks/device.py says what.
#
#   tests/benchmarks/device.sh [--wheels DIR] [--out DIR] [--reference DIR] [--train] [--minutes N] [--tiny]
#
# --wheels: a folder of packages that python3 there lacks or has too old; they are used in place of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
options=()
path=$PWD
while [ $# -gt 0 ]; do
  if [ "$1" = --wheels ]; then
    site=$(mktemp -d)
    python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$2"/*.whl
    path=$path:$site
    shift 2
  else
    options+=("$1")
    shift
  fi
done
PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} exec python3 tests/benchmarks/device.py ${options[@]+"${options[@]}"}
