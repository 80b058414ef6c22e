# shellcheck shell=bash
# Written by Ansible (role hardening). A shell that somebody left open ends after ten minutes without a key; one in which a
# program runs is not idle. dash, which reads this too, has neither the setting nor the word.
if [ -n "${BASH_VERSION:-}" ] && [ -z "${TMOUT:-}" ]; then
  declare -xr TMOUT=600
fi
