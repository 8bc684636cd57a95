#!/usr/bin/env bash
# The engine contract against a real trtllm-serve: first the checkpoint that it must serve, then the suite.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/test_trtllm.sh --write DIR
       launcher_scripts/test_trtllm.sh --server URL [--tolerance X] [--device cpu|cuda] [PYTEST ARGUMENT]...

Says whether a version of TensorRT-LLM may be used for training. On the host of the server:

  launcher_scripts/test_trtllm.sh --write /tmp/contract      a tiny Qwen3-VL with tokenizer and image processor
  trtllm-serve /tmp/contract --port 8000 ...                 from your own installation, on AsyncLLM (RL endpoints)
  launcher_scripts/test_trtllm.sh --server http://localhost:8000

  --write DIR      writes the checkpoint to serve
  --server URL     runs the contract against this server; weights are handed over on the GPUs that both see
  --tolerance X    largest difference of log-probs in nats; default 0.1, for bfloat16
  --device KIND    the build of torch in .venv, which is installed where needed; default cuda
  -h, --help       this text

The outcome goes to benchmarks/results/engines/trtllm_server.json, from which docs/engine_status.md is made
(python benchmarks/engine_status.py).
HELP
}

source "$(dirname "${BASH_SOURCE[0]}")/suite.bash"
answer_help "$@"
write= server= tolerance=0.1 device=cuda
arguments=()
while (($#)); do
  case $1 in
    --write | --server | --tolerance | --device)
      if (($# < 2)); then echo "$1 needs a value (see --help)" >&2; exit 2; fi
      declare "${1#--}=$2"
      shift 2
      ;;
    *) arguments+=("$1"); shift ;;
  esac
done
if [[ -z $write && -z $server ]]; then echo "give --write DIR or --server URL (see --help)" >&2; exit 2; fi

enter_environment .venv
if [[ -n $write ]]; then
  exec "$python" tests/contracts/served_checkpoint.py "$write"
fi
exec "$python" -m pytest -q -m trtllm tests/contracts/test_trtllm_server.py --server "$server" \
  --tolerance "$tolerance" --engine-results benchmarks/results/engines/trtllm_server.json ${arguments[@]+"${arguments[@]}"}
