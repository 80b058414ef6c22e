#!/bin/sh
# The tag of the etl's image: a hash of all that it is made of. The sources come as a file of the panel.
set -eu
cd "$(dirname "$0")"
cat Dockerfile healthcheck.sh requirements.txt cimt_etl/*.py cimt_etl/*.json | sha256sum | cut -c1-16
