#!/usr/bin/env bash
# The default test suite: installs into .venv where needed, checks the style, and runs pytest, whose line comes last.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/test.sh [PYTEST ARGUMENT]...

Installs into .venv where needed, checks the style with ruff, then runs pytest with the arguments given. Tests marked
slow, gpu, vllm, trtllm, nemo, launcher or nemo_run are left out unless a marker expression of your own (-m) asks for them.

  launcher_scripts/test.sh                     the default suite
  launcher_scripts/test.sh -m slow             the slow tests
  launcher_scripts/test.sh tests/unit -k axpo  some of them
  -h, --help                                   this text
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/suite.bash"
answer_help "$@"
selection=(-m "$default_markers")
for argument in "$@"; do
  [[ $argument != -m* ]] || selection=()
done

enter_environment .venv
style=0
.venv/bin/ruff check --output-format concise . || style=$?
"$python" -m pytest -q ${selection[@]+"${selection[@]}"} "$@"
exit "$style"
