#!/bin/sh
# The tag of our image of n8n: its version, and a hash of its files here. A change of either is another image, so it is rolled out.
set -eu
cd "$(dirname "$0")"
version=$(sed -n 's,^ARG BASE_IMAGE=.*/n8n:\([0-9][0-9.]*\).*,\1,p' Dockerfile)
printf '%s-%s\n' "${version:?no version in services/n8n/Dockerfile}" "$(cat Dockerfile healthcheck.sh | sha256sum | cut -c1-8)"
