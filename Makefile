# The index of verbs. People, CI and GitHub Actions call the same targets.
# ENV=local (default) is the droplet that `make up` creates on this machine; ENV=production is explicit.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

ENV ?= local
PYTHON ?= python3
# Values of people go through the environment, where no shell reads them, and as they were typed: make expands none.
people := SERVICE NAME IMAGE REVISION ACCEPT ACCEPT_NO_BACKUP CONFIRM START WHAT FROM INTO MAX_AGE_HOURS USER_ID MONTH BASE PYTHON \
  DOMAIN REGION REPOSITORY EMAIL PROJECT ROTATE SINCE FOLLOW REPLICAS SIZE DISK ALSO SECRET NODES HOST DRAIN RETURN REMOVE
$(foreach name,$(people),$(if $(value $(name)),$(eval override export $(name) := $$(value $(name)))))
export ENV
export GOALS := $(MAKECMDGOALS)
export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/node_modules/.bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

environments := $(patsubst inventory/%/hosts.yml,%,$(wildcard inventory/*/hosts.yml))
ifneq ($(words $(value ENV))$(filter $(environments),$(value ENV)),1$(value ENV))
$(error unknown ENV '$(value ENV)': choose one of: $(environments). For example: make $(or $(firstword $(MAKECMDGOALS)),up) ENV=local)
endif

# MITOGEN=1 keeps one Python per host instead of one per task: for slow (emulated) droplets, never required.
ifeq ($(MITOGEN),1)
export ANSIBLE_STRATEGY := mitogen_linear
export ANSIBLE_STRATEGY_PLUGINS = $(CURDIR)/$(wildcard .venv/lib/python3*/site-packages/ansible_mitogen/plugins/strategy)
endif

# What ENV.env says joins the environment of a command: plain values, and references by 1Password's `op run`.
with = $(if $(filter local,$(ENV)),,python -m tools.settings with )
# A step of a release, or of the nightly look: what came of it stays in .local/receipt/ for `make receipt`.
step = $(with)python -m tools.step $(1)
play = $(if $(filter local,$(ENV)),,$(with)python -m tools.settings needed $(1)) ansible-playbook -i inventory/$(ENV) playbooks/$(1).yml
build_options = $(if $(MISSING),--missing) $(if $(filter local,$(ENV)),--local) $(if $(filter 0,$(PUSH)),--no-push)

##@ The local droplet (a real VM on this machine, no account anywhere)
.PHONY: up packages mmdebstrap browser preflight
preflight: # before anything is installed: values that make no sense, a droplet that is not there
	@tools/preflight.sh
packages: preflight
	@local/packages.sh
mmdebstrap: preflight # what Postgres 17 is unpacked with
	@local/packages.sh mmdebstrap
browser: preflight # what the web page is tested in
	@local/packages.sh chromium
up: packages setup ## From nothing to a running product: VM, panel, services, smoke test, audit
	@python -m local up

.PHONY: down ssh
down: .venv/.installed ## Remove the local droplet and the local clouds (caches stay)
	@python -m local down
ssh: .venv/.installed ## A shell on the local droplet
	@python -m local ssh

.PHONY: dev
dev: mmdebstrap setup ## The small loop: API and web page with reload, Postgres, stand-ins; no VM, Ctrl-C ends it
	@exec python -m local dev

.PHONY: panel-image
panel-image: setup ## Build the stand-in panel's image and push it to the local registry
	@tools/build.sh easypanel --local

##@ Production from nothing
.PHONY: init droplet droplet-resize droplet-destroy dns ranges github doctor rotate
init: setup ## production.env and every secret that can be made, from five answers; again: what is still missing
	@python -m tools.init
droplet: setup ## Show what DigitalOcean lacks of ENV: droplet, volume, firewall, address, and the price; CONFIRM=yes makes it so
	@$(call play,droplet) $(if $(filter yes,$(value CONFIRM)),,--check) $(ARGS)
droplet-resize: setup ## Another SIZE=… for the droplet: prices, how long it is off, the way back; CONFIRM=yes makes it so
	@$(call play,droplet-resize) $(if $(filter yes,$(value CONFIRM)),,--check) $(ARGS)
droplet-destroy: setup ## Delete the droplet that NAME=… repeats; volume and address stay, unless ALSO='NAME, IP' names them
	@$(call play,droplet-destroy) $(if $(value NAME),,--check) $(ARGS)
dns: setup ## Show what the names' DNS lacks (Cloudflare; else the records to copy); CONFIRM=yes makes it so
	@$(with)python -m tools.dns
ranges: setup ## Are Cloudflare's networks still those of services/cloudflare.json? ARGS=--write brings the file up to date
	@python -m tools.cloudflare $(ARGS)
github: setup ## Show what GitHub lacks of ENV: environment, variables, secrets, Gate; CONFIRM=yes makes it so, ROTATE=NAME
	@$(with)python -m tools.github_settings
doctor: setup ## Try every value of ENV live, all at once, and change nothing: what is well, what is not, what to type
	@$(call step,doctor) python -m tools.doctor $(ARGS)
rotate: setup ## Give SECRET=NAME a new value while the old one is still good; then CONFIRM=revoke ends the old one
	@$(with)python -m tools.rotate

##@ Daily verbs (ENV=local or ENV=production)
.PHONY: status logs
status: setup ## What runs on the host of ENV, since when; memory, disk, backups, alarms; ARGS=--json for programs
	@$(if $(filter local,$(ENV)),python -m local status)
	@$(with)python -m tools.host.status $(ARGS)
logs: setup ## Logs of SERVICE=api (or of a unit), SINCE=1h, FOLLOW=1; none named: which there are, locally `make up`'s
	@$(if $(filter local,$(ENV)),$(if $(value SERVICE),,exec python -m local logs "$${NAME:-}";))$(with)python -m tools.host.logs

.PHONY: provision plan
provision: setup ## Make the host and its panel what the files here say
	@$(call play,provision) $(ARGS)
plan: setup ## Show what `provision` would change (a pipeline: what `services` would); .local/plan.json has the count
	@$(call step,plan) $(call play,$(if $(DROPLET_DOOR),services,provision)) --check --diff $(ARGS)
	@$(with)python -m tools.plan.live || [ $$? = 2 ]

.PHONY: pull-request-plan
pull-request-plan: setup ## What merging this branch changes in production, from the files alone; BASE=… (origin/main)
	@python -m tools.plan --base "$${BASE:-origin/main}" $(ARGS)

.PHONY: services
services: setup ## Make only the panel's apps what services/compose.yaml says (a part of provision)
	@$(call step,services) $(call play,services) $(ARGS)

.PHONY: prune adopt
adopt: setup ## A Compose file from what a panel has, secrets as references, in .local/adopted/
	@mkdir -p .local
	@$(call play,adopt) $(ARGS)
	@python -m tools.adopt
prune: setup ## Show what the panel has and the file does not name; CONFIRM='NAME, NAME' removes it, never a volume
	@$(call play,prune) $(if $(value CONFIRM),,--check --diff) $(ARGS)

.PHONY: nodes
nodes: setup ## The nodes of the Swarm and what runs there; DRAIN=NAME empties one, RETURN=NAME uses it again, REMOVE=NAME
	@$(call play,nodes) $(ARGS)

.PHONY: scale
scale: setup ## Another number of replicas in services/compose.yaml, and what it takes: SERVICE=api REPLICAS=3
	@$(with)python -m tools.scale

.PHONY: build
build: setup ## Build and push the images of the apps, or of SERVICE alone (MISSING=1: unless it is there)
	@$(with)python -m tools.services build "$${SERVICE:-}" $(build_options)

.PHONY: n8n-workflows n8n-pull
n8n-workflows: setup ## Make only n8n's workflows and credentials what the files say (a part of provision)
	@$(call play,n8n) $(ARGS)
n8n-pull: setup ## Bring edits of n8n's editor into n8n_workflows/; ARGS=--check only shows them, ARGS=ID adopts one
	@mkdir -p .local
	@$(call play,n8n-pull)
	@python -m tools.workflows pull --input .local/n8n-$(ENV).json $(ARGS)

.PHONY: auth
auth: setup ## How people sign in, as supabase/config.toml says: shows what differs in Supabase; CONFIRM=yes makes it so
	@$(call step,auth) python -m tools.auth $(ARGS)

.PHONY: seed
seed: setup ## Fill the knowledge base from services/etl/sources.yaml; ACCEPT=SOURCE confirms removals that wait
	@$(with)python -m tools.seed

.PHONY: migrate migrate-plan schema reembed usage user-export user-erase
migrate: setup ## Apply the pending database migrations
	@$(call step,migrate) python -m tools.database.migrate
migrate-plan: setup ## Show the pending migrations; applies nothing
	@$(with)python -m tools.database.migrate --plan
schema: mmdebstrap setup ## Write docs/schema.md from the live catalogue of all migrations
	@python -m tools.database.schema $(ARGS)
reembed: setup ## Give every passage an embedding by EMBEDDING_MODEL, while the old ones answer: CONFIRM=yes, then CONFIRM=drop
	@$(with)python -m tools.database.reembed
usage: setup ## What answers of a month cost, by user and model: MONTH=YYYY-MM (this one); ARGS=--csv for programs
	@$(with)python -m tools.database.usage $(ARGS)
user-export: setup ## All that is kept about one person, as JSON: USER_ID=… (id or e-mail)
	@$(with)python -m tools.database.person export
user-erase: setup ## Delete one person's account and data for good: USER_ID=… CONFIRM=yes
	@$(with)python -m tools.database.person erase

.PHONY: deploy rollback history
deploy: setup ## Release what was built last, or IMAGE=…@sha256:… REVISION=… of SERVICE; back when smoke or audit fail
	@$(call step,deploy) $(call play,deploy) $(ARGS)
rollback: setup ## Release what ran before, image and settings; ACCEPT=… past migrations that it does without
	@$(call play,rollback) $(ARGS)
history: setup ## The release ledger of the host
	@$(call play,history) $(ARGS)

.PHONY: backup backups restore restore-drill drilled
backup: setup ## Back up now and verify it; START=empty on a droplet whose data may begin anew, ACCEPT=smaller
	@$(call play,backup) $(ARGS)
backups: setup ## The backups, the last good one, the last drill
	@$(call play,backups) $(ARGS)
restore: setup ## Bring WHAT=n8n|panel|host|postgres back FROM=latest (or a snapshot); says what it would do until INTO=$(ENV)
	@$(call play,restore) $(ARGS)
restore-drill: packages setup ## Restore the last backup of ENV on a fresh local droplet and database, use it there, note that it works
	@$(with)python -m tools.restore_drill $(ARGS)
drilled: setup # what the drill found, told to the droplet whose backup it was
	@$(call play,drilled) $(ARGS)

.PHONY: smoke audit scan checklist receipt
smoke: setup ## Ask the product through its public address: TLS, /healthz, POST /chat
	@$(call step,smoke) python -m pytest -q -p no:cacheprovider tests/smoke $(ARGS)
audit: setup ## Read-only audit of the droplet: testinfra inside, port scan outside; HOST=NAME of a worker
	@mkdir -p .local/reports
	@$(call step,audit) python -m pytest -q -p no:cacheprovider tests/audit --junitxml=.local/reports/audit-$(ENV).xml $(ARGS)
scan: setup .venv/audit/.installed ## Lynis, OpenSCAP, ssh-audit, TLS, every TCP port (minutes): an HTML page of what is not waived
	@$(with)python -m tools.scan
checklist: setup ## The product's fifteen promises, each proven by a command (Portuguese); ARGS=--strict fails on a ❌
	@$(call step,checklist) python -m tools.checklist $(ARGS)
receipt: setup ## What the last release did, as Markdown: steps, images, migrations, audit, the way back
	@$(with)python -m tools.receipt release $(ARGS)

##@ The code
# What is written from services/settings.yaml is checked by the unit tests.
.PHONY: settings
settings: setup ## After an edit of services/settings.yaml: write workflows, docs/setup.md and production.env.example
	@python -m tools.settings write
.PHONY: setup check check-unprivileged lint unit e2e kernel n8n-install n8n-lint n8n-catalogue n8n-test n8n-upgrade test sbom vulnerabilities pins faults first-day second-node pipeline drills lock clean
setup: .venv/.installed node_modules/.installed ## Install the locked Python and npm environments
check: lint unit kernel ## All that needs no VM: linters, unit and contract tests (5 minutes on two cores)
# Root may do what GitHub's runner and a developer may not: so root checks as one of them.
check-unprivileged: ## `check` as GitHub runs it: of HEAD, as an ordinary user with sudo, without user namespaces
	@python3 tools/unprivileged.py make check
lint: setup ## Every linter
	@tools/lint/lint.sh
unit: mmdebstrap browser setup ## Unit, contract and integration tests without a VM; of the web page the shortest way through
	@python -m pytest -q -n 4 --dist worksteal tests/unit tests/integration tests/database tests/api tests/web/test_server.py tests/web/test_page.py
e2e: mmdebstrap browser setup ## The whole web page in a real Chromium: two languages, phone and desktop; pictures in .local/screenshots
	@python -m pytest -q -p no:cacheprovider tests/web $(ARGS)
kernel: setup ## Tests of the firewall, mounts and network namespaces: as root, by sudo or in a user namespace
	@tests/kernel/run.sh
n8n-install: setup ## Install the real n8n for tests, once per machine (seven minutes)
	@python -m local.images.n8n
n8n-lint: setup ## The linter of the workflows alone; ARGS=--fix brings them into their normal form
	@python -m tools.workflows lint $(ARGS)
n8n-catalogue: setup ## After a change of n8n's version: the list of its nodes, for the linter
	@python -m tools.workflows catalogue
n8n-test: mmdebstrap n8n-install ## The workflows and their role on the real n8n (installs it at the first run)
	@python -m pytest -q -p no:cacheprovider -n 2 --dist loadfile tests/n8n --ignore tests/n8n/test_upgrade.py
n8n-upgrade: mmdebstrap setup ## Upgrade from N8N_FROM (default 2.40.7) to the pinned n8n, on a volume with data
	@python -m pytest -q -p no:cacheprovider tests/n8n/test_upgrade.py
test: packages browser setup ## A pull request with its `check`, the real n8n, a registry; then, on a real droplet, its merge
	@python -m local clouds start
	@# What takes long to fetch is fetched meanwhile; whoever needs it then waits for it, or makes it.
	@mkdir -p .local/logs; { nice python -m local image; nice python -m local.images.n8n; } >.local/logs/fetched.log 2>&1 & python -m local.pipeline propose
	@make --no-print-directory kernel n8n-test
	@python -m pytest -q -p no:cacheprovider tests/acceptance/test_registry.py
	@if [ ! -e .local/droplet/disk.qcow2 ]; then \
	  echo "test: plan on a droplet that was never provisioned"; python -m local start; make --no-print-directory plan; fi
	@python -m local up
	@python -m pytest -v -p no:cacheprovider tests/acceptance/test_image.py tests/acceptance/test_droplet.py tests/acceptance/test_pipeline.py
sbom: .venv/audit/.installed ## What is inside, from the locks: CycloneDX documents in .local/sbom/ (npm 10 or newer)
	@tools/locks.sh sbom
vulnerabilities: .venv/audit/.installed ## What is known against the locked packages; red too when the index knows nothing
	@tools/locks.sh vulnerabilities
pins: setup ## The update bot sees every pinned version: Renovate's own dry run (436 MB from npm at the first run)
	@python -m tools.pins
faults: packages setup ## Break the running local droplet on purpose: bad images, races, a full disk, a kill, a reboot
	@python -m local up
	@python -m pytest -v -p no:cacheprovider tests/acceptance/test_second_app.py tests/acceptance/test_undo.py tests/acceptance/test_faults.py tests/acceptance/test_lockout.py tests/acceptance/test_by_hand.py tests/acceptance/test_proxied.py tests/acceptance/test_backup_faults.py $(if $(wildcard .local/build/n8n.json),tests/acceptance/test_n8n.py)
first-day: packages setup ## From nothing to live as docs/setup.md says, on a droplet that `make droplet` makes beside the local one
	@python -m pytest -v -s -p no:cacheprovider tests/acceptance/test_first_day.py
second-node: packages setup ## Two nodes of one Swarm on this machine: audited, released, emptied, one of them killed
	@NODES=2 python -m local up
	@python -m pytest -v -s -p no:cacheprovider tests/acceptance/test_nodes.py
pipeline: packages setup ## From a clone to a live release, as on GitHub: docs/setup.md, a pull request, its merge
	@python -m local.pipeline
drills: browser faults restore-drill pins first-day pipeline ## Everything that takes long: faults, the update bot's dry run, the first day, the whole pipeline and what must not go live; then two nodes
	@python -m pytest -v -p no:cacheprovider tests/acceptance/test_pipeline.py tests/acceptance/test_pipeline_faults.py
	@# One droplet becomes no two: its private network is given when it is made.
	@python -m local down
	@make --no-print-directory second-node
clean: ## Remove what `setup` installed (the droplet: make down)
	rm -rf .venv node_modules

lock: .venv/.installed ## Compile the lock files again after editing a *.in
	@# In its folder and with `=`: an update bot reads the command that uv writes into the second line of each.
	@for name in requirements/uv requirements/ops requirements/audit services/api/requirements services/etl/requirements local/easypanel/requirements; do \
	  (cd $${name%/*} && uv pip compile -q --universal --generate-hashes --python-version=3.11 --output-file=$${name##*/}.txt $${name##*/}.in); done
	@npm install --package-lock-only

.venv/.installed: requirements/uv.txt requirements/ops.txt | preflight
	@tools/setup.sh python
	@touch $@
# Apart from the tools that run every day: what these bring makes Ansible's every process seconds slower.
.venv/audit/.installed: requirements/audit.txt .venv/.installed
	@tools/setup.sh audit
	@touch $@
node_modules/.installed: package.json package-lock.json | preflight
	@tools/setup.sh npm
	@touch $@

.PHONY: help
help:
	@awk 'BEGIN {FS = ":.*## "; print "usage: make <verb> [ENV=local|production]"} \
	  /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
