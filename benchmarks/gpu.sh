#!/usr/bin/env bash
# Everything that needs a GPU, in at most 8 minutes: the tests of CUDA, the time of a step and of whole runs,
# fp32 against bf16. For a machine with Python 3.12, torch, torchvision and pytest, and without a network.
#
#     make gpu-wheels; bash benchmarks/gpu.sh FOLDER     ($OUT in place of FOLDER; PYTHON: python3)
#
# Each part writes FOLDER/<part>.txt while it runs, and a line into FOLDER/summary.txt when it ends. A part
# that fails or takes too long does not stop the next one; the exit code is 1 if there was one.
set -u
out=${1:-${OUT:?give a folder for the results}}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 1
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
failed=0
: > "$out/summary.txt"

part() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS code=0 how=passed
    shift 2
    timeout --signal=INT --kill-after=5 "$limit" "$@" > "$out/$name.txt" 2>&1 < /dev/null || code=$?
    if [ "$code" -ne 0 ]; then how="FAILED ($code)" failed=1; fi
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then how="STOPPED after $limit s"; fi
    echo "$name: $how, $((SECONDS - start)) s; $(grep . "$out/$name.txt" | tail -n 1 | cut -c 1-200)" | tee -a "$out/summary.txt"
}

# The code of this checkout, with what `make gpu-wheels` left here: the wheel of the project knows its plug-ins.
install() {
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" gpu-wheels/*.whl &&
        cp -r cnsn_cli tests benchmarks pyproject.toml "$site" && cp -r architectures "$site/cnsn_cli" &&
        cd "$site" && "$python" -m cnsn_cli --version && "$python" -c "
import torch, torchvision
print(torch.cuda.get_device_name(), 'torch', torch.__version__, 'torchvision', torchvision.__version__)"
}

export PYTHONPATH=$site PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONUNBUFFERED=1
export -f install
export python site
tests=("$python" -m pytest -v -m cuda -p no:cacheprovider -W default --durations=5)  # other versions warn of more
whole=("$python" benchmarks/whole_run.py)

part install 25 bash -c install  # the seconds of all parts, and 5 more to end each, are at most 480
cd "$site" || exit 1
part tests 100 "${tests[@]}" tests/cuda --ignore=tests/cuda/test_networks.py
part fast 50 "${whole[@]}" --recipe fast --images 50000 -- --val-split 0  # a split needs scikit-learn
part paper 55 "${whole[@]}" --recipe paper --images 50000 -- --epochs 3
part step 110 bash -c 'for batch in 32 512; do "$python" benchmarks/step.py --batch $batch || exit; done'
part networks 50 "${tests[@]}" tests/cuda/test_networks.py
part precision 50 bash -c '
    for is in fp32 bf16; do
        "$python" benchmarks/whole_run.py --recipe fast --images 10000 -- --val-split 0 --precision $is || exit
    done'
echo "all: $SECONDS s" | tee -a "$out/summary.txt"
exit "$failed"
