#!/usr/bin/env bash
# Builds the images with the versions of versions.env.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: containers/build.sh [--engine docker|podman|buildah] [--tag TAG] [--dry-run] trainer|server|tools ... [-- OPTION...]

  --engine NAME  default: docker
  --tag TAG      of every image, default: the commit of the checkout
  --dry-run      print the commands
  -h, --help     this text
  -- OPTION...   further options of the engine's build: -- --network host --build-arg PYTHON_IMAGE=my.registry/python:3.12

Images are called nemo_axpo-trainer:TAG and so on. For Slurm: enroot import dockerd://nemo_axpo-trainer:TAG
HELP
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
engine=docker tag='' is_dry=0
images=() options=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --engine | --tag)
      if (($# < 2)); then echo "build.sh: $1 needs a value (see --help)" >&2; exit 2; fi
      declare "${1#--}=$2"
      shift 2 ;;
    --dry-run) is_dry=1; shift ;;
    --) shift; options=("$@"); break ;;
    trainer | server | tools) images+=("$1"); shift ;;
    *) echo "build.sh: unknown argument $1 (see --help)" >&2; exit 2 ;;
  esac
done
if ((${#images[@]} == 0)); then echo "build.sh: name an image: trainer, server, tools (see --help)" >&2; exit 2; fi
if ((!is_dry)) && ! command -v "$engine" >/dev/null; then
  echo "build.sh: an image needs a container engine; got no $engine here: build where one is (--engine docker, podman or" \
    "buildah), or run without containers (launcher_scripts/setup_env.sh --device cuda)" >&2
  exit 2
fi
if ((!is_dry)) && ! said=$("$engine" info 2>&1 >/dev/null); then
  echo "build.sh: $engine does not answer; got ${said:-nothing}: start its service, or take another --engine" >&2
  exit 2
fi
[[ -n $tag ]] || tag=$(git -C "$root" rev-parse --short HEAD)

versions=()
while IFS= read -r line; do versions+=(--build-arg "$line"); done < <(grep -vE '^(#|$)' "$root/containers/versions.env")
for image in "${images[@]}"; do
  command=("$engine" build --file "$root/containers/$image.Dockerfile" --tag "nemo_axpo-$image:$tag" "${versions[@]}"
    ${options[@]+"${options[@]}"} "$root")
  if ((is_dry)); then printf "%s\n" "$(printf "%q " "${command[@]}")"; else "${command[@]}"; fi
done
