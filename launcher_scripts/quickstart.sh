#!/usr/bin/env bash
# One command from a clone to the picture: a tiny Qwen3-VL learns to use a tool with AXPO, beside GRPO.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/quickstart.sh [--smoke] [--seed N] [--output-dir DIR] [--device cpu|cuda] [--tp N]

Installs into .venv where needed, then runs the warm start, GRPO and AXPO and writes report.html.

  --smoke           the whole path in about a minute: shows that it works, not what it learns
  --seed N          root of all randomness (default: 0)
  --output-dir DIR  where everything goes (default: outputs/quickstart, or outputs/smoke)
  --device KIND     cpu (default) or cuda
  --tp N            tensor-parallel ranks that share the model of each run (default: 1)
  -h, --help        this text
HELP
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
device=cpu
arguments=("$@")
while (($#)); do
  case $1 in
    --smoke) shift ;;
    --seed | --output-dir | --device | --tp)
      if (($# < 2)); then echo "quickstart.sh: $1 needs a value (see --help)" >&2; exit 2; fi
      [[ $1 == --device ]] && device=$2
      shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done

"$root/launcher_scripts/setup_env.sh" --device "$device"
# One thread a process: the model is tiny, and two runs go side by side.
export OMP_NUM_THREADS=1
exec "$root/.venv/bin/nemo-axpo" quickstart ${arguments[@]+"${arguments[@]}"}
