#!/bin/sh
# Turns a fresh Debian root file system into the droplet's: run by mmdebstrap as a hook with the root as $1.
# What production does not have either is not done here: hardening belongs to the roles.
set -eu
root=$1

# Security updates, now and in the running droplet, which takes them from these sources by itself.
grep -rqs -e '-security' "$root/etc/apt/sources.list" "$root/etc/apt/sources.list.d" || {
  echo "image: mmdebstrap names no security archive for this suite. Next: install a newer mmdebstrap, or distro-info-data" >&2
  exit 1
}

# Network as the hypervisor gives it; cloud-init need not render it again on every boot.
mkdir -p "$root/etc/systemd/network"
cat > "$root/etc/systemd/network/80-dhcp.network" <<'CONF'
[Match]
Name=en* eth*
[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
CONF
chroot "$root" systemctl -q enable systemd-networkd.service systemd-resolved.service ssh.service

# No lazy initialisation of 25 GB of inode tables by an emulated CPU.
cat > "$root/etc/fstab" <<'CONF'
/dev/vda / ext4 defaults,noatime,noinit_itable,errors=remount-ro 0 1
CONF

# cloud-init: one data source, and only the modules that a key-only admin user needs.
cat > "$root/etc/cloud/cloud.cfg.d/90_local.cfg" <<'CONF'
datasource_list: [NoCloud]
network: {config: disabled}
manage_etc_hosts: false
cloud_init_modules: [write_files, set_hostname, update_hostname, users_groups, ssh]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts_user, final_message]
CONF
# ds-identify would look for every cloud there is.
printf 'datasource: NoCloud\npolicy: enabled\n' > "$root/etc/cloud/ds-identify.cfg"

# Timers that would compete with a provisioning run for two (emulated) cores.
chroot "$root" systemctl -q mask man-db.timer dpkg-db-backup.timer e2scrub_all.timer \
  fstrim.timer e2scrub_reap.service systemd-networkd-wait-online.service

# Security updates come by themselves, as on a new droplet, but no missed run is caught up with at boot.
for timer in apt-daily apt-daily-upgrade; do
  mkdir -p "$root/etc/systemd/system/$timer.timer.d"
  printf '[Timer]\nPersistent=false\n' > "$root/etc/systemd/system/$timer.timer.d/local.conf"
done

# Debian 13 has scores of AppArmor profiles that confine nothing (they name desktop programs to other distributions'
# kernels). Compiling them takes an emulated CPU 20 s before anything else may start.
mkdir -p "$root/etc/apparmor.d/disable"
grep -lsE '^profile .*flags=\((unconfined|default_allow)\)' "$root"/etc/apparmor.d/* | while read -r profile; do
  ln -sf "/etc/apparmor.d/${profile##*/}" "$root/etc/apparmor.d/disable/"
done

# An emulated CPU may run an instruction that the kernel has just patched away (a stale translation in QEMU), and the kernel
# dies of it ("Oops: int3"). The patch that hits is the one in the scheduler's hottest path, made when the first CPU quota
# appears: a container's, on a busy machine. So the first quota is set while almost nothing runs yet.
cat > "$root/etc/systemd/system/firstquota.slice" <<'CONF'
[Unit]
Description=Empty, but the first with a CPU quota
DefaultDependencies=no
Before=sysinit.target systemd-journald.service systemd-udevd.service
[Slice]
CPUQuota=100%
CONF
mkdir -p "$root/etc/systemd/system/sysinit.target.wants"
ln -s ../firstquota.slice "$root/etc/systemd/system/sysinit.target.wants/firstquota.slice"

# It looks for a vsock that this machine does not have, and fails on the console.
mkdir -p "$root/etc/systemd/system-generators"
ln -sf /dev/null "$root/etc/systemd/system-generators/systemd-ssh-generator"

# A small initrd that an emulated CPU unpacks at once.
sed -i 's/^MODULES=.*/MODULES=list/; s/^COMPRESS=.*/COMPRESS=lz4/' "$root/etc/initramfs-tools/initramfs.conf"
printf 'virtio_pci\nvirtio_blk\nvirtio_net\next4\n' >> "$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u -k all

# Identity belongs to the droplet, not to the image.
rm -f "$root"/etc/ssh/ssh_host_*_key "$root"/etc/ssh/ssh_host_*_key.pub "$root/var/lib/dbus/machine-id"
: > "$root/etc/machine-id"
echo droplet > "$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 droplet\n::1 localhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"

# The proxy, resolver and package lists of the building machine stay there.
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/archives/*.deb
rm -f "$root/etc/resolv.conf"
ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
