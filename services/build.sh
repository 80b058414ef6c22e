#!/usr/bin/env bash
# Builds the image of a service, pushes it and says its digest.
# Usage: services/build.sh SERVICE --repository REPO [--context DIR] [--pull-repository REPO] [--base IMAGE] [--tag TAG] [--local] [--no-push]
#   --repository       where to push, such as ghcr.io/example/cimt/api
#   --pull-repository  how the droplet names that repository, when it sees it under another address
#   --local            the local registry: plain HTTP, and asked for before building
# Writes .local/build/SERVICE.json: {"image", "digest", "revision", "pushed_to"}.
set -euo pipefail
cd "$(dirname "$0")/.."

service=${1:-}
case $service in
  '' | -*) echo "build: which service? Next: services/build.sh api --repository ghcr.io/example/cimt/api" >&2; exit 2 ;;
esac
shift
context=services/$service repository='' pull_repository='' base='' tag='' local_registry='' push=yes
while [ $# -gt 0 ]; do
  case $1 in
    --local | --no-push) ;;
    *) [ $# -gt 1 ] || { echo "build: $1 needs a value. Next: head -n 8 services/build.sh" >&2; exit 2; } ;;
  esac
  case $1 in
    --repository) repository=$2; shift ;;
    --context) context=$2; shift ;;
    --pull-repository) pull_repository=$2; shift ;;
    --base) base=$2; shift ;;
    --tag) tag=$2; shift ;;
    --local) local_registry=yes ;;
    --no-push) push= ;;
    *) echo "build: unknown option $1. Next: head -n 8 services/build.sh" >&2; exit 2 ;;
  esac
  shift
done
[ -n "$repository" ] || { echo "build: --repository is missing, such as ghcr.io/example/cimt/$service" >&2; exit 2; }
[ -f "$context/Dockerfile" ] || { echo "build: there is no $context/Dockerfile. Services with an image of ours: $(cd services && echo */Dockerfile | sed 's,/Dockerfile,,g')" >&2; exit 2; }
command -v buildah >/dev/null || { echo "build: buildah is missing. Next: sudo apt-get install buildah" >&2; exit 1; }
if [ -n "$local_registry" ] && ! curl -fsS -o /dev/null --max-time 10 "http://${repository%%/*}/v2/"; then
  echo "build: the registry ${repository%%/*} does not answer. Next: python -m local clouds start" >&2
  exit 1
fi

revision=$(git rev-parse HEAD)
if [ -n "$(git status --porcelain -- "$context")" ]; then
  # What git would take: a cache left by a tool is no change. A deleted file has no content, so its name counts alone.
  content=$(git ls-files -z --cached --others --exclude-standard -- "$context" | sort -zu |
    while IFS= read -r -d '' file; do
      printf '%s ' "$file"
      if [ -f "$file" ]; then sha256sum <"$file"; else echo deleted; fi
    done | sha256sum)
  revision=$revision-dirty-${content:0:8}
fi
image=$repository:${tag:-$revision}

options=(--format docker --isolation chroot --layers --pull-always=false --build-arg "REVISION=$revision" --tag "$image")
[ -z "$base" ] || options+=(--build-arg "BASE_IMAGE=$base")
if [ -s "${SSL_CERT_FILE:-}" ]; then options+=(--secret "id=ca,src=$SSL_CERT_FILE"); fi
echo "build: $image"
buildah bud "${options[@]}" "$context"
[ -n "$push" ] || exit 0

mkdir -p .local/build
work=$(mktemp -d .local/build/.work.XXXXXX)
trap 'rm -rf "$work"' EXIT
options=(--digestfile "$work/digest")
# The local registry is on this machine: what compression would save on the way, an emulated droplet pays many times to undo.
[ -z "$local_registry" ] || options+=(--tls-verify=false --disable-compression)
echo "build: pushing $image"
buildah push --quiet "${options[@]}" "$image"
digest=$(cat "$work/digest")
printf '{"image": "%s", "digest": "%s", "revision": "%s", "pushed_to": "%s"}\n' \
  "${pull_repository:-$repository}@$digest" "$digest" "$revision" "$repository" >"$work/json"
mv "$work/json" ".local/build/$service.json"
echo "build: ${pull_repository:-$repository}@$digest"
