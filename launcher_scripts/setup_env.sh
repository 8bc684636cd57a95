#!/usr/bin/env bash
# Creates or updates the Python environment of this checkout; a second call with nothing to do takes a moment.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/setup_env.sh [--venv DIR] [--device cpu|cuda] [--with FILE]...

  --venv DIR      environment to create or update (default: .venv in the checkout)
  --device KIND   cpu (default): the CPU build of torch. cuda: torch with CUDA; one that the system's Python already
                  has (as in NVIDIA's containers) is used, not replaced
  --with FILE     a further requirement file, laid over requirements/cpu.txt; may be repeated
  -h, --help      this text
HELP
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
device=cpu
extra=()
while (($#)); do
  case $1 in
    --venv) venv=${2:?--venv needs a directory}; shift 2 ;;
    --device) device=${2:?--device needs cpu or cuda}; shift 2 ;;
    --with) extra+=("${2:?--with needs a file}"); shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup_env.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done
case $device in
  cpu | cuda) ;;
  *) echo "setup_env.sh: --device must be cpu or cuda; got $device" >&2; exit 2 ;;
esac

find_python() { # the first Python that is new enough
  local candidate
  for candidate in python3 python3.11 python3.12 python3.13 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "setup_env.sh: Python 3.11 or newer is needed; got $(python3 --version 2>&1 || echo none)." >&2
  echo "Install one (apt install python3.11 python3.11-venv, brew install python@3.12, uv python install 3.12) and run again." >&2
  exit 1
}

fingerprint() { # of the files named and of what else decides the outcome
  { echo "$device $base"; cat "$@"; } | { sha256sum 2>/dev/null || shasum -a 256; } | cut -d' ' -f1
}

up_to_date() { # up_to_date NAME FILE...: whether the stamp NAME was made from the same files
  local name=$1
  shift
  [[ -f $venv/.stamps/$name && $(<"$venv/.stamps/$name") == $(fingerprint "$@") ]]
}

stamp() { # written only after success, so that a broken installation is repeated
  local name=$1
  shift
  mkdir -p "$venv/.stamps"
  fingerprint "$@" >"$venv/.stamps/$name"
}

pip_install() { # by the environment's own Python, quietly
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

has_cuda_torch() {
  "$1" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null
}

create_venv() {
  echo "creating $venv (Python $("$python" -c 'import platform; print(platform.python_version())'), torch for $device)"
  rm -rf "$venv"
  if ! "$python" -m venv "${venv_options[@]}" "$venv"; then
    echo "setup_env.sh: python -m venv failed: install the venv module of your system (apt install python3-venv)." >&2
    exit 1
  fi
}

install_torch() {
  local torch
  torch=$(grep '^torch==' "$root/requirements/cpu.txt")
  if [[ $device == cuda ]]; then
    # PyPI's Linux wheels are CUDA builds; they need their nvidia-* packages.
    [[ $base == system-torch ]] || pip_install "$torch"
  elif [[ $(uname -s) == Linux ]]; then
    # Without the local version pip would take the CUDA build of several GB.
    pip_install --no-deps --extra-index-url https://download.pytorch.org/whl/cpu "$torch+cpu"
  else
    pip_install --no-deps "$torch"
  fi
}

install_base() {
  install_torch
  # With --no-deps and exact pins nothing can replace torch.
  if [[ $base == system-torch ]]; then
    pip_install --no-deps -r <(grep -v '^torch==' "$root/requirements/cpu.txt")
  else
    pip_install --no-deps -r "$root/requirements/cpu.txt"
  fi
  pip_install --no-deps --no-build-isolation -e "$root"
}

python=$(find_python)
venv_options=()
base=own-torch
if [[ $device == cuda ]] && has_cuda_torch "$python"; then
  base=system-torch
  venv_options=(--system-site-packages)
fi
base_files=("$root/requirements/cpu.txt" "$root/setup.py" "$root/pyproject.toml")

if ! up_to_date base "${base_files[@]}" || [[ ! -x $venv/bin/python ]]; then
  start=$SECONDS
  create_venv
  install_base
  stamp base "${base_files[@]}"
  echo "installed in $((SECONDS - start)) s"
fi
for file in ${extra[@]+"${extra[@]}"}; do
  name=$(basename "$file")
  if ! up_to_date "$name" "$file"; then
    echo "installing $name"
    pip_install --no-deps -r "$file"
    stamp "$name" "$file"
  fi
done
