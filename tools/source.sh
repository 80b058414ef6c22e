#!/usr/bin/env bash
# Where this repository is on GitHub, such as https://github.com/example/cimt; nothing when it is not there.
set -euo pipefail
cd "$(dirname "$0")/.."
origin=$(git config --default '' --get remote.origin.url)
[ -z "${GITHUB_REPOSITORY:-}" ] || origin=${GITHUB_SERVER_URL:-https://github.com}/$GITHUB_REPOSITORY # on a runner
# Both forms, without a name or a token in front of the host; a runner's server may be a company's own.
host=${GITHUB_SERVER_URL:-https://github.com}
host=${host#https://}
sed -nE "s,^(https://|ssh://|)([^@/]*@)?${host//./\\.}(:[0-9]+)?[:/]([^/]+/[^/]+)\$,https://$host/\4,p" <<<"${origin%.git}"
