# `make` shows what there is. Two commands set up everything: `make demo` and `make test`.
PYTHON ?= python3
PLATFORM ?= cpu
ARCH ?=
FORM ?= bundle
FAULT ?= scale
VENV := .venv
TESTS := .venv-test
DOCS := .venv-docs
OLDEST := .cache/venv-oldest
BIN := $(TESTS)/bin
PYTEST := $(BIN)/pytest
PARALLEL := -n auto --maxprocesses 4 --dist loadgroup

# Where it is set, hundreds of processes would each compile what they import anew: 3 s for torch, 8 s for its compiler.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv engine image images images-test kernels-test bundle demo demo-fault demo-down lab lab-scale lock test-venv docs-venv \
	test test-python test-unit test-fleet test-docker test-image test-oldest lint generate check-generated docs changelog dist contracts fuzz-inputs

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: ## .venv with the locked tools that build images and run playbooks
	@$(PYTHON) -m images.builder.venv $(VENV) deploy/requirements.txt

engine: ## a running Docker (on Debian and Ubuntu as root: installed and started where none answers)
	@$(PYTHON) -m images.builder.container_engine

image: venv ## the image of one platform: make image PLATFORM=cpu, or PLATFORM=cuda ARCH=sm_90
	@$(VENV)/bin/python -m images.builder.build "$(PLATFORM)" --arch "$(ARCH)"

images: venv ## every image that can be built today
	@$(VENV)/bin/python -m images.builder.build --all

images-test: test-venv ## builds and inspects every image (30 GB of disk, hours); reports in docs/reports/images
	@$(VENV)/bin/python -m images.builder.build --all
	@$(VENV)/bin/python -m images.inspect.examine --rebuild cpu
	@$(VENV)/bin/python -m images.inspect.examine ipex tpu cuda-turing cuda-ampere
	$(PYTEST) -m on_demand tests/images

kernels-test: test-venv ## compiles every kernel for every architecture (half an hour)
	$(PYTEST) -m on_demand $(PARALLEL) tests/kernels tests/prebuilt tests/tools/kernels

fuzz-inputs: test-venv ## 50,000 hostile inputs for everything that reads what others wrote (minutes)
	$(BIN)/python -m tools.fuzz.inputs --draws 50000

bundle: venv ## one file for hosts without a network: image, playbooks, profiles, wheels, checksums: make bundle PLATFORM=cpu; a root tree: FORM=tree
	@$(VENV)/bin/python -m images.offline.bundle "$(PLATFORM)" --arch "$(ARCH)" --form "$(FORM)"

demo: venv ## the whole chain on this machine: image, a fleet of three nodes, rollout, a completion from each
	@$(VENV)/bin/python -m deploy.demo

demo-fault: venv ## rehearse a node that fails its self-test: make demo-fault FAULT=scale
	@$(VENV)/bin/python -m deploy.demo --fault "$(FAULT)"

demo-down: venv ## remove everything that the demo made
	@$(VENV)/bin/python -m deploy.demo --down

lab: venv ## fault injection on a heterogeneous fleet of stand-in images: every scenario of docs/reports/fleet.md; takes an hour
	@$(VENV)/bin/python -m deploy.lab

lab-scale: venv ## a rollout of 20 nodes, measured and compared with plain Ansible that does the same steps
	@$(VENV)/bin/python -m deploy.lab --scale

lock: venv ## the hash-locked requirement files, from their .in files
	@$(VENV)/bin/python -m images.builder.lock

test-venv: venv
	@rm -rf .cache/test-wheel
	@$(VENV)/bin/python -m hatchling build -t wheel -d .cache/test-wheel >/dev/null
	@$(PYTHON) -m images.builder.venv $(TESTS) tests/requirements.txt .cache/test-wheel/attnkit-*.whl
	@echo '*' > $(TESTS)/.gitignore

lint: test-venv ## style, types, layers, YAML, Dockerfiles, playbooks, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files '*.yml' '*.yaml' | xargs $(BIN)/yamllint --strict
	git ls-files '*Dockerfile' | xargs $(BIN)/hadolint
	git ls-files '*.sh' .ci/run | xargs $(BIN)/shellcheck
	@$(MAKE) --no-print-directory check-generated
	$(BIN)/python tests/packaging/machine_words.py
	cd deploy && PATH="$(CURDIR)/$(VENV)/bin:$$PATH" ANSIBLE_HOME="$(CURDIR)/.cache/ansible" ansible-lint

# Side by side, as the image and the demo wait for network, disk and engines much of the time; the output of each comes in one piece.
test: venv ## everything that this machine can run, against the installed wheel (ATTNKIT_REQUIRE_DOCKER=1: no skipped docker tests)
	@echo "linters, tests and the image side by side; each shows what it printed once it has ended"
	@$(MAKE) --no-print-directory --jobs --output-sync=target lint test-python test-docker

test-python: test-unit test-fleet ## the tests that need no container runtime

# nice: where cores are few, the longest chain, that of the image and the demo, goes first.
test-unit: test-venv
	nice -n 5 $(PYTEST) -m 'not docker and not on_demand' $(PARALLEL) --ignore=tests/deploy --durations=10

# A run of its own: Ansible changes the interpreter (sys.intern) in a way that torch's compiler does not tolerate.
test-fleet: test-venv
	nice -n 5 $(PYTEST) -m 'not docker' tests/deploy --durations=5

test-docker: test-venv test-image ## the tests that need a container runtime
	$(PYTEST) -m 'docker and not on_demand' tests/images tests/deploy --durations=10

test-image: venv
	@if $(PYTHON) -m images.builder.container_engine; then $(VENV)/bin/python -m images.builder.build cpu; \
	else test "$$ATTNKIT_REQUIRE_DOCKER" != 1; fi

test-oldest: ## the package on the oldest Python that it supports, dependencies not locked: make test-oldest PYTHON=python3.10
	@rm -rf $(OLDEST) && $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install -qq ".[cpu]" hypothesis jsonschema pytest pytest-timeout safetensors tokenizers
	$(OLDEST)/bin/pytest -m 'not docker and not on_demand and not slow' tests/hardware tests/profiles tests/select tests/selftest

contracts: test-venv ## the calls into every provider, checked against the packages that the index serves today (downloads gigabytes)
	$(BIN)/python -m tools.contracts

# A generated file has one owner: each of these writes its files, or says with --check that they are stale.
GENERATORS = tools.docs.generate deploy.kubernetes.generate images.inspect.document deploy.lab.tables deploy.roles

generate: test-venv ## the generated files: tables of backends, reference pages, schemas, evidence, Kubernetes manifests, images
	@for module in $(GENERATORS); do $(BIN)/python -m $$module || exit 1; done

check-generated:
	@for module in $(GENERATORS) tests.data.trees.make_trees tools.hardware.pci_ids; do $(BIN)/python -m $$module --check || exit 1; done

docs-venv:
	@$(PYTHON) -m images.builder.venv $(DOCS) docs/requirements.txt
	@echo '*' > $(DOCS)/.gitignore

docs: generate docs-venv ## the generated files and the documentation site, in site/; a dead link is an error
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

changelog: docs-venv ## the notes of the next release, from changelog.d
	@$(DOCS)/bin/towncrier build --draft

dist: venv ## wheel, source distribution, collection and their checksums, in dist/
	@rm -rf dist && ANSIBLE_HOME="$(CURDIR)/.cache/ansible" $(VENV)/bin/python -m tools.dist
