#!/usr/bin/env bash
# Lets this runner into the droplet: a key that only it can read, and the one host key that it may trust.
# Reads DROPLET_KNOWN_HOSTS, DROPLET_HOST, DROPLET_PORT and the key: where DROPLET_DOOR names an account of the door it is
# DROPLET_CI_KEY, else the admin's DROPLET_SSH_KEY. Nothing secret goes to a command line.
# With --same-program it stops where the door is not this checkout's: before a migration, not after it.
set -euo pipefail

stop() {
  echo "::error::$1. Next: ${2:-docs/setup.md, «The GitHub environments»}"
  exit 1
}
[ "${GITHUB_ACTIONS:-}" = true ] || stop "this would overwrite ~/.ssh/id_ed25519: it is for a GitHub runner only"
key=DROPLET_SSH_KEY environment=production-host
[ -z "${DROPLET_DOOR:-}" ] || key=DROPLET_CI_KEY environment=production
missing=()
for name in DROPLET_HOST "${key}" DROPLET_KNOWN_HOSTS; do
  [ -n "${!name:-}" ] || missing+=("${name}")
done
[ ${#missing[@]} -eq 0 ] || stop "not set in the environment ${environment}: ${missing[*]}"

umask 077
mkdir -p "${HOME}/.ssh"
# A key pasted from Windows, or without its last line end, is put right: OpenSSH would only say «error in libcrypto».
printf '%s\n' "${!key//$'\r'/}" >"${HOME}/.ssh/id_ed25519"
printf '%s\n' "${DROPLET_KNOWN_HOSTS//$'\r'/}" >"${HOME}/.ssh/known_hosts"

ssh-keygen -y -P '' -f "${HOME}/.ssh/id_ed25519" >"${HOME}/.ssh/id_ed25519.pub" 2>/dev/null ||
  stop "${key} is not a private key without a passphrase"
host=${DROPLET_HOST}
[ "${DROPLET_PORT:-22}" = 22 ] || host="[${DROPLET_HOST}]:${DROPLET_PORT}"
ssh-keygen -F "${host}" -f "${HOME}/.ssh/known_hosts" >/dev/null ||
  stop "DROPLET_KNOWN_HOSTS has no line for ${host}"
[ "${1:-}" = --same-program ] || exit 0

told=$(ssh -o BatchMode=yes -o ConnectTimeout=20 -p "${DROPLET_PORT:-22}" "${DROPLET_DOOR}@${DROPLET_HOST}" \
  cimt-door <<<'{"do": "hello"}') || stop "the droplet's door does not open for ${key}; is its public half in DROPLET_CI_KEYS, and provisioned?"
[ "$(jq -r .door <<<"${told}")" = "$(.venv/bin/python roles/door/files/pack.py)" ] ||
  stop "This merge changes the program that releases on the droplet, so nothing was done" \
    "Operate → provision, which a reviewer approves; then Re-run jobs here"
