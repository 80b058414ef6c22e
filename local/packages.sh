#!/usr/bin/env bash
# Installs the Debian/Ubuntu packages that the local droplet needs, and says which before it does.
# Usage: local/packages.sh [COMMAND]   (called by `make up`; does nothing when everything is there; of COMMAND: that alone)
set -euo pipefail

# command it gives : package
wanted=(
  qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils
  mmdebstrap:mmdebstrap mkfs.ext4:e2fsprogs buildah:buildah skopeo:skopeo bwrap:bubblewrap docker-registry:docker-registry
  fuse-overlayfs:fuse-overlayfs
  ssh:openssh-client nft:nftables ip:iproute2 git:git curl:curl node:nodejs npm:npm make:make g++:g++ jq:jq sudo:sudo
)
PATH="$PATH:/usr/sbin:/sbin"

# Only for tests, so only when it is named. Chrome is as good; of Ubuntu's own only the snap exists.
if [ "${1:-}" = chromium ]; then
  wanted+=(chromium:chromium)
  for name in google-chrome google-chrome-stable chromium-browser; do
    ! command -v "$name" >/dev/null || exit 0
  done
  if grep -q '^ID=ubuntu' /etc/os-release && ! command -v chromium >/dev/null; then
    echo "packages: no browser to test the web page in. Next: install Google Chrome (google.com/chrome), or: sudo snap install chromium" >&2
    exit 1
  fi
fi

missing=()
for pair in "${wanted[@]}"; do
  [ "${1:-${pair%%:*}}" = "${pair%%:*}" ] || continue
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "packages: this machine has no apt-get. Install by hand what is missing, then: make up. Missing: ${missing[*]}" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "packages: root is needed to install ${missing[*]}. Next, as root: apt-get install ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi

echo "packages: installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install --yes --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 15 "$log" >&2
  echo "packages: apt-get failed (see above). Next: sudo apt-get update && sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
# Debian starts the registry it installs; ours is started by `make up`, on loopback, with its data in .local.
if [[ " ${missing[*]} " == *" docker-registry "* ]] && [ -d /run/systemd/system ]; then
  "${as_root[@]}" systemctl disable --quiet --now docker-registry
fi
