# `make repro` and `make test` need nothing but Python 3.11 or newer, make and git: each sets up .venv first.
SHELL := /bin/bash
ifeq ($(origin PYTHON),undefined)
PYTHON := $(or $(shell command -v python3.11),python3)
endif
# What is named on the command line is text and may hold anything: make does not expand it (a `$` is a `$`), and recipes
# get it by the environment, where they quote it. TORCH_INDEX: where pip finds torch, e.g. PyTorch's own index of CPU
# builds (see pytorch.org).
GIVEN := BASE DATASET DATASETS FILE INTO KEY LANES ONLY PRESET PYTHON REMOTE ROOT STUDY TORCH_INDEX URL
$(foreach name,$(GIVEN),$(if $(filter-out undefined,$(origin $(name))),\
  $(eval override $(name) := $$(value $(name)))$(eval export $(name))))
export PATH := $(CURDIR)/.venv/bin:$(value PATH)
export PYTHONPATH := $(CURDIR)
# The name carries both lock files' checksums: times say nothing after a clone, a linked .venv or a change of branch.
STAMP := .venv/.installed-$(firstword $(shell cksum requirements.lock requirements-cuda.lock | cksum))
EXTRA := $(firstword $(shell cksum requirements-extra.lock | cksum))
# For commands that take PRESET=<name>: they run in the folder of its run
IN_RUN = $(if $(PRESET),run="$${PRESET##*/}"; run="runs/$${run%.*}"; \
  [[ "$$run" =~ ^runs/[A-Za-z0-9_-]+$$ && -d "$$run" ]] || { \
  echo "there is no run of $$PRESET ($$run): make run PRESET=$$PRESET"; exit 1; }; cd "$$run" && \
  { diff -rq -x __pycache__ "$$PYTHONPATH/stages" stages >/dev/null 2>&1 || echo "$$run has another version of the code; it \
  answers here and may lack a command: make run PRESET=$$PRESET brings it to this one" >&2; } &&)
# DATASETS that is given empty is a mistake, and handed on
PRESETS = python -m stages.pipeline.preset $${DATASETS+--datasets="$$DATASETS"}

.PHONY: help setup extra repro test test-slow test-extra test-portable soak lint fetch run params audit changes metrics prune remote push pull crate keep readme parity bench trials maps integers demo phone
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## install the pinned packages into .venv; a second call installs nothing

$(STAMP):
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed: make setup PYTHON=<path>"; exit 1; }
	@test -x .venv/bin/python || "$$PYTHON" -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check \
	  $${TORCH_INDEX:+--extra-index-url "$$TORCH_INDEX"} -r requirements.lock -c requirements-cuda.lock
	@rm -f .venv/.installed-* && touch $@

repro: setup  ## run the pipeline: whatever changed, and what follows from it (LANES=<stages at a time>, STRICT=1)
	@python -m stages.pipeline.repro $${LANES:+--lanes "$$LANES"}
	@echo "report: reports/index.html"

test: setup  ## tests, without the slow ones, a process a core (four at most), each with one thread
	@OMP_NUM_THREADS=1 python -m pytest -q -rs -m "not slow and not extra and not portable" --numprocesses auto --maxprocesses 4 --dist worksteal

test-slow: setup  ## whole runs of the smoke preset, kills, edits while a stage runs
	@python -m pytest -q -rs -m slow

test-portable: setup  ## the same bytes on another processor: needs qemu-user (apt-get install qemu-user), minutes
	@python -m pytest -q -rs -m portable

soak: setup  ## kills, edits and races, for about two hours: is anything lost or forged? (writes reports/soak.md)
	@PYTHONPATH="$$PYTHONPATH:tests" python -m soak

lint: setup  ## ruff and mypy
	@ruff check .
	@ruff format --check .
	@mypy

fetch: setup  ## what a data set's owner ships: make fetch DATASET=chestxray14 ROOT=<folder> [URL=<address>]
	@python -m stages.pipeline.fetch --dataset="$$DATASET" --root="$$ROOT" --url="$$URL"

run: setup  ## a preset in runs/: make run PRESET=<name, or path of yours> [ROOT=<folder>] [DATASETS=<name>,<name>]
	@$(PRESETS) --root="$$ROOT" -- "$$PRESET"

params: setup  ## print params.yaml, or with PRESET=... the whole that the preset runs with
	@$(PRESETS) --print -- "$$PRESET"

audit: setup  ## is this checkout what dvc.lock and git say, byte by byte (QUICK=1: unread); FILE=... [KEY=...]: where a file or a number in it comes from, in short (WHOLE=1, JSON=1) (PRESET=... for a run's)
	@[[ -z "$$KEY" || -n "$$FILE" ]] || { echo "KEY is of a file: add FILE=<path>"; exit 1; }
	@$(IN_RUN) python -m $(if $(FILE),stages.pipeline.origin $(if $(JSON),--json ,$(if $(WHOLE),--whole ))--key="$$KEY" -- "$$FILE",$(if $(QUICK),stages.pipeline.lock check,stages.pipeline.audit))

changes: setup  ## what moved since another commit, and is it noise: make changes BASE=origin/main (after make repro)
	@python -m stages.pipeline.changes --base="$$BASE" $${INTO:+--into="$$INTO"}

metrics: setup  ## for CI: bring what REMOTE=<URL> has, run what changed, tell what moved since BASE (INTO=<file to append to>)
	@if [[ -n "$$REMOTE" ]]; then $(MAKE) --no-print-directory extra && python -m stages.pipeline.remote add -- "$$REMOTE" \
	  && { python -m stages.pipeline.remote pull || echo "what is missing is made again"; }; fi
	@$(MAKE) --no-print-directory repro
	@$(MAKE) --no-print-directory changes

prune: setup  ## drop files and lock entries of cells that params.yaml no longer declares (PRESET=... for a run's)
	@$(IN_RUN) python -m stages.pipeline.lock prune

extra: setup  ## install beside them what remotes on S3 and SSH, make crate and make phone need
	@test -f .venv/.extra-$(EXTRA) || { .venv/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-extra.lock -c requirements.lock && touch .venv/.extra-$(EXTRA); }

test-extra: extra  ## their tests: a bucket and an SSH server on loopback, whole crates, programs for phones
	@python -m pytest -q -rs -m extra

remote: setup  ## keep results elsewhere: make remote URL=<folder, s3://..., ssh://...>; then make push, make pull
	@python -m stages.pipeline.remote add -- "$$URL"

push: setup  ## send results, and what is known of runs, to the remote
	@python -m stages.pipeline.remote push

pull: setup  ## bring them from there, each checked by its hash
	@python -m stages.pipeline.remote pull

crate: extra  ## the run as an archive for others, who can check it without this repository: crate.zip (PRESET=... for a run's)
	@$(IN_RUN) python -m stages.pipeline.crate

keep: setup  ## take over the page of a preset's finished run into reports/: make keep PRESET=nih_sample
	@python -m stages.pipeline.by_hand keep -- "$$PRESET"

readme: setup  ## copy the reports' result tables into README.md
	@python -m stages.pages.readme

bench: setup  ## speed and memory as ratios to other people's code: reports/bench.md (ONLY=labels, ingest, training, judging, device or pinning)
	@python -m benchmarks $${ONLY:+--only="$$ONLY"}

trials: setup  ## try rates and constants of twin and losses on validation films (STUDY=<name>; hours; after make repro)
	@$(IN_RUN) python -m benchmarks.trials --into "$$PYTHONPATH/reports/choices" -- "$${STUDY:-drawn}"

maps: setup  ## which explainer, and which layer, maps should come from, on validation films (after make repro)
	@$(IN_RUN) python -m benchmarks.maps

integers: setup  ## can the exported student compute in whole numbers: fine-tuned for that, on validation films (after make repro)
	@$(IN_RUN) python -m benchmarks.integers

demo: setup  ## the exported student in a web page, served on loopback: reports/demo (fetches onnxruntime-web from npm once)
	@$(IN_RUN) python -m stages.demo

phone: extra  ## the exported student for ExecuTorch (Android, iOS): data/phone (PRESET=... for a run's)
	@$(IN_RUN) python -m stages.phone

parity: setup  ## compare labels with torchxrayvision's on the whole real tables: reports/parity.md
	@python tests/parity.py
