#!/usr/bin/env bash
# make gpu-bench: memcheck, then the benchmarks, those that tell most first, after a build where
# `make gpu` has made none here. $OUT gets a log of each stage, and after each stage all results so
# far in one results.tar.gz; a benchmark writes its files model by model, so that one that is stopped
# leaves what it has. All of it ends within 540 s.
source "$(dirname "$0")/../tests/gpu/stages.sh"

END=525 # a kill takes up to 5 s, the archives less than 10
RESULTS=$(mktemp -d)
trap 'rm -rf "$RESULTS"' EXIT

need_gpu
need numpy=numpy matplotlib=matplotlib setuptools=setuptools

python3 -c 'from fused_sched.engines import native_library
raise SystemExit("not compiled" in native_library.described())' || build 100

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

bench() { # bench <seconds> <module> <option...>: one benchmark, in what time is left
    local seconds=$1 module=$2 left=$((END - SECONDS))
    shift 2
    if [ "$left" -lt 10 ]; then
        echo "== bench-$module $*: NOT RUN, no time left"
        failed+=("bench-$module")
        return
    fi
    stage bench $((seconds < left ? seconds : left)) \
        python3 -m "benchmarks.$module" --quick --out "$RESULTS" "$@" || failed+=("bench-$module")
    cat "$OUT/bench.log" >>"$RESULTS/log.txt"
    tar -czf "$OUT/results.tar.gz" -C "$RESULTS" .
}
bench 130 step --models gpt2 resnet50 28groups 10000x64 mlp 1000x1000 10x64 64M
bench 60 graph
bench 70 step --dtype bfloat16 --models gpt2 resnet50 28groups 10000x64 mlp 1000x1000 10x64 64M
bench 50 cases
bench 60 step --optimizer SGD
bench 20 rows
bench 30 schedule
bench 30 host
bench 30 scaling

finish
