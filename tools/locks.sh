#!/usr/bin/env bash
# What is inside, and what is known against it, from the lock files alone.
# Usage: tools/locks.sh sbom             CycloneDX documents, one a lock, in .local/sbom/
#        tools/locks.sh vulnerabilities  asks the package index and npm's registry; fails when one of them cannot tell
# shellcheck disable=SC2329 # the functions are called by name
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/audit/bin:$PATH # Next, where it is missing: make .venv/audit/.installed
verb=${1:-}
mapfile -t locks < <(git ls-files '*requirements*.txt' '*package-lock.json')

sbom() { # LOCK DOCUMENT
  case $1 in
    *.txt) cyclonedx-py requirements "$1" --of JSON --spec-version 1.6 --output-file "$2" ;;
    *) (cd "$(dirname "$1")" && npm sbom --package-lock-only --sbom-format cyclonedx) >"$2" ;; # npm 10 or newer
  esac
}
vulnerabilities() { # LOCK
  case $1 in
    # Without --strict, an index that knows no vulnerabilities counts as one that knows of none.
    *.txt) pip-audit --strict --disable-pip --require-hashes --progress-spinner off --requirement "$1" ;;
    *) (cd "$(dirname "$1")" && npm audit --package-lock-only) ;;
  esac
}
case $verb in
  sbom | vulnerabilities) ;;
  *) echo "locks: what? Next: head -n 4 tools/locks.sh" >&2 && exit 2 ;;
esac
[ ${#locks[@]} -gt 0 ] || { echo "locks: git knows no lock file here. Next: git status" >&2 && exit 1; }
[ "$verb" != sbom ] || mkdir -p .local/sbom

failed=()
for lock in "${locks[@]}"; do
  document=${lock//\//-}
  document=.local/sbom/${document%.*}.json
  echo "$verb: $lock"
  "$verb" "$lock" "$document" || { failed+=("$lock") && rm -f "$document"; }
done
((${#failed[@]} == 0)) && exit 0
echo "locks: $verb of ${failed[*]} failed (see above). Next: update what is named there, make lock; or, when nobody answered, try again" >&2
exit 1
