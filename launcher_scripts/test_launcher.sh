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

source "$(dirname "${BASH_SOURCE[0]}")/suite.bash"
answer_help "$@"
launcher=
arguments=()
while (($#)); do
  case $1 in
    --launcher) launcher=${2:?--launcher needs a directory}; shift 2 ;;
    *) arguments+=("$1"); shift ;;
  esac
done

commit=26e42fa91d9e608897ce485b4911c263a4b57008
enter_environment .venv-launcher launcher.txt
if [[ -z $launcher ]]; then
  source=$venv/NeMo-Framework-Launcher
  [[ -d $source ]] || git clone -q https://github.com/NVIDIA/NeMo-Framework-Launcher "$source"
  git -C "$source" checkout -q "$commit"
  launcher=$source/launcher_scripts
fi
exec "$python" -m pytest -q -m launcher tests/launcher --launcher "$launcher" ${arguments[@]+"${arguments[@]}"}
