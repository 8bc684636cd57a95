#!/usr/bin/env bash
# The tests that touch transformers, under the oldest supported version of it (4.57), in an environment of their own.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/test_transformers_4.sh [PYTEST ARGUMENT]...

Installs transformers 4.57 into .venv-transformers-4 where needed and runs every test file that touches transformers, or
the rooms built on it (models, actors, engines, data), with the arguments given.

  -h, --help  this text
HELP
}

for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
  esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv-transformers-4
"$root/launcher_scripts/setup_env.sh" --venv "$venv" \
  --with "$root/requirements/dev.txt" --with "$root/requirements/transformers-4.57.txt"
export OMP_NUM_THREADS=1
cd "$root"
files=()
while IFS= read -r file; do files+=("$file"); done < <(
  grep -rlE '\btransformers\b|nemo_axpo\.(models|actors|engines|data|world)\b' tests --include='test_*.py' | sort
)
"$venv/bin/python" -c 'import transformers; print("transformers", transformers.__version__)'
exec "$venv/bin/python" -m pytest -q -m "not slow and not gpu and not vllm and not trtllm and not nemo and not launcher and not nemo_run" "${files[@]}" "$@"
