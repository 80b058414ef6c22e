#!/usr/bin/env bash
# Installs what is locked. Usage: PYTHON=python3 tools/setup.sh python|audit|npm    (into .venv, node_modules; called by `make setup`)
set -euo pipefail
cd "$(dirname "$0")/.."

stop() { # PROBLEM NEXT
  echo "setup: $1. Next: $2" >&2
  exit 1
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# How pip, uv and npm say that nobody answers them, or that who answers does not have it.
nobody='Retrying \(Retry|from versions: none|Failed to fetch|error sending request|not found in the (package )?registry|E(CONNREFUSED|CONNRESET|NOTFOUND|AI_AGAIN|TIMEDOUT|NETUNREACH|HOSTUNREACH|NOTCACHED|TARGET)|ERR_SOCKET_TIMEOUT'
quietly() { # TOOL SETTING COMMAND…: its words are shown only when it fails for another reason than a missing index
  "${@:3}" >"$log" 2>&1 && return
  if grep -qE "$nobody" "$log"; then
    stop "$1 reaches no package index: the network, or the index that $1 is set up for, is missing" \
      "try again with a network, or name an index that this machine reaches: make setup $2=https://…"
  fi
  tail -n 20 "$log" >&2
  stop "$1 failed (see above)" "make clean setup"
}

case ${1:-} in
  python)
    echo "setup: locked Python environment in .venv"
    another="make PYTHON=python3.12 ${GOALS:-setup}"
    command -v "$PYTHON" >/dev/null || stop "there is no program $(printf '%q' "$PYTHON")" "$another"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
      stop "Python 3.11 or newer is needed; found: $("$PYTHON" --version 2>&1 | head -n 1)" "$another"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
      stop "$PYTHON cannot make environments" "sudo apt-get install python3-venv"
    "$PYTHON" -m venv .venv
    quietly pip PIP_INDEX_URL .venv/bin/python -m pip install --disable-pip-version-check --require-hashes -r requirements/uv.txt
    quietly uv UV_DEFAULT_INDEX .venv/bin/uv pip sync --python .venv/bin/python --require-hashes requirements/ops.txt
    ;;
  audit)
    echo "setup: locked tools that look at the locks in .venv/audit"
    .venv/bin/uv venv -q --clear --python .venv/bin/python .venv/audit
    quietly uv UV_DEFAULT_INDEX .venv/bin/uv pip sync --python .venv/audit/bin/python --require-hashes requirements/audit.txt
    ;;
  npm)
    echo "setup: locked npm tools in node_modules"
    command -v npm >/dev/null || stop "npm is missing" "sudo apt-get install nodejs npm"
    # Not `npm ci`: it refuses a lock without the Supabase CLI's binaries for every other platform, which a partial mirror does not hold.
    quietly npm npm_config_registry npm install --no-save --no-progress --loglevel=error
    ;;
  *) stop "what?" "make setup" ;;
esac
