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

source "$(dirname "${BASH_SOURCE[0]}")/suite.bash"
answer_help "$@"
"$root/launcher_scripts/setup_vllm_cpu.sh"
enter_checkout
exec .venv-vllm/bin/python -m pytest -q -m vllm tests/contracts tests/e2e \
  --engine-results benchmarks/results/engines/vllm_cpu.json "$@"
