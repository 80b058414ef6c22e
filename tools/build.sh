#!/usr/bin/env bash
# Builds the image of a service, pushes it and says its digest.
# Usage: tools/build.sh SERVICE [--local] [--tag TAG] [--missing] [--no-push]
#   SERVICE    a folder below services/, or `easypanel`: the stand-in of the local droplet
#   --local    to the registry of `make up`, on a base made on this machine; else to IMAGE_REPOSITORY, on the Dockerfile's base
#   --tag      instead of the revision: for images whose tag names their content
#   --missing  only when the registry does not have this tag
# Writes .local/build/SERVICE.json: {"image", "digest", "revision", "pushed_to"}; the last only of what it pushed.
set -euo pipefail
cd "$(dirname "$0")/.."

stop() { # CODE MESSAGE
  echo "build: $2" >&2
  exit "$1"
}
service=${1:-}
case $service in
  '' | -*) stop 2 "which service? Next: tools/build.sh api --local" ;;
  easypanel) context=local/easypanel ;;
  *) context=services/$service ;;
esac
shift
local_droplet='' tag='' missing='' push=yes
while [ $# -gt 0 ]; do
  case $1 in
    --local) local_droplet=yes ;;
    --tag) tag=${2:?build: --tag needs a value} && shift ;;
    --missing) missing=yes ;;
    --no-push) push= ;;
    *) stop 2 "unknown option $1. Next: head -n 7 tools/build.sh" ;;
  esac
  shift
done
[ -f "$context/Dockerfile" ] || stop 2 "there is no $context/Dockerfile. Services with an image of ours: $(cd services && echo */Dockerfile | sed 's,/Dockerfile,,g')"
command -v buildah >/dev/null || stop 1 "buildah is missing. Next: sudo apt-get install buildah"

registry_options=()
if [ -n "$local_droplet" ]; then
  port=$(.venv/bin/python -m local port registry)
  # Its certificate is its own: buildah, too, takes what is on this machine as it is.
  curl -fsSk -o /dev/null --max-time 10 "https://127.0.0.1:$port/v2/" ||
    stop 1 "the registry 127.0.0.1:$port does not answer. Next: python -m local clouds start"
  repository=127.0.0.1:$port/cimt/$service
  pull_repository=10.0.2.2:$port/cimt/$service # the same, as the droplet sees it
  registry_options=(--tls-verify=false)
else
  [ -n "${IMAGE_REPOSITORY:-}" ] ||
    stop 2 "not set: IMAGE_REPOSITORY, such as ghcr.io/example/cimt. Next: docs/setup.md says where it comes from"
  repository=$IMAGE_REPOSITORY/$service
  pull_repository=$repository
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
# The stand-in answers as the version that the role installs.
[ "$service" != easypanel ] || tag=$(sed -n 's/^easypanel_version: "\(.*\)"/\1/p' roles/easypanel/defaults/main.yml)
image=$repository:${tag:-$revision}
mkdir -p .local/build
work=$(mktemp -d .local/build/.work.XXXXXX)
trap 'rm -rf "$work"' EXIT

source=$(tools/source.sh)
registry=${repository%%/*}
denied() { # WHAT: the registry refused us; says what to do about it, and ends
  stop 1 "$registry refused $1. Next: sign in by \`buildah login $registry\` (a token with write:packages); when you are, link the package: \
its page → Package settings → Manage Actions access → Add Repository${source:+ ${source#*//*/}}, role Write"
}
if [ -n "$missing" ]; then
  said='{{.Digest}} {{index .Labels "org.opencontainers.image.revision"}}'
  if found=$(skopeo inspect --no-tags --format "$said" "${registry_options[@]}" "docker://$image" 2>"$work/words"); then
    # Released by this digest; without pushed_to, because this run has made nothing that it could attest.
    printf '{"image": "%s", "digest": "%s", "revision": "%s"}\n' "$pull_repository@${found% *}" "${found% *}" "${found#* }" >"$work/json"
    mv "$work/json" ".local/build/$service.json"
    echo "build: the registry has $image"
    exit 0
  fi
  # Only a registry that says so does not have it: "denied", or no answer, would cost minutes of building for nothing.
  if ! grep -qE 'manifest unknown|name unknown|\b404\b' "$work/words"; then
    cat "$work/words" >&2
    ! grep -qiE 'denied|unauthorized|forbidden|authentication required|\b40[13]\b' "$work/words" || denied "to say whether it has $image"
    stop 1 "$registry did not say whether it has $image (see above). Next: try again when it answers"
  fi
fi

# Both overwrite what a base image says of itself. By the source ghcr.io links a new package to the repository.
options=(--format docker --isolation chroot --layers --pull-always=false --build-arg "REVISION=$revision" --tag "$image")
options+=(--label "org.opencontainers.image.revision=$revision")
[ -z "$source" ] || options+=(--label "org.opencontainers.image.source=$source")
if [ -n "$local_droplet" ]; then
  base=$(.venv/bin/python -m local base "$service") # made now where it is missing
  options+=(--build-arg "BASE_IMAGE=$base")
fi
if [ -s "${SSL_CERT_FILE:-}" ]; then options+=(--secret "id=ca,src=$SSL_CERT_FILE"); fi
echo "build: $image"
# What an image takes as it is, and does not make itself.
[ ! -x "$context/build.sh" ] || "$context/build.sh"
buildah bud "${options[@]}" "$context"
[ -n "$push" ] || exit 0

options=(--digestfile "$work/digest" "${registry_options[@]}")
# The local registry is on this machine: what compression would save on the way, an emulated droplet pays many times to undo.
[ -z "$local_droplet" ] || options+=(--disable-compression)
echo "build: pushing $image"
if ! buildah push --quiet "${options[@]}" "$image" 2>"$work/words"; then
  cat "$work/words" >&2
  ! grep -qiE 'denied|unauthorized|forbidden|not allowed|\b40[13]\b' "$work/words" || denied "the push of $image"
  stop 1 "the push of $image failed (see above). Next: the same command again"
fi
digest=$(cat "$work/digest")
printf '{"image": "%s", "digest": "%s", "revision": "%s", "pushed_to": "%s"}\n' \
  "$pull_repository@$digest" "$digest" "$revision" "$repository" >"$work/json"
mv "$work/json" ".local/build/$service.json"
echo "build: $pull_repository@$digest"
