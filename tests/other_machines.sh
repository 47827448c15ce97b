#!/usr/bin/env bash
# Runs the suite under settings that stand for other machines: instruction sets, numbers of threads, weights read instead of mapped.
#
#   tests/other_machines.sh                              all settings, the whole suite for each
#   tests/other_machines.sh -m "not slow"                pytest's arguments
#   SETTINGS="OMP_NUM_THREADS=4" tests/other_machines.sh        some of them, separated by spaces
#
# Prints pytest's last line for each setting, and where its whole output is. Ends with 1 if one of them failed.
set -uo pipefail
cd "$(dirname "$0")/.."
settings=${SETTINGS:-"ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1
OMP_NUM_THREADS=4 HF_AVFUSION_TEST_MMAP=1 HF_AVFUSION_TEST_MMAP=0"}
logs=$(mktemp -d)
failed=0
for setting in $settings; do
    env "$setting" python -m pytest -q "$@" >"$logs/$setting.txt" 2>&1 || failed=1
    echo "$setting: $(tail -n 1 "$logs/$setting.txt") ($logs/$setting.txt)"
done
exit $failed
