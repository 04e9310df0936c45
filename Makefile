# `make` shows what there is. Two commands set up everything: `make demo` and `make test`.
PYTHON ?= python3
PLATFORM ?= cpu
VENV := .venv

.DEFAULT_GOAL := help
.PHONY: help venv engine image images lock

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: ## .venv with the locked tools that build images and run playbooks
	@$(PYTHON) images/venv.py $(VENV) deploy/requirements.txt

engine: ## a running container engine (Debian, Ubuntu as root: installed and started where none answers)
	@$(PYTHON) images/engine.py ensure

image: venv ## the image of one platform: make image PLATFORM=cpu
	@$(VENV)/bin/python images/build.py "$(PLATFORM)"

images: venv ## every image that can be built today
	@$(VENV)/bin/python images/build.py --all

lock: venv ## the hash-locked requirement files, from their .in files
	@$(VENV)/bin/python images/lock.py
