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

source "$(dirname "${BASH_SOURCE[0]}")/suite.bash"
answer_help "$@"
enter_environment .venv-nemo-run nemo_run.txt
exec "$python" -m pytest -q -m nemo_run tests/launcher "$@"
