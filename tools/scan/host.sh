#!/bin/sh
# Runs on the host as root, from standard input: Lynis, OpenSCAP and ssh-audit as its distribution has them, unpacked into a
# folder that goes when this ends. Nothing is installed. $1 is the port of SSH. Prints each tool's findings after a line "== NAME".
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

echo "== openscap"
cd "$work"
# shellcheck disable=SC1091 # the host's
. /etc/os-release
# The strictest that asks for no kernel of one's own, and on Ubuntu the one that its hosts are asked for most.
case $ID in ubuntu) content=ssg-debderived profile=cis_level1_server ;; *) content=ssg-debian profile=anssi_bp28_enhanced ;; esac
scanner=openscap-scanner
apt-cache show "$scanner" >/dev/null 2>&1 || scanner=libopenscap8 # Ubuntu 22.04's
mkdir -p debs/partial
apt-get -qq -y -o APT::Sandbox::User=root -o Dir::Cache::archives="$work/debs" install --no-install-recommends --download-only \
  "$scanner" "$content" >/dev/null
for package in debs/*.deb; do dpkg-deb -x "$package" .; done
# What the distribution has for its newest release; where that is an older one than this, the same rules are asked (and what
# loads auditd's rules has a name of its own since Debian 13).
rules=$(find usr/share/xml/scap/ssg/content -name "ssg-${ID}[0-9]*-ds.xml" | sort -V | tail -1)
sed -e "s/\\^12\\.\\[0-9\\]/^$VERSION_ID.[0-9]/" -e 's/Requires=augenrules\.service/Requires=(augenrules|audit-rules).service/' "$rules" >rules.xml
machine=$(uname -m)
export LD_LIBRARY_PATH="$work/usr/lib/$machine-linux-gnu" OSCAP_SCHEMA_PATH="$work/usr/share/openscap/schemas" \
  OSCAP_XSLT_PATH="$work/usr/share/openscap/xsl" OSCAP_CPE_PATH="$work/usr/share/openscap/cpe"
# It answers 2 when a rule is not kept.
nice -n 19 usr/bin/oscap xccdf eval --progress --profile "xccdf_org.ssgproject.content_profile_$profile" rules.xml >oscap.out 2>oscap.err || [ "$?" -eq 2 ] || {
  tail -5 oscap.err >&2
  exit 1
}
echo "$(basename "$rules" -ds.xml) $profile"
# Lines of "rule|result|title".
awk -F : 'NR == FNR { sub(/.*content_rule_/, "", $1); result[$1] = $2; next }
  /:Rule / { rule = $0; sub(/.*content_rule_/, "", rule); sub(/".*/, "", rule) }
  /:title/ && rule in result { title = $0; sub(/^[^>]*>/, "", title); sub(/<.*/, "", title); print rule "|" result[rule] "|" title; delete result[rule] }' \
  oscap.out rules.xml
unset LD_LIBRARY_PATH

echo "== ssh-audit"
cd "$work"
export PYTHONPATH="$work/usr/lib/python3/dist-packages"
rate=$(python3 usr/bin/ssh-audit --help 2>&1 | grep -o -m 1 -e --skip-rate-test || [ $? = 1 ])
# Its exit code is the worst level: the lines say the same.
python3 usr/bin/ssh-audit ${rate:+"$rate"} --no-colors --level=warn --port="$1" 127.0.0.1 || case "$?" in 2 | 3) ;; *) exit 1 ;; esac
echo "== end"
