#!/usr/bin/env bash
# nemo-axpo import against checkpoints that the real Megatron-Bridge writes here, on the CPU.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/test_megatron_bridge.sh [PYTEST ARGUMENT]...

Installs Megatron-Bridge 0.3.1 into .venv-megatron-bridge where needed and runs every test marked megatron_bridge. Transformer
Engine, which needs CUDA, is replaced by tests/megatron_bridge/doubles.

  -h, --help  this text
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/suite.bash"
answer_help "$@"
enter_environment .venv-megatron-bridge transformers-4.57.txt megatron_bridge.txt
exec "$python" -m pytest -q -m megatron_bridge tests/megatron_bridge "$@"
