# What `make gpu` and `make gpu-bench` share; sourced. Both use the python3 at hand and no network.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export OUT="${OUT:-benchmarks/results}"
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
export TRITON_INTERPRET=0
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

need() { # need <distribution=module...>: in one line what is missing, and how to bring it along
    local pair missing=()
    for pair in "$@"; do has "${pair#*=}" || missing+=("${pair%=*}"); done
    [ ${#missing[@]} -eq 0 ] && return 0
    echo "== missing: ${missing[*]}. Where there is a network: python3 -m pip download" \
        "--only-binary=:all: --python-version $(python3 -c 'import platform
print(platform.python_version())') -d wheels ${missing[*]}; here: python3 -m pip install" \
        "--no-index --find-links wheels ${missing[*]}"
}

need_gpu() {
    python3 -c 'import torch; raise SystemExit(not torch.cuda.is_available())' && return 0
    echo "== this machine's python3 has no torch that sees a GPU"
    exit 1
}

build() { # in place, for this GPU alone: tests and benchmarks then find it compiled
    stage build "$1" env FUSED_SCHED_CUDA=1 TORCH_CUDA_ARCH_LIST="$(python3 -c 'import torch
print("{}.{}".format(*torch.cuda.get_device_capability()))')" \
        python3 setup.py --quiet build_ext --inplace || failed+=(build)
}

finish() { # the exit status of the whole
    if [ ${#failed[@]} -ne 0 ]; then
        echo "== failed: ${failed[*]}"
        exit 1
    fi
    echo "== no stage failed"
}
