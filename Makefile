# Needs python3 ≥ 3.11 and make; everything else goes into .venv. `make help` lists the targets.
PYTHON  ?= python3
JOBS    ?= 3
STUDY   ?= lr_transfer
PROFILE ?= smoke
PYTHON_VERSION ?= 3.12
WITH    ?=
TESTS   ?=
OFFLINE ?=
ONLY    ?=
MATRIX_TESTS ?=
MINUTES ?= 9
LIST    ?=
REHEARSE ?=
PACK    ?=
FROM    ?= build/h100/pack

VENV := $(if $(OFFLINE),.venv-offline,.venv)
BIN  := $(VENV)/bin
PY   := $(BIN)/python
PIP  := $(PY) -m pip install -qq --disable-pip-version-check
# Set-up is done when the stamp of these very requirements is there.
KEY  := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
READY := $(VENV)/.ready-$(KEY)
STEP := $(PYTHON) scripts/steps.py
SITE := book/_build/html/index.html

export MPLBACKEND = Agg
# Hundreds of processes import the library: each would compile its source anew.
unexport PYTHONDONTWRITEBYTECODE
export UMUP_TEST_IN_HASTE ?= 1
export PYDEVD_DISABLE_FILE_VALIDATION = 1

.PHONY: help setup book test matrix study h100 h100-merge notebook gpu-compiler lint format wheelhouse bench constraints clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'
	@echo "  OFFLINE=1 with setup, study, h100, test, bench: packages from ./wheelhouse, JAX from the box"

setup: $(READY) ## .venv with umup and its packages
	@echo "$(VENV) is ready"

book: $(READY) ## every study live at smoke, pages from records, the site, checked in a browser
	@$(STEP) book 1 -- $(PY) -m umup.cli book
	@$(STEP) book 2 -- $(PY) -m pytest -m browser $(TESTS) tests
	@echo "The book: $(SITE)"

test: $(READY) ## every test, and the notebooks re-executed and compared
	@$(if $(wildcard $(SITE)),,echo "The browser tests need the built book: make book runs them.")
	@$(STEP) test 1 -- $(PY) -m pytest -n $(JOBS) --dist loadfile --nbval --nbval-current-env \
		$(if $(wildcard $(SITE)),,-m "not browser") $(TESTS) \
		$(if $(filter tests/% experiments/%,$(TESTS)),,tests $(wildcard experiments/*/study.ipynb))

matrix: ## make test on other instruction sets, threads, Pythons: ONLY="avx2 3.12" MATRIX_TESTS="-k x"
	@$(PYTHON) scripts/matrix.py $(if $(ONLY),--only $(ONLY)) -- $(MATRIX_TESTS)

study: $(READY) ## one study: STUDY=lr_transfer PROFILE=smoke|cpu|h100
	@$(PY) -m umup.cli run $(STUDY) --profile $(PROFILE)

h100: $(READY) ## so many MINUTES of the queue on a GPU: ONLY="proof" PACK=DIR; LIST=1; REHEARSE=1 without GPU
	@$(PY) -m umup.slices.h100 --minutes $(MINUTES) $(if $(ONLY),--only $(ONLY)) $(if $(PACK),--pack $(PACK)) \
		$(if $(LIST),--list) $(if $(REHEARSE),--rehearse)

h100-merge: $(READY) ## what a slice packed, into the records: FROM=DIR
	@$(PY) -m umup.slices.h100 --merge $(FROM)

notebook: $(READY) ## study.ipynb anew from study.py and the records: STUDY=lr_transfer, or all
	@$(PY) -m umup.lab.notebook $(STUDY)

gpu-compiler: $(READY) ## XLA's compiler for NVIDIA GPUs, to compile for some that are not there
	@$(PY) -m umup.plan.compiler

lint: $(READY) ## ruff and pyright
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

format: $(READY) ## ruff's fixes and layout
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

wheelhouse: $(READY) ## ./wheelhouse for a GPU box without network: PYTHON_VERSION=3.12 WITH="pyarrow"
	@$(STEP) wheelhouse 1 -- $(PY) scripts/wheelhouse.py wheelhouse $(PYTHON_VERSION) "$(WITH)"

bench: $(READY) ## step times beside PyTorch's unit_scaling, lanes, compile time, memory
	@$(if $(OFFLINE),,$(PIP) -c constraints.txt -e '.[bench]')
	@$(PY) -m umup.cli bench

constraints: $(READY) ## resolve every version anew
	@$(PY) scripts/constraints.py

clean: ## remove what was built; records stay
	rm -rf .venv .venv-offline .cache build book/_build wheelhouse lib/*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

ifeq ($(OFFLINE),)
$(READY):
	@$(STEP) setup 1 -- $(MAKE) --no-print-directory install
	@rm -f $(VENV)/.ready-* && touch $@
endif

.PHONY: install
install:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "umup needs Python >= 3.11, \
	this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "No venv: on Debian, apt-get install python3-venv"; exit 1; }
	@$(PIP) -c constraints.txt -e '.[book,dev,slurm]'

# The box's own packages stay as they are: only what is missing comes from the wheelhouse. A box
# whose python3 is itself a virtual environment shows its packages through the .pth file.
.venv-offline/.ready-$(KEY): scripts/missing.py $(wildcard wheelhouse/*.whl)
	@test -n "$(wildcard wheelhouse/umup-*.whl)" || \
		{ echo "No ./wheelhouse: run make wheelhouse where there is a network, and bring it."; exit 1; }
	@$(PYTHON) -m venv --clear --system-site-packages .venv-offline
	@$(PYTHON) -c 'import sys; print(*(f"import site; site.addsitedir({p!r})" for p in sys.path \
		if p.endswith(("site-packages", "dist-packages"))), sep="\n")' \
		> "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_box.pth"
	@$(PY) scripts/missing.py wheelhouse > .venv-offline/wheels.txt
	@test ! -s .venv-offline/wheels.txt || $(PIP) --no-index --no-deps -r .venv-offline/wheels.txt
	@$(PIP) --no-index --no-deps --no-build-isolation -e .
	@echo "Installed from ./wheelhouse: umup and $$(grep -c whl .venv-offline/wheels.txt) packages;" \
		"the box's own are untouched."
	@touch $@
