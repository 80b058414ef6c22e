#!/usr/bin/env bash
# The tests that need a kernel to themselves: namespaces, mounts, the packet filter. Called by `make kernel`.
# As root; or by sudo, where it asks for no password (GitHub's runners); or as root of a user namespace.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
pytest=(python -m pytest -q -p no:cacheprovider tests/kernel)

if [[ $(id -u) -eq 0 ]]; then
  as_root=()
elif sudo -n true 2>/dev/null; then
  as_root=(sudo -n env "PATH=$PATH" PYTHONDONTWRITEBYTECODE=1)
elif unshare --map-root-user true 2>/dev/null; then
  # A network of its own, or there would be no way back to it; pytest's folder as ours, not as root's.
  as_root=(unshare --map-root-user --net env "LOGNAME=$(id -un)")
else
  count=$("${pytest[@]}" --collect-only | grep -c ::)
  echo "kernel: $count tests of the firewall, of mounts and of network namespaces need sudo without a password, or user" \
    "namespaces. Neither is here; the acceptance run on a droplet (make test) covers what they test."
  exit 0
fi
for tool in nft ip unshare nsenter; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || {
    echo "kernel: the program $tool is missing. Next: sudo apt-get install nftables iproute2 util-linux" >&2
    exit 1
  }
done
exec "${as_root[@]}" "${pytest[@]}"
