#!/usr/bin/env bash
# From questions to a table in one command, on the embedded world: every stage is a command of its own (docs/pipeline.md).
set -euo pipefail

usage() {
  cat <<'HELP'
usage: launcher_scripts/pipeline.sh --tiny [--smoke] [--output-dir DIR] [--seed N] [--python FILE]

questions → distill (a scripted teacher) → sft → filter → AXPO → evaluation → table, on questions of the embedded world.
An interrupted call is continued by the next one.

  --tiny            the embedded world and its tiny model; other data and models: docs/pipeline.md
  --smoke           far fewer questions and steps: shows that every stage works, not what it learns
  --output-dir DIR  where everything goes (default: outputs/pipeline, or outputs/pipeline_smoke)
  --seed N          root of all randomness (default: 0)
  --python FILE     a Python that has nemo_axpo (default: install into .venv where needed)
  -h, --help        this text
HELP
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tiny=false smoke=false out="" seed=0 python=""
while (($#)); do
  case $1 in
    --tiny) tiny=true; shift ;;
    --smoke) smoke=true; shift ;;
    --output-dir | --seed | --python)
      if (($# < 2)); then echo "pipeline.sh: $1 needs a value (see --help)" >&2; exit 2; fi
      case $1 in --output-dir) out=$2 ;; --seed) seed=$2 ;; --python) python=$2 ;; esac
      shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "pipeline.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done
if [[ $tiny != true ]]; then
  echo "pipeline.sh: only --tiny is one command; for other data and models run its stages (docs/pipeline.md)" >&2
  exit 2
fi

if [[ -z $python ]]; then
  "$root/launcher_scripts/setup_env.sh"
  python=$root/.venv/bin/python
fi
# One thread: the model is tiny.
export OMP_NUM_THREADS=1

number=4000 held_out=300 epochs=4 rl_questions=1000 steps=20 every=10 questions_per_step=32 rollouts=8 concurrent=64
name=pipeline
if [[ $smoke == true ]]; then
  number=24 held_out=6 epochs=1 rl_questions=8 steps=2 every=1 questions_per_step=4 rollouts=4 concurrent=8
  name=pipeline_smoke
fi
out=${out:-outputs/$name}

axpo() { "$python" -m nemo_axpo.cli "$@"; }
stage() { # stage TITLE FILE COMMAND...: runs the command unless FILE says that it is done
  local title=$1 file=$2
  shift 2
  if [[ -e $file ]]; then echo "== $title: done before"; return; fi
  echo "== $title"
  local start=$SECONDS
  "$@"
  echo "== $title took $((SECONDS - start)) s"
}

data=(data=files "data.files=[{path: $out/questions/questions.jsonl}]"
      "data.eval_files=[{path: $out/held_out/questions.jsonl}]" "data.cache_dir=$out/cache" "seed=$seed")
teacher=(distill.teacher=scripted distill.num_rollouts=4 distill.tool_share=0.25 distill.num_concurrent=$concurrent
         world.tool_rate=0.4 world.aim_rate=0.4)

write_questions() {
  axpo world-questions --output "$out/held_out" --number "$held_out" --stream held_out "seed=$seed"
  axpo world-questions --output "$out/questions" --number "$number" --stream pipeline "seed=$seed"
  cat >"$out/held_out/benchmark.yaml" <<YAML
name: world
title: Embedded world
path: questions.jsonl
reader: schema
verifiers: [exact_match]
num_questions: $held_out
YAML
}

evaluate() { # evaluate LABEL CHECKPOINT DIRECTORY
  axpo eval --checkpoint "$2" --benchmark "$out/held_out/benchmark.yaml" --output-dir "$3" --label "$1" "data.cache_dir=$out/cache" \
    benchmarks.temperature=1 benchmarks.top_p=1 benchmarks.top_k=0 benchmarks.presence_penalty=0 benchmarks.max_turns=3 \
    benchmarks.max_new_tokens=32 benchmarks.max_row_tokens=150 benchmarks.max_questions_in_flight=$concurrent
}

mkdir -p "$out"
stage "questions" "$out/held_out/benchmark.yaml" write_questions
stage "check" "$out/check/data_report.json" axpo check-data "${data[@]}" --output "$out/check"
stage "distill" "$out/distill/report.json" axpo distill "${data[@]}" "${teacher[@]}" --output-dir "$out/distill" --resume
stage "sft" "$out/sft/hf/config.json" axpo sft "sft.trajectories=[$out/distill]" sft.num_epochs=$epochs \
  sft.warmup_share=0.1 sft.checkpoint_every=100 "data.cache_dir=$out/cache" "seed=$seed" --output-dir "$out/sft" --resume
stage "filter" "$out/filter/kept.jsonl" axpo filter "${data[@]}" "model.path=$out/sft/hf" "filter.teacher=$out/distill" \
  filter.num_questions=$rl_questions filter.num_concurrent=$concurrent --output-dir "$out/filter" --resume
stage "axpo" "$out/axpo/hf/config.json" axpo train "${data[@]}" "model.path=$out/sft/hf" \
  "data.files=[{path: $out/questions/questions.jsonl, keep: $out/filter/kept.jsonl}]" \
  data.num_questions_per_step=$questions_per_step algorithm.num_rollouts=$rollouts train.num_steps=$steps \
  train.eval_every=$every eval.num_questions="$held_out" --output-dir "$out/axpo" --resume
stage "eval SFT" "$out/eval_sft/results.json" evaluate "Tiny SFT" "$out/sft/hf" "$out/eval_sft"
stage "eval SFT+AXPO" "$out/eval_axpo/results.json" evaluate "Tiny SFT+AXPO" "$out/axpo/hf" "$out/eval_axpo"
stage "table" "$out/table/table.md" axpo table "$out/eval_sft" "$out/eval_axpo" --output "$out/table"
cat "$out/table/table.md"
