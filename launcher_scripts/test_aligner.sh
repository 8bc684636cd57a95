#!/usr/bin/env bash
# The suite that runs NeMo-Aligner's own training loop with our algorithm, in an environment of its own.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/test_aligner.sh [--vllm] [PYTEST ARGUMENT]...

Installs NeMo-Aligner 0.7.0, nemo-toolkit 2.4.1 and what they need into .venv-aligner, then runs ReinforceTrainer.fit on
one, two and four gloo ranks: rollouts with tool calls, resampling, optimizer steps, validation, save, stop, resume; data,
tensor and pipeline parallelism. No GPU is needed.

  --vllm      also with rollouts from vLLM servers, which run in .venv-vllm (another version of transformers); the
              outcome of the tests with servers goes to benchmarks/results/engines/aligner_cpu.json
  -h, --help  this text
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/suite.bash"
answer_help "$@"
engines=()
arguments=()
for argument in "$@"; do
  case $argument in
    --vllm)
      engines=(--vllm-python "$root/.venv-vllm/bin/python" --engine-results benchmarks/results/engines/aligner_cpu.json)
      ;;
    *) arguments+=("$argument") ;;
  esac
done

if ((${#engines[@]})); then "$root/launcher_scripts/setup_vllm_cpu.sh"; fi
enter_environment .venv-aligner aligner.txt
"$python" -c 'import transformers; print("transformers", transformers.__version__)'
exec "$python" -m pytest -q -rs -m nemo tests/aligner \
  ${engines[@]+"${engines[@]}"} ${arguments[@]+"${arguments[@]}"}
