#!/usr/bin/env bash
# Our stage and configs under the real NeMo-Framework-Launcher: every size is composed and written as a job, none is queued.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/test_launcher.sh [--launcher DIR] [PYTEST ARGUMENT]...

Installs what the launcher imports into .venv-launcher where needed, clones the launcher at the commit that was tested
(its last one) into it, and runs every test marked launcher.

  --launcher DIR  launcher_scripts of a checkout that is already there
  -h, --help      this text
HELP
}

launcher=
arguments=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --launcher) launcher=${2:?--launcher needs a directory}; shift 2 ;;
    *) arguments+=("$1"); shift ;;
  esac
done

commit=26e42fa91d9e608897ce485b4911c263a4b57008
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv-launcher
"$root/launcher_scripts/setup_env.sh" --venv "$venv" \
  --with "$root/requirements/dev.txt" --with "$root/requirements/launcher.txt"
if [[ -z $launcher ]]; then
  source=$venv/NeMo-Framework-Launcher
  [[ -d $source ]] || git clone -q https://github.com/NVIDIA/NeMo-Framework-Launcher "$source"
  git -C "$source" checkout -q "$commit"
  launcher=$source/launcher_scripts
fi
cd "$root"
exec "$venv/bin/python" -m pytest -q -m launcher tests/launcher --launcher "$launcher" ${arguments[@]+"${arguments[@]}"}
