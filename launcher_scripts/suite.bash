# Sourced by the test scripts, after they define `usage`: where the checkout is, --help, and the environment of a suite.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# What the default suite leaves out: it needs time, a device or a package of its own.
default_markers="not slow and not gpu and not vllm and not trtllm and not nemo and not launcher and not nemo_run"

answer_help() { # answer_help ARGUMENT...: prints the usage and ends the script where -h or --help is among them
  local argument
  for argument in "$@"; do
    case $argument in
      -h | --help) usage; exit 0 ;;
    esac
  done
}

enter_environment() { # enter_environment DIRECTORY [FILE...]: installs, with files of requirements/, and sets $venv and $python
  local with=(--with "$root/requirements/dev.txt") file
  venv=$root/$1 python=$root/$1/bin/python
  shift
  for file in "$@"; do with+=(--with "$root/requirements/$file"); done
  "$root/launcher_scripts/setup_env.sh" --venv "$venv" --device "${device:-cpu}" "${with[@]}"
  enter_checkout
}

enter_checkout() {
  # One thread: more of them spin against each other on small tensors and change the last bits of sums.
  export OMP_NUM_THREADS=1
  cd "$root"
}
