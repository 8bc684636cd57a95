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

source "$(dirname "${BASH_SOURCE[0]}")/suite.bash"
answer_help "$@"
enter_environment .venv-transformers-4 transformers-4.57.txt
files=()
while IFS= read -r file; do files+=("$file"); done < <(
  grep -rlE '\btransformers\b|nemo_axpo\.(models|actors|engines|data|world)\b' tests --include='test_*.py' | sort
)
"$python" -c 'import transformers; print("transformers", transformers.__version__)'
exec "$python" -m pytest -q -m "$default_markers" "${files[@]}" "$@"
