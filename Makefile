# Every target sets up what it needs, once.
#
#     make demo     every experiment on built-in street scenes, then the report
#     make tables GTA5=DIR CITYSCAPES=DIR     the assignment's tables on real data, then the report
#         SEEDS="0 1 2"  ROWS=assignment, report or all  FLAGS="--batch-size 4": flags of every training script
#     make style    ruff alone
#     make quick    style, and the tests that are not marked slow: the loop while you work
#     make test     style and every test
#     make exports  the tests of exported files and videos, with what they need (requirements-deploy.txt)
#     make gpu      on a machine with a GPU: its tests, speed and memory; without one, what that would be
#
# Tests run in as many processes as there are cores, 4 at most: make test TEST_PROCESSES=2 for another number.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
DEMO := runs/demo

.PHONY: demo tables style quick test exports gpu

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# Tests run without what is optional, so nothing fails where it cannot be installed.
.venv/installed-dev: requirements-dev.txt .venv/installed
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt && touch $@ \
		|| echo "requirements-dev.txt could not be installed: going on without it"

style: .venv/installed
	$(BIN)/ruff check .

# Plain pytest where pytest-xdist could not be installed.
TEST_PROCESSES ?= $(shell $(RUN) -c 'import os; print(min(4, os.cpu_count() or 1))')
PYTEST = $(RUN) -m pytest $(shell $(RUN) -c 'import xdist' 2> /dev/null && echo --numprocesses $(TEST_PROCESSES) --dist worksteal)

quick: style .venv/installed-dev
	$(PYTEST) -m "not slow"

test: style .venv/installed-dev
	$(PYTEST)

# Without these packages `make test` skips them.
exports: .venv/installed-dev
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-deploy.txt
	$(PYTEST) -rs tests/test_export.py tests/test_video.py tests/test_benchmarks.py tests/test_cuda_path.py \
		-k "export or video or runtimes"

# What is measured already is not measured again.
gpu: .venv/installed-dev
	@$(RUN) benchmarks/gpu.py

SEEDS ?= 0
ROWS ?= assignment
export GTA5 CITYSCAPES
tables: .venv/installed
	@$(RUN) tables.py --seeds $(SEEDS) --rows $(ROWS) -- $(FLAGS)

# An interrupted demo goes on where it stopped.
RUNS := upper-bound source-only adversarial adversarial-depthwise fda dacs
COSTS := $(DEMO)/counts.json $(DEMO)/times.json
demo: $(RUNS:%=$(DEMO)/%/result.json) $(DEMO)/adabn.json $(COSTS)
	@$(RUN) report.py $(RUNS:%=$(DEMO)/%) $(DEMO)/adabn.json $(COSTS) --out report

$(DEMO)/upper-bound/result.json: | .venv/installed
	$(RUN) train_cityscapes.py --demo --run-dir $(@D) --resume

$(DEMO)/source-only/result.json: | .venv/installed
	$(RUN) train_gta5.py --demo --run-dir $(@D) --resume

$(DEMO)/adversarial/result.json: | .venv/installed
	$(RUN) train_adversarial.py --demo --run-dir $(@D) --resume

$(DEMO)/adversarial-depthwise/result.json: | .venv/installed
	$(RUN) train_adversarial.py --demo --discriminator depthwise --run-dir $(@D) --resume

$(DEMO)/fda/result.json: | .venv/installed
	$(RUN) train_fda.py --demo --run-dir $(@D) --resume

$(DEMO)/dacs/result.json: | .venv/installed
	$(RUN) train_dacs.py --demo --run-dir $(@D) --resume

# Counts at the size of the published ones; times at half that side, since DeepLabV2 takes seconds on a CPU.
$(DEMO)/counts.json: | .venv/installed
	@mkdir -p $(@D)
	$(RUN) measure_flops.py --no-latency --json $@

$(DEMO)/times.json: | .venv/installed
	@mkdir -p $(@D)
	$(RUN) measure_flops.py --size 512x256 --runs 3 --json $@ > /dev/null

$(DEMO)/adabn.json: $(DEMO)/source-only/result.json
	$(RUN) eval.py $(DEMO)/source-only/checkpoint_last.pt --adapt-bn --json $@ --force
