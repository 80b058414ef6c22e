#!/bin/bash
# Started and able to serve: /healthz answers 200. Says nothing of dependencies: Swarm kills what is unhealthy.
# bash alone, because starting Python for every probe is the dearest thing on a small host.
set -eu
exec 3<>"/dev/tcp/127.0.0.1/8080"
printf 'GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
read -r _ status _ <&3
[ "$status" = 200 ]
