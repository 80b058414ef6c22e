#!/usr/bin/env bash
# Lets this runner into the droplet: a key that only it can read, and the one host key that it may trust.
# Reads DROPLET_SSH_KEY, DROPLET_KNOWN_HOSTS, DROPLET_HOST, DROPLET_PORT; nothing secret goes to a command line.
set -euo pipefail

stop() {
  echo "::error::$1. Next: docs/setup.md, «The GitHub environment»"
  exit 1
}
[ "${GITHUB_ACTIONS:-}" = true ] || stop "this would overwrite ~/.ssh/id_ed25519: it is for a GitHub runner only"
missing=()
for name in DROPLET_HOST DROPLET_SSH_KEY DROPLET_KNOWN_HOSTS; do
  [ -n "${!name:-}" ] || missing+=("${name}")
done
[ ${#missing[@]} -eq 0 ] || stop "not set in the environment production: ${missing[*]}"

umask 077
mkdir -p "${HOME}/.ssh"
# A key pasted from Windows, or without its last line end, is put right: OpenSSH would only say «error in libcrypto».
printf '%s\n' "${DROPLET_SSH_KEY//$'\r'/}" >"${HOME}/.ssh/id_ed25519"
printf '%s\n' "${DROPLET_KNOWN_HOSTS//$'\r'/}" >"${HOME}/.ssh/known_hosts"

ssh-keygen -y -P '' -f "${HOME}/.ssh/id_ed25519" >"${HOME}/.ssh/id_ed25519.pub" 2>/dev/null ||
  stop "DROPLET_SSH_KEY is not a private key without a passphrase"
host=${DROPLET_HOST}
[ "${DROPLET_PORT:-22}" = 22 ] || host="[${DROPLET_HOST}]:${DROPLET_PORT}"
ssh-keygen -F "${host}" -f "${HOME}/.ssh/known_hosts" >/dev/null ||
  stop "DROPLET_KNOWN_HOSTS has no line for ${host}"
