#!/usr/bin/env bash
# Everything that needs a GPU, with the python3 at hand: tests, memcheck, benchmark.
# Every stage runs whatever the one before did; the exit status is 1 if any of them failed.
# Logs, junit xml and results go to $OUT. The limits sum to 510 s, 525 s with the kills.
set -uo pipefail
cd "$(dirname "$0")/../.."

export OUT="${OUT:-benchmarks/results}"
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
export TRITON_INTERPRET=0
mkdir -p "$OUT"
failed=()

stage() { # stage <name> <seconds> <command...>: run it, log it, return its status
    local name=$1 seconds=$2 status
    shift 2
    echo "== $name: at most $seconds s"
    timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$OUT/$name.log"
    status=${PIPESTATUS[0]}
    echo "== $name: exit status $status" | tee -a "$OUT/$name.log"
    return "$status"
}

stage tests 240 python3 -m pytest -q -p no:cacheprovider --junitxml="$OUT/tests.xml" tests/gpu \
    || failed+=(tests)

if command -v compute-sanitizer >/dev/null; then
    # Without torch's caching allocator each tensor is its own allocation, so that an access
    # past a tensor's end is an access past an allocation's.
    stage memcheck 100 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        compute-sanitizer --tool memcheck --error-exitcode 1 python3 -m tests.gpu.sanitize
    if [ $? -ne 0 ]; then
        # Some virtual machines give the tool no access to the device: no finding about our code.
        if grep -q "Device not supported" "$OUT/memcheck.log"; then
            echo "== memcheck: NOT RUN, compute-sanitizer does not support this device"
        else
            failed+=(memcheck)
        fi
    fi
else
    echo "== memcheck: NOT RUN, compute-sanitizer is not on PATH"
fi

stage benchmark 170 python3 -m benchmarks.step --out "$OUT" || failed+=(benchmark)

if [ ${#failed[@]} -ne 0 ]; then
    echo "== failed: ${failed[*]}"
    exit 1
fi
echo "== no stage failed"
