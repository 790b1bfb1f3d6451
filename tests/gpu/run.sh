#!/usr/bin/env bash
# Everything that needs a GPU, with the python3 at hand: the build, doctor, tests, memcheck, benchmarks.
# Every stage runs whatever the one before did; the exit status is 1 if any of them failed.
# Logs, junit xml and results go to $OUT. All of it ends within 590 s: the limits before the benchmarks
# sum to 400 s, 420 s with the kills, and the benchmarks get what is left.
set -uo pipefail
cd "$(dirname "$0")/../.."

export OUT="${OUT:-benchmarks/results}"
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
export TRITON_INTERPRET=0
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # some plugins of others warn or slow down at import
mkdir -p "$OUT"
failed=()

stage() { # stage <name> <seconds> <command...>: run it, log it, return its status
    local name=$1 seconds=$2 status begun=$SECONDS
    shift 2
    echo "== $name: at most $seconds s"
    timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$OUT/$name.log"
    status=${PIPESTATUS[0]}
    echo "== $name: exit status $status after $((SECONDS - begun)) s" | tee -a "$OUT/$name.log"
    return "$status"
}

has() { python3 -c "import $1" 2>/dev/null; }

if ! python3 -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
    echo "== this machine's python3 has no torch that sees a GPU"
    exit 1
fi

# In place, for this GPU alone: the benchmark and the tests then find it compiled.
stage build 60 env FUSED_SCHED_CUDA=1 TORCH_CUDA_ARCH_LIST="$(python3 -c 'import torch
print("{}.{}".format(*torch.cuda.get_device_capability()))')" \
    python3 setup.py --quiet build_ext --inplace || failed+=(build)

stage doctor 30 python3 -m fused_sched doctor || failed+=(doctor)

# Several processes: a kernel that breaks its CUDA context takes no other test along, and Triton
# compiles on every core. A test that hangs ends its process, not the run.
options=(-q -p no:cacheprovider --confcutdir=tests/gpu -o filterwarnings=default -rfE
    -o faulthandler_timeout=100 --durations=15 "--junitxml=$OUT/tests.xml")
if has xdist; then options+=(-p xdist.plugin -n 12); fi
if has pytest_timeout; then options+=(-p pytest_timeout --timeout=120 --timeout-method=thread); fi
stage tests 240 python3 -m pytest "${options[@]}" tests/gpu || failed+=(tests)

if command -v compute-sanitizer >/dev/null; then
    # Without torch's caching allocator each tensor is its own allocation, so that an access
    # past a tensor's end is an access past an allocation's. Calls that torch lets fail are none
    # of our business, nor are the compilers that Triton starts.
    stage memcheck 70 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        compute-sanitizer --tool memcheck --error-exitcode 1 --report-api-errors no \
        --target-processes application-only python3 -m tests.gpu.sanitize
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

bench() { # bench <seconds> <module> <option...>: one benchmark; what it has measured, it keeps
    local seconds=$1 module=$2 left=$((585 - SECONDS))
    shift 2
    stage "bench-$module" $((seconds < left ? seconds : left > 0 ? left : 1)) \
        python3 -m "benchmarks.$module" --out "$OUT" "$@" || failed+=("bench-$module")
}
bench 60 step --quick
bench 45 graph --quick
bench 30 host --quick
bench 30 schedule --quick
bench 20 scaling --quick

if [ ${#failed[@]} -ne 0 ]; then
    echo "== failed: ${failed[*]}"
    exit 1
fi
echo "== no stage failed"
