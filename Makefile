# `make demo` and `make test` set up their own virtual environment; nothing needs to be installed before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/tf-unravel
DEMO := runs/demo
MINUTES ?= 12
OLDEST ?= python3.10

.PHONY: demo test test-report test-long test-lowest fuzz lint docs benchmark clean
.DEFAULT_GOAL := demo

$(VENV)/installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/installed
	$(RUN) train --gin_file=gin/run/demo_classical.gin --run_dir=$(DEMO)/classical
	$(RUN) train --gin_file=gin/run/demo_feature_clustering.gin --run_dir=$(DEMO)/feature_clustering
	$(RUN) train --gin_file=gin/run/demo_hyperplane_variation.gin --run_dir=$(DEMO)/hyperplane_variation
	$(RUN) measure --run_dir=$(DEMO)/classical,$(DEMO)/feature_clustering,$(DEMO)/hyperplane_variation --out=$(DEMO)
	$(RUN) evaluate --run_dir=$(DEMO)/classical,$(DEMO)/feature_clustering,$(DEMO)/hyperplane_variation --out=$(DEMO)
	@echo "Figures and tables: $(DEMO). Curves: $(BIN)/tensorboard --logdir $(DEMO)"

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# The paper's report from nothing, at the smoke scale: a part of test-long that CI runs too.
test-report: $(VENV)/installed
	$(BIN)/python -m pytest -m long tests/reproduction/test_report.py tests/reproduction/test_report_in_browser.py

test-long: $(VENV)/installed
	$(BIN)/python -m pytest -m long

# The lowest versions that pyproject.toml allows, on the oldest Python it allows: make test-lowest OLDEST=python3.10
test-lowest:
	$(OLDEST) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install --quiet uv
	$(VENV)-lowest/bin/uv pip install --quiet --python=$(VENV)-lowest/bin/python --resolution=lowest-direct --editable '.[test]'
	$(VENV)-lowest/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Minutes for each parser of user data: make fuzz MINUTES=1
fuzz: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.fuzz --minutes=$(MINUTES)

$(VENV)/lint-installed: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[lint]'
	touch $@

lint: $(VENV)/lint-installed docs
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/lint-installed
	$(BIN)/properdocs build --strict --quiet

benchmark: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[benchmark]'
	$(RUN) benchmark

clean:
	rm -rf $(VENV) $(VENV)-lowest build site .mypy_cache *.egg-info
