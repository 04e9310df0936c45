# `make` shows what there is. Two commands set up everything: `make demo` and `make test`.
PYTHON ?= python3
PLATFORM ?= cpu
FAULT ?= scale
VENV := .venv

.DEFAULT_GOAL := help
.PHONY: help venv engine image images demo demo-fault demo-down lock

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

demo: venv ## the whole chain on this machine: image, a fleet of three nodes, rollout, a completion from each
	@$(VENV)/bin/python deploy/demo/demo.py

demo-fault: venv ## rehearse a node that fails its self-test: make demo-fault FAULT=scale
	@$(VENV)/bin/python deploy/demo/demo.py --fault "$(FAULT)"

demo-down: venv ## remove everything that the demo made
	@$(VENV)/bin/python deploy/demo/demo.py --down

lock: venv ## the hash-locked requirement files, from their .in files
	@$(VENV)/bin/python images/lock.py
