# `make` shows what there is. Two commands set up everything: `make demo` and `make test`.
PYTHON ?= python3
PLATFORM ?= cpu
FAULT ?= scale
VENV := .venv
TESTS := .venv-test
BIN := $(TESTS)/bin
PYTEST := $(BIN)/pytest

.DEFAULT_GOAL := help
.PHONY: help venv engine image images images-test kernels-test bundle demo demo-fault demo-down lab lab-scale lock test-venv test lint docs

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: ## .venv with the locked tools that build images and run playbooks
	@$(PYTHON) images/venv.py $(VENV) deploy/requirements.txt

engine: ## a running container engine (Debian, Ubuntu as root: installed and started where none answers)
	@$(PYTHON) images/engine.py ensure

image: venv ## the image of one platform: make image PLATFORM=cpu
	@$(VENV)/bin/python images/build.py "$(PLATFORM)"

images: venv ## every image that can be built today
	@$(VENV)/bin/python images/build.py --all

images-test: test-venv ## builds every image and looks into each (30 GB of disk, hours); reports in docs/reports/images
	@$(VENV)/bin/python images/build.py --all
	@$(VENV)/bin/python images/examine.py --rebuild cpu
	@$(VENV)/bin/python images/examine.py ipex tpu cuda-turing cuda-ampere
	$(PYTEST) -m on_demand tests/images

kernels-test: test-venv ## compiles every kernel for every architecture (half an hour)
	$(PYTEST) -m on_demand -n auto --maxprocesses 4 --dist loadgroup tests/kernels tests/prebuilt tests/tools/kernels

bundle: venv ## one file for hosts without a network: image, playbooks, profiles, wheels, checksums: make bundle PLATFORM=cpu
	@$(VENV)/bin/python images/bundle.py "$(PLATFORM)"

demo: venv ## the whole chain on this machine: image, a fleet of three nodes, rollout, a completion from each
	@$(VENV)/bin/python deploy/demo/demo.py

demo-fault: venv ## rehearse a node that fails its self-test: make demo-fault FAULT=scale
	@$(VENV)/bin/python deploy/demo/demo.py --fault "$(FAULT)"

demo-down: venv ## remove everything that the demo made
	@$(VENV)/bin/python deploy/demo/demo.py --down

lab: venv ## a fleet of unlike nodes (stand-in images) and what befalls it: every scenario of docs/fleet.md; takes an hour
	@$(VENV)/bin/python deploy/lab/lab.py

lab-scale: venv ## a rollout of 20 nodes, measured, beside plain Ansible that does the same steps
	@$(VENV)/bin/python deploy/lab/lab.py --scale

lock: venv ## the hash-locked requirement files, from their .in files
	@$(VENV)/bin/python images/lock.py

test-venv: venv
	@rm -rf .cache/test-wheel
	@$(VENV)/bin/python -m hatchling build -t wheel -d .cache/test-wheel >/dev/null
	@$(PYTHON) images/venv.py $(TESTS) tests/requirements.txt .cache/test-wheel/attnkit-*.whl
	@echo '*' > $(TESTS)/.gitignore

lint: test-venv ## style, types, layers, YAML, Dockerfiles, playbooks, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files '*.yml' '*.yaml' | xargs $(BIN)/yamllint --strict
	git ls-files '*Dockerfile' | xargs $(BIN)/hadolint
	$(BIN)/python docs/generate.py --check
	$(BIN)/python deploy/kubernetes/generate.py --check
	$(BIN)/python images/document.py --check
	$(BIN)/python deploy/lab/tables.py --check
	$(BIN)/python tests/data/trees/make_trees.py --check
	$(BIN)/python tests/packaging/machine_words.py
	cd deploy && PATH="$(CURDIR)/$(VENV)/bin:$$PATH" ANSIBLE_HOME="$(CURDIR)/.cache/ansible" ansible-lint

# tests/deploy has a run of its own: Ansible changes the interpreter (sys.intern) in a way that torch's compiler does not bear.
test: lint ## everything that this machine can run, against the installed wheel (ATTNKIT_REQUIRE_DOCKER=1: no skipped docker tests)
	$(PYTEST) -m 'not docker' --ignore=tests/kernels --ignore=tests/prebuilt --ignore=tests/tools/kernels --ignore=tests/deploy --durations=10
	$(PYTEST) -m 'not docker' tests/deploy --durations=5
	$(PYTEST) -m 'not docker and not on_demand' -n auto --maxprocesses 4 --dist loadgroup tests/kernels tests/prebuilt tests/tools/kernels --durations=10
	@$(PYTHON) images/engine.py ensure || test "$$ATTNKIT_REQUIRE_DOCKER" != 1
	$(PYTEST) -m 'docker and not on_demand' tests/images tests/deploy --durations=10

docs: test-venv ## the generated files: tables of backends, schemas, evidence, Kubernetes manifests, images
	@$(BIN)/python docs/generate.py
	@$(BIN)/python deploy/kubernetes/generate.py
	@$(BIN)/python images/document.py
	@$(BIN)/python deploy/lab/tables.py
