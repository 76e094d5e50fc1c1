PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?= 8000
DEMO_ARGS ?=
BENCH_ROWS ?= 1000000
BENCH_ARGS ?=
ENGINE ?= cpu
EXTRAS ?=
TEST_PROCESSES ?= 2
SLOW_PROCESSES ?= 3
TRY_ARGS ?=
VERSIONS_ARGS ?=
# The tests of a file share its fixtures, so they stay in one process; TEST_PROCESSES=8 on a larger machine. Tests start
# hundreds of processes, each of which would compile every module where Python may not write what it has compiled.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -q --dist loadfile --no-loadscope-reorder --numprocesses

.PHONY: demo test check check-types check-tests check-slow audit format bench-serving bench-added-latency bench-bulks bench-events bench-faults bench-filters bench-fit bench-index bench-kinds bench-lists bench-method bench-sasrec bench-shop bench-swap bench-soak bench-workers fuzz site images sbom secrets demo-bundle try-compose clean bench-connections test-chart check-versions check-gpu bench-queueing bench-heads bench-instructions check-engines engines

# Builds the demo catalogue, trains, indexes and serves it; Ctrl-C ends everything it started.
demo: $(VENV)/.installed
	@exec $(BIN)/vlm2rec demo .demo --port $(PORT) $(DEMO_ARGS)

test: $(VENV)/.installed
	@$(MAKE) --no-print-directory check

# The one gate: format, lint, strict types, import contracts, tests with warnings as errors. Tests wait for other processes a
# fifth of the time, in which mypy runs. COVERAGE=1 measures branch coverage too, as .ci/run does: over half as long again.
check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python .ci/rooms.py
	$(BIN)/python .ci/words.py
	@$(MAKE) --no-print-directory --jobs=2 check-types check-tests

check-types:
	$(BIN)/mypy

check-tests:
	$(PYTEST) $(TEST_PROCESSES) -m "not slow" $(if $(COVERAGE),--cov --cov-report=term:skip-covered --cov-fail-under=90)

# With them, those that need a program beyond the install: they are skipped on a PATH that has none. More
# processes than cores, since many slow tests wait for a load of seconds, or for a program.
check-slow:
	$(PYTEST) $(SLOW_PROCESSES) -m "slow or program"

# Packages of Milvus and Ray, half a gigabyte, which the installation for tests leaves out.
engines: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints/cpu.txt --editable '.[milvus-test,ray]'

# The tests of Milvus and Ray. Those of the workers without Ray run with the others.
check-engines: engines
	$(PYTEST) $(SLOW_PROCESSES) tests/service/retrieval $(wildcard tests/training/*/test_*ray*_slow.py tests/training/*/*/test_ray*_slow.py)

# A part of the fast tests with Python 3.12 and 3.13 where there are such interpreters: minutes to install, into .venvs.
check-versions:
	$(PYTHON) .ci/python_versions.py $(VERSIONS_ARGS)

# The extra `gpu` without a GPU, in an environment of its own: imports, the error of VLM2REC_DEVICE=cuda, VLM2REC_DEVICE=auto,
# benches at toy size on the CPU. About 2 GB to install, into .venvs.
check-gpu: $(VENV)/.installed
	$(BIN)/python .ci/gpu_engines.py

# Known vulnerabilities of the pinned versions. `.ci/audit.py` ends with 1 on a finding and with 3 where it could not ask.
audit:
	$(PYTHON) .ci/audit.py constraints/cpu.txt

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Never part of CI: times depend on the machine, only ratios within one file can be compared. Goes on where it ended.
bench-serving: $(VENV)/.installed
	$(BIN)/python -m bench.serving.serving $(BENCH_ARGS)

# Latency, path and recall of filters from one row to all; BENCH_ROWS=50000 for a quick look.
bench-filters: $(VENV)/.installed
	$(BIN)/python -m bench.index.filters --rows $(BENCH_ROWS)

# An epoch of the sequence encoder over a million interactions: less than a minute on two cores.
bench-fit: $(VENV)/.installed
	$(BIN)/python -m bench.index.fit_epoch $(BENCH_ARGS)

# A million items: about ten minutes to build on two cores, 3 GB of disk in .bench, kept for the next run.
bench-index: $(VENV)/.installed
	$(BIN)/python -m bench.index.index_1m $(BENCH_ARGS)

# Libraries and layouts beside the product's graph, in turns, in an environment of their own (hnswlib needs a C++ compiler);
# BENCH_ARGS="--items 1000000" takes hours. Goes on where it ended.
bench-kinds: $(VENV)/.installed
	$(BIN)/python -m bench.index.kinds $(BENCH_ARGS)

# What item-to-item lists cost: of a search in one process, then of the throughput of the service; about ten minutes.
bench-lists: $(VENV)/.installed
	$(BIN)/python -m bench.index.list_cost $(BENCH_ARGS)
	$(BIN)/python -m bench.serving.lists $(BENCH_ARGS)

# One, two and four worker processes beside the echo: about seven minutes.
bench-workers: $(VENV)/.installed
	$(BIN)/python -m bench.serving.workers $(BENCH_ARGS)

# Instructions of an answer under Valgrind, which other load of the machine does not change: about three minutes.
bench-instructions: $(VENV)/.installed
	$(BIN)/python -m bench.instructions.instructions $(BENCH_ARGS)

# How evenly the workers share few long-lived connections, also after a death: about five minutes.
bench-connections: $(VENV)/.installed
	$(BIN)/python -m bench.serving.connections $(BENCH_ARGS)

# What balancing text and picture is worth: dozens of training runs, hours, never part of CI. Killed at any moment it goes on
# where it was; BENCH_ARGS="--jobs 4 --threads 2", or --smoke for two minutes.
bench-method: $(VENV)/.installed
	$(BIN)/python -m bench.method.method $(BENCH_ARGS)

# A simulated shop whose truth is known: types, attribution, an experiment and 200 A/A tests; some ten minutes. Goes on
# where it ended.
bench-shop: $(VENV)/.installed
	$(BIN)/python -m bench.load.simulated_shop $(BENCH_ARGS)

# What event types, outcomes and an exporter cost, beside the service of an earlier checkout; about 20 minutes, goes on where it
# ended. BENCH_ARGS="--baseline ../before", a git worktree of the commit to compare with.
bench-events: $(VENV)/.installed
	$(BIN)/python -m bench.events.cost $(BENCH_ARGS)

# Bulks alone, all services started at once, in turns of seconds: ten minutes.
bench-bulks: $(VENV)/.installed
	$(BIN)/python -m bench.events.bulk_rates $(BENCH_ARGS)

# What they add to the p50 of a recommendation, request by request: seven minutes.
bench-added-latency: $(VENV)/.installed
	$(BIN)/python -m bench.events.added_latency $(BENCH_ARGS)

# Five swaps, two of them of damaged bundles, under 300 requests a second: about two minutes; takes --workers 2 too.
bench-swap: $(VENV)/.installed
	$(BIN)/python -m bench.load.swap $(BENCH_ARGS)

# Thirty minutes of mixed load with swaps and a Redis that restarts; BENCH_ARGS="--minutes 2" for a quick look;
# this one, `fuzz` and `bench-faults` take --workers 2 too.
bench-soak: $(VENV)/.installed
	$(BIN)/python -m bench.load.soak $(BENCH_ARGS)

# The simulation of `vlm2rec plan` beside the service: p99 at three rates, on a quiet machine; about ten minutes.
bench-queueing: $(VENV)/.installed
	$(BIN)/python -m bench.capacity.queueing $(BENCH_ARGS)

# Losses on frozen backbones with several seeds, on a data set of your own; minutes a unit, needs the extra `towers`:
# make bench-heads BENCH_ARGS="DATA --work .bench/heads/NAME"
bench-heads: $(VENV)/.installed
	$(BIN)/python -m bench.method.heads $(BENCH_ARGS)

# RecTools' SASRec on item ids, in an environment of its own, as a row for `vlm2rec evaluate --ranks`:
# make bench-sasrec BENCH_ARGS="DATA --interactions FILE --out ranks.parquet"
bench-sasrec: $(VENV)/.installed
	$(BIN)/python -m bench.method.sasrec $(BENCH_ARGS)

# schemathesis on every operation, at least 20,000 requests, and garbage below HTTP: about five minutes; goes on where it ended.
fuzz: $(VENV)/.installed
	$(BIN)/python -m bench.faults.fuzz $(BENCH_ARGS)

# Redis and the service killed, stopped, filled and restarted under 300 requests a second: about two minutes.
bench-faults: $(VENV)/.installed
	$(BIN)/python -m bench.faults.faults $(BENCH_ARGS)

# The documentation, built strictly: a broken link ends it.
site: $(VENV)/.installed
	$(BIN)/mkdocs build --strict --quiet

# The two images, for a CPU; ENGINE=gpu for a GPU. A CPU build of torch in wheels/ saves gigabytes: docs/operating.md.
images:
	docker build --target serve --build-arg ENGINE=$(ENGINE) --build-arg EXTRAS="$(EXTRAS)" --tag vlm2rec:serve .
	docker build --target train --build-arg ENGINE=$(ENGINE) --build-arg EXTRAS="$(EXTRAS)" --tag vlm2rec:train .

# What the images hold, as CycloneDX; made by their own build.
sbom:
	@mkdir -p build
	docker run --rm --entrypoint cat vlm2rec:serve /opt/vlm2rec/sbom.cdx.json > build/sbom-serve.cdx.json
	docker run --rm --entrypoint cat vlm2rec:train /opt/vlm2rec/sbom.cdx.json > build/sbom-train.cdx.json

# Random keys and a Redis password for docker-compose.secrets.yml; never overwrites.
secrets:
	@sh ops/make-secrets.sh

# The bundle that `docker compose up` starts with, from what `make demo` built.
demo-bundle: $(VENV)/.installed
	$(BIN)/vlm2rec demo .demo --port $(PORT) --exit-after-check
	sh ops/demo-bundle/pack.sh .demo/bundles

# docker-compose.yml for real: up, restart, kills, replicas, training, re-index. Needs Docker and the images; five minutes.
try-compose:
	ops/try-compose.sh $(TRY_ARGS)

# The Helm chart: rendered by helm and held against the API of Kubernetes; fetches both tools into .helm.
test-chart: $(VENV)/.installed
	sh ops/helm/get-tools.sh .helm
	PATH=$(CURDIR)/.helm/bin:$$PATH $(BIN)/pytest -q tests/ops/test_chart.py

clean:
	rm -rf .helm .audit .bench .demo .screenshots .site build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# Compiled on all cores, which pip does on one; a few files of packages are templates and cannot be compiled. Stamped last, so
# that an install which was broken off is done again.
$(VENV)/.installed: pyproject.toml constraints/cpu.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints/cpu.txt --editable '.[cpu,train,demo,dev]'
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@touch $@
