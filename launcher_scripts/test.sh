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

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
selection=(-m "not slow and not gpu and not vllm and not trtllm and not nemo and not launcher and not nemo_run")
for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
    -m*) selection=() ;;
  esac
done

"$root/launcher_scripts/setup_env.sh" --with "$root/requirements/dev.txt"
# One thread: more of them spin against each other on small tensors and change the last bits of sums.
export OMP_NUM_THREADS=1
cd "$root"
style=0
.venv/bin/ruff check --output-format concise . || style=$?
.venv/bin/python -m pytest -q ${selection[@]+"${selection[@]}"} "$@"
exit "$style"
