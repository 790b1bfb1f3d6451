#!/usr/bin/env bash
# make gpu: the build, doctor, and the tests that need a GPU. Every stage runs whatever the one before
# did; the exit status is 1 if any of them failed. Logs and junit xml go to $OUT, six files. The limits
# and the kills sum to 530 s.
source "$(dirname "$0")/stages.sh"
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # some plugins of others warn or slow down at import
export OMP_NUM_THREADS=1                # the processes of the tests are as many as cores

need_gpu
need pytest=pytest pytest-xdist=xdist hypothesis=hypothesis setuptools=setuptools

build 100
stage doctor 90 python3 -m fused_sched doctor || failed+=(doctor) # its first step compiles

# Several processes: a kernel that breaks its CUDA context takes no other test along, and Triton
# compiles on every core. A test that hangs ends its process, not the run.
options=(-q -p no:cacheprovider --confcutdir=tests/gpu -o filterwarnings=default -rfE
    -o faulthandler_timeout=100 -p tests.gpu.junit)
if has pytest_timeout; then options+=(-p pytest_timeout --timeout=120 --timeout-method=thread); fi
many=()
if has xdist; then many=(-p xdist.plugin -n 12); fi
stage tests 260 python3 -m pytest "${options[@]}" "${many[@]}" -m "not alone" --durations=15 \
    "--junit-as-it-goes=$OUT/tests.xml" tests/gpu || failed+=(tests)
stage tests-alone 60 python3 -m pytest "${options[@]}" -m alone \
    "--junit-as-it-goes=$OUT/tests-alone.xml" tests/gpu || failed+=(tests-alone)

finish
