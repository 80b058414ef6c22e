#!/bin/sh
# Runs on the host as root, from standard input: Lynis and ssh-audit as its distribution has them, unpacked into a folder
# that goes when this ends. Nothing is installed. $1 is the port of SSH. Prints each tool's findings after a line "== NAME".
set -eu
umask 022
work=$(mktemp -d /var/tmp/cimt-scan.XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$work"
cd "$work"
for package in lynis ssh-audit; do
  apt-get -qq -o APT::Sandbox::User=root download "$package" >/dev/null 2>&1 || {
    apt-get -qq update
    apt-get -qq -o APT::Sandbox::User=root download "$package"
  }
  dpkg-deb -x "$package"_*.deb .
done

echo "== lynis"
# Without its plug-ins, which collect and judge nothing. It answers 1 when it has a warning: the report tells that, too.
printf 'refresh-repositories=no\nskip-plugins=yes\n' >>etc/lynis/default.prf
cd usr/share/lynis
nice -n 19 ../../sbin/lynis audit system --quiet --no-colors --profile "$work/etc/lynis/default.prf" --plugindir "$work/etc/lynis/plugins" \
  --logfile /dev/null --report-file "$work/report.dat" >"$work/lynis.out" 2>&1 || [ "$?" -lt 100 ]
grep -q '^hardening_index=' "$work/report.dat" || {
  tail -5 "$work/lynis.out" >&2
  exit 1
}
cat "$work/report.dat"

echo "== ssh-audit"
cd "$work"
export PYTHONPATH="$work/usr/lib/python3/dist-packages"
rate=$(python3 usr/bin/ssh-audit --help 2>&1 | grep -o -m 1 -e --skip-rate-test || [ $? = 1 ])
# Its exit code is the worst level: the lines say the same.
python3 usr/bin/ssh-audit ${rate:+"$rate"} --no-colors --level=warn --port="$1" 127.0.0.1 || case "$?" in 2 | 3) ;; *) exit 1 ;; esac
echo "== end"
