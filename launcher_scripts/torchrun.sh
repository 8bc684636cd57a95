#!/usr/bin/env bash
# A trainer on several nodes without a queue: run the same line on every node, with its own --node-rank.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/torchrun.sh --nodes N --node-rank I --gpus G --address HOST [--port P] -- COMMAND...

  --nodes N      nodes of the trainer
  --node-rank I  number of this node, from 0
  --gpus G       ranks of each node
  --address H    host of node 0, as the others reach it
  --port P       default: 29500
  -h, --help     this text

COMMAND is one of nemo-axpo: train --config-name recipes/axpo_8b model.path=... 'engine.servers=[http://host:8000]'.
A run is stopped in time by job.max_time: torchrun passes no signal on to its ranks.
HELP
}

nodes='' node_rank='' gpus='' address='' port=29500
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --nodes | --node-rank | --gpus | --address | --port)
      if (($# < 2)); then echo "torchrun.sh: $1 needs a value (see --help)" >&2; exit 2; fi
      name=${1#--}
      if [[ $name != address && ! $2 =~ ^[0-9]+$ ]]; then
        echo "torchrun.sh: $1 must be a number; got $2 (see --help)" >&2
        exit 2
      fi
      declare "${name/-/_}=$2"
      shift 2 ;;
    --) shift; break ;;
    *) echo "torchrun.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done
if [[ -z $nodes || -z $node_rank || -z $gpus || -z $address ]] || (($# == 0)); then
  echo "torchrun.sh: --nodes, --node-rank, --gpus, --address and a command are needed (see --help)" >&2
  exit 2
fi
if ((node_rank >= nodes)); then
  echo "torchrun.sh: --node-rank must lie below --nodes; got $node_rank of $nodes: nodes are counted from 0" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3
exec "$python" -m torch.distributed.run --nnodes "$nodes" --node-rank "$node_rank" --nproc-per-node "$gpus" \
  --master-addr "$address" --master-port "$port" -m nemo_axpo.cli "$@"
