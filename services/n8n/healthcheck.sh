#!/bin/sh
# Ready: the database, a file on the volume, is open and migrated. By what the image has, the cheapest first: starting
# Node for every probe takes more from a small host that is just starting n8n than n8n itself gets.
set -eu
url=http://127.0.0.1:5678/healthz/readiness
if command -v wget >/dev/null; then
  exec wget -q -T 25 -O /dev/null "$url"
elif command -v bash >/dev/null; then
  # shellcheck disable=SC2016 # bash fills them in
  exec bash -c '
    exec 3<>/dev/tcp/127.0.0.1/5678
    printf "GET /healthz/readiness HTTP/1.0\r\nHost: localhost\r\n\r\n" >&3
    read -r _ status _ <&3
    [ "$status" = 200 ]'
fi
exec node -e "fetch('$url').then(a => process.exit(a.ok ? 0 : 1), () => process.exit(1))"
