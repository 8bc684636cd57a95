#!/usr/bin/env bash
# Queues the whole study on a Slurm cluster: for every size the warm start, then GRPO and AXPO from it, then the nine benchmarks
# of all three, and at the end Pass@1 and Pass@4 against size in one table and figure. Slurm's dependencies keep the order.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/scaling.sh --cluster FILE --models DIR --results DIR [--sizes "2b 4b 8b 32b"] [--dry-run]
                                   [-- SETTING...]

  --cluster FILE   a file like conf/cluster/slurm.yaml, filled in
  --models DIR     holds Qwen3-VL-2B-Thinking, Qwen3-VL-4B-Thinking, ...
  --results DIR    where every run gets a directory; on a file system of all nodes
  --sizes LIST     default: all four
  --dry-run        print the commands; queue nothing
  -h, --help       this text

Settings after -- go to every training job (e.g. precision=fp8_blockwise). Trajectories of the warm start are those of
`nemo-axpo distill` in outputs/distill unless a setting says otherwise. A job that fails keeps those behind it waiting;
start it again with the same command, and everything that is done is skipped or resumed.
HELP
}

cluster='' models='' results='' sizes="2b 4b 8b 32b" is_dry=0
settings=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) is_dry=1; shift ;;
    --cluster | --models | --results | --sizes)
      if (($# < 2)); then echo "scaling.sh: $1 needs a value (see --help)" >&2; exit 2; fi
      declare "${1#--}=$2"
      shift 2 ;;
    --) shift; settings=("$@"); break ;;
    *) echo "scaling.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done
for name in cluster models results; do
  if [[ -z ${!name} ]]; then echo "scaling.sh: --$name is needed (see --help)" >&2; exit 2; fi
done
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${root}/.venv/bin/python
[[ -x $python ]] || python=python3

submit() { # submit DEPENDENCY WORD...: queues `nemo-axpo WORD...` and prints the job's number
  local after=$1 number=0
  shift
  local command=(submit --cluster "$cluster")
  [[ -z $after ]] || command+=(--dependency "$after")
  command+=(-- "$@")
  if ((is_dry)); then
    # A made-up number, the same for the same job, so that the dependencies can be read.
    number=$(cksum <<<"$*" | cut -c1-6)
    printf 'nemo-axpo %s   # job %s\n' "${command[*]}" "$number" >&2
    echo "$number"
  else
    (cd "$root" && "$python" -m nemo_axpo.cli "${command[@]}")
  fi
}

evaluations=() directories=()
evaluate() { # evaluate DEPENDENCY SIZE LABEL NAME CHECKPOINT
  local directory=$results/eval/$4
  directories+=("$directory")
  evaluations+=("$(submit "$1" eval --config-name "recipes/eval_$2" --checkpoint "$5" --benchmark all \
    --label "${2^^} $3" --output-dir "$directory")")
}

for size in $sizes; do
  base=$models/Qwen3-VL-${size^^}-Thinking
  sft=$(submit '' sft --config-name "recipes/sft_$size" --output-dir "$results/sft_$size" "model.path=$base" \
    ${settings[@]+"${settings[@]}"})
  evaluate '' "$size" Base "base_$size" "$base"
  evaluate "afterok:$sft" "$size" SFT "sft_$size" "$results/sft_$size/hf"
  for algorithm in grpo axpo; do
    run=$results/${algorithm}_$size
    trained=$(submit "afterok:$sft" train --config-name "recipes/${algorithm}_$size" --output-dir "$run" \
      "model.path=$results/sft_$size/hf" ${settings[@]+"${settings[@]}"})
    evaluate "afterok:$trained" "$size" "SFT+${algorithm^^}" "${algorithm}_$size" "$run/hf"
  done
done

after=$(IFS=:; echo "afterok:${evaluations[*]}")
table=(nemo-axpo table "${directories[@]}" --output "$results/table")
if ((is_dry)); then
  echo "sbatch --dependency=$after --wrap '${table[*]}'" >&2
else
  sbatch --parsable --dependency="$after" --job-name=table --output="$results/table.%j.log" \
    --wrap "cd '$root' && '$python' -m nemo_axpo.cli ${table[*]:1}"
fi
