#!/usr/bin/env bash
# What can be known to be wrong before a verb begins: one line, and what to type next.
# Usage: ENV=local GOALS='build deploy' tools/preflight.sh    (make calls it; what people give comes by the environment)
set -euf -o pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C

stop() { # PROBLEM NEXT
  echo "$goal: $1. Next: $2" >&2
  exit 2
}
given() { # NAME FORM WHAT NEXT: it is empty, or has this form
  [[ -z ${!1:-} || ${!1} =~ ^($2)$ ]] || stop "$1=$(printf '%q' "${!1}") is not $3" "$4"
}
local_only() { # NEXT
  [ "$ENV" = local ] || stop "it is about the local droplet, not about ENV=$ENV" "$1"
}
droplet() {
  [ "$ENV" = local ] || return 0
  [ -e .local/ssh_config ] || stop "no local droplet" "make up"
  [ -d "/proc/$(cat .local/droplet/qemu.pid 2>/dev/null || echo none)" ] || stop "the local droplet is off" "make up"
}
registry() {
  [ "$ENV" = local ] || return 0
  local port
  port=$(sed -n 's/.*"registry": *\([0-9]*\).*/\1/p' .local/ports.json 2>/dev/null) || stop "no local registry" "make up"
  { : >"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null || stop "the local registry (port $port) does not answer" "make up"
}
service() { given SERVICE '[a-z0-9][a-z0-9_-]*' "the name of a service" "make $goal SERVICE=api"; }

remote="ssh -p ${DROPLET_PORT:-22} ${DROPLET_USER:-cimt}@${DROPLET_HOST:-DROPLET_HOST}"
for goal in ${GOALS:-}; do
  case $goal in
    up) local_only "make up, or for the droplet of $ENV: make provision ENV=$ENV" ;;
    backup | backups | restore | restore-drill | drilled) droplet ;;
    dev | test | faults | pipeline | second-node | drills) local_only "make $goal" ;;
    github) [ "$ENV" != local ] || stop "the local droplet has no repository on GitHub" "make github ENV=production" ;;
    ssh) local_only "$remote" ;;
    down) local_only "make down; a droplet in a cloud is removed there, by hand" ;;
    logs)
      given NAME '[A-Za-z0-9_-]+' "the name of a log" "make logs (shows their names)"
      given SERVICE '[A-Za-z0-9][A-Za-z0-9_.@-]*' "the name of a service or a unit" "make logs SERVICE=api"
      given SINCE '[1-9][0-9]{0,4}[smhd]' "a span" "make logs SERVICE=api SINCE=30m"
      ;;
    panel-image)
      local_only "make panel-image"
      registry
      ;;
    build)
      service
      registry
      ;;
    usage) given MONTH '2[0-9]{3}-(0[1-9]|1[0-2])' "a month" "make $goal MONTH=2026-11" ;;
    user-export | user-erase) given USER_ID '[^[:space:]"`]+' "an account's id or address" "make $goal USER_ID=… (the account's id)" ;;
    provision | plan | services | prune | adopt | n8n-workflows | n8n-pull | smoke | audit | scan) droplet ;;
    droplet | droplet-resize | droplet-destroy) droplet ;;
    nodes)
      for one in DRAIN RETURN REMOVE; do given "$one" '[A-Za-z0-9][A-Za-z0-9.-]*' "the name of a node" "make nodes (shows them)"; done
      droplet
      ;;
    deploy | rollback | history)
      service
      given IMAGE '[A-Za-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}' "name@sha256:<64 hex>: a release names a digest" \
        "make $goal IMAGE=name@sha256:… (make build prints it)"
      given REVISION '[0-9a-f]{40}(-dirty-[0-9a-f]{8})?' "a full git revision" "make $goal REVISION=… (git rev-parse HEAD)"
      given ACCEPT '[A-Za-z0-9_, -]+' "names of migrations" "make $goal ACCEPT=name_of_a_migration,name_of_another"
      droplet
      [[ $goal != deploy || (-n ${IMAGE:-} && -n ${REVISION:-}) || -n ${BUILDS:-} ]] ||
        [[ $ENV = local && -n $(find .local/build -name "${SERVICE:-*}.json" 2>/dev/null) ]] ||
        stop "IMAGE and REVISION are not set" "make build ENV=$ENV${SERVICE:+ SERVICE=$SERVICE} (prints them)"
      ;;
  esac
done
