#!/usr/bin/env bash
# Builds the images with the versions of versions.env.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: containers/build.sh [--engine docker|podman] [--tag TAG] [--dry-run] trainer|server|tools ...

  --engine NAME  default: docker
  --tag TAG      of every image, default: the commit of the checkout
  --dry-run      print the commands
  -h, --help     this text

Images are called nemo_axpo-trainer:TAG and so on. For Slurm: enroot import dockerd://nemo_axpo-trainer:TAG
HELP
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
engine=docker tag='' is_dry=0
images=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --engine) engine=${2:?--engine needs a name}; shift 2 ;;
    --tag) tag=${2:?--tag needs a value}; shift 2 ;;
    --dry-run) is_dry=1; shift ;;
    trainer | server | tools) images+=("$1"); shift ;;
    *) echo "build.sh: unknown argument $1 (see --help)" >&2; exit 2 ;;
  esac
done
if ((${#images[@]} == 0)); then echo "build.sh: name an image: trainer, server, tools (see --help)" >&2; exit 2; fi
[[ -n $tag ]] || tag=$(git -C "$root" rev-parse --short HEAD)

versions=()
while IFS= read -r line; do versions+=(--build-arg "$line"); done < <(grep -vE '^(#|$)' "$root/containers/versions.env")
for image in "${images[@]}"; do
  command=("$engine" build --file "$root/containers/$image.Dockerfile" --tag "nemo_axpo-$image:$tag" "${versions[@]}" "$root")
  if ((is_dry)); then echo "${command[*]}"; else "${command[@]}"; fi
done
