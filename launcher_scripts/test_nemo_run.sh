#!/usr/bin/env bash
# The NeMo-Run script with the real package: the job it would queue on Slurm, and one that runs here.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/test_nemo_run.sh [PYTEST ARGUMENT]...

Installs NeMo-Run 0.11.1 into .venv-nemo-run where needed and runs every test marked nemo_run.

  -h, --help  this text
HELP
}

for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
  esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv-nemo-run
"$root/launcher_scripts/setup_env.sh" --venv "$venv" \
  --with "$root/requirements/dev.txt" --with "$root/requirements/nemo_run.txt"
cd "$root"
exec "$venv/bin/python" -m pytest -q -m nemo_run tests/launcher "$@"
