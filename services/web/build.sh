#!/usr/bin/env bash
# Makes dist/ of src/, which the image takes: tools/build.sh runs this before it. Here and not in the Dockerfile, because
# the locked tools are here already (`make setup`), and the image needs none of them.
set -euo pipefail
cd "$(dirname "$0")"
PATH=$(cd ../../node_modules/.bin && pwd):$PATH # Node, too
vite build --logLevel warn
# As nginx sends it (gzip_static): packed once, with no time in it, so that the same source is the same image.
gzip -9 -n -k -f dist/index.html dist/icon.svg dist/assets/*
