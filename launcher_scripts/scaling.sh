#!/usr/bin/env bash
# Queues the whole study on a Slurm cluster, or the rest of it: `nemo-axpo study` of this checkout.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/scaling.sh --cluster FILE --models DIR --results DIR [OPTION]... [-- SETTING...]

For every size the warm start, then GRPO and AXPO from it, then the nine benchmarks of base and all three, and at the end
Pass@1 and Pass@4 against size in one table and figure. Slurm's dependencies keep the order.

  --cluster FILE         a file like conf/cluster/slurm.yaml, filled in
  --set KEY=VALUE        changes the cluster's file; may be repeated
  --models DIR           holds Qwen3-VL-2B-Thinking, Qwen3-VL-4B-Thinking, ...
  --results DIR          where every run gets a directory; on a file system of all nodes
  --sizes LIST           default: "2b 4b 8b 32b"
  --benchmark NAME=PATH  where the data of one of the nine lie (vstar and visual_probe_hard need it); may be repeated
  --dry-run              say what would be queued; write and queue nothing
  -h, --help             this text

Settings after -- go to every training job (e.g. precision=fp8_blockwise). Trajectories of the warm start are those of
`nemo-axpo distill` in outputs/distill unless a setting says otherwise.

Call it again at any time with the same words: what is finished is left alone, what is in the queue is not queued again, and
what was cut off goes on. A job that fails takes the jobs that wait for it out of the queue; the next call queues them.
HELP
}

for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
    --) break ;;
  esac
done
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m nemo_axpo.cli study "$@"
