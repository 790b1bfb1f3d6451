#!/usr/bin/env bash
# The suite on the CPU engine, built with AddressSanitizer and UndefinedBehaviorSanitizer.
#   tests/sanitize.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?expected the Python to run}
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
export FUSED_SCHED_CXXFLAGS="$flags -fno-omit-frame-pointer -O1 -g1"
find_library='from fused_sched.engines import native_build; print(native_build.library())'
library=$("$python" -c "$find_library")
# Captured first: under pipefail grep -q would break nm's pipe.
symbols=$(nm -D "$library")
grep -q __asan_report_load <<<"$symbols" || { echo "$library is not instrumented" >&2; exit 1; }
# The runtimes come first, and libstdc++ before torch throws its first exception. What Python and
# torch keep until the end is not ours to free.
for name in asan ubsan stdc++; do
  LD_PRELOAD="${LD_PRELOAD:-} $("${CXX:-g++}" -print-file-name="lib$name.so")"
done
export LD_PRELOAD ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2
"$python" -m pytest -q -n 2 -p no:cacheprovider tests -k "native or cached" \
  --deselect tests/test_native.py::test_every_variant_computes_the_same \
  --ignore tests/gpu --ignore tests/test_contributing.py --ignore tests/test_cuda_build.py
