#!/usr/bin/env bash
# The suite that runs NeMo-Aligner's own training loop with our algorithm, in an environment of its own.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/test_aligner.sh [PYTEST ARGUMENT]...

Installs NeMo-Aligner 0.7.0, nemo-toolkit 2.4.1 and what they need into .venv-aligner, then runs ReinforceTrainer.fit on two
gloo ranks: rollouts with tool calls, resampling, optimizer steps, validation, save, load. No GPU is needed.

  -h, --help  this text
HELP
}

for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
  esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv-aligner
"$root/launcher_scripts/setup_env.sh" --venv "$venv" \
  --with "$root/requirements/dev.txt" --with "$root/requirements/aligner.txt"
export OMP_NUM_THREADS=1
cd "$root"
"$venv/bin/python" -c 'import transformers; print("transformers", transformers.__version__)'
exec "$venv/bin/python" -m pytest -q -m nemo tests/aligner "$@"
