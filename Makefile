# The few commands one needs. On a fresh Debian 12 machine, as root, each target does its own set-up.
#   make demo       a three-host cluster, a volume, and what happens when hosts die
#   make demo-mysql MariaDB, WordPress and PostgreSQL on volumes, and what happens when their host dies
#   make test       the tests, under 10 minutes         make test-all   the long ones too
#   make check      format, lint, types, fast tests     make simulate [SEEDS=n] [SEED=first] [MINUTES=m]
#   make fuzz [SECONDS=n] [TARGET=name]   mutated bytes into every parser, what reaches new code further
#   make proto      what is generated from gateway/csi/csi.proto, after a change of it
#   make mutants    each planted bug must be caught: prints by what, and how soon; about 20 minutes
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
SYSTEM_PACKAGES := awscli binutils busybox-static dnsmasq-base docker.io e2fsprogs fio fuse3 g++ iproute2 iptables \
	libapr1 libnbd-bin libsasl2-2 libsvn1 mount python3 python3-libnbd python3-venv qemu-utils rclone \
	restic s3fs strace util-linux xfsprogs
# PHP's own web server serves WordPress; webfs only satisfies its package, which wants some, and is small.
DEMO_PACKAGES := default-mysql-client mariadb-server php php-cli php-mysql postgresql webfs wordpress \
	wordpress-theme-twentytwentythree
# These run on all cores at once; what kills hosts, mounts, or runs Mesos has the machine for itself.
PARALLEL := tests/unit tests/property tests/golden tests/fuzz tests/simulation tests/integration
pytest = $(BIN)/python -m pytest -q -m "$(1)" -n auto --dist worksteal $(PARALLEL); parallel=$$?; \
	$(BIN)/python -m pytest -q -m "$(1)" $(PARALLEL:%=--ignore=%) && exit $$parallel
export PYTHON
SEED ?= 0
SECONDS ?= 60

.PHONY: setup demo demo-mysql demo-packages test test-all fuzz mutants check lint format simulate proto lock bench clean
.DELETE_ON_ERROR:

setup: $(VENV)/.installed
	@packages/ensure $(SYSTEM_PACKAGES)

$(VENV)/.installed: requirements-dev.lock pyproject.toml packages/ensure
	@packages/ensure python3-venv
	@echo "setting up $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Moorage needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

demo: setup
	@$(BIN)/moorage demo

demo-mysql: setup demo-packages
	@$(BIN)/moorage demo-mysql

demo-packages:
	@packages/ensure $(DEMO_PACKAGES)

test: setup
	@$(call pytest,not slow and not mutants)

test-all: setup lint
	@$(call pytest,not mutants)

mutants: setup
	@PYTHONHASHSEED=0 $(BIN)/python -m tests.mutants --jobs 2 $(MUTANTS)

lint: setup
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

check: lint test

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

simulate: setup
	@$(BIN)/python -m moorage.simulation --seed $(SEED) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ONLY),--only $(ONLY)) $(if $(SHRINK),--shrink)

fuzz: setup
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED) $(if $(TARGET),--target $(TARGET))

bench: setup
	@$(BIN)/moorage bench block

proto: setup
	@$(BIN)/python -m grpc_tools.protoc -Igateway/csi --python_out=gateway/csi --pyi_out=gateway/csi csi.proto

lock: setup
	@$(BIN)/pip install --quiet uv
	@$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-emit-index-url -q --extra csi --extra s3 pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-emit-index-url -q --extra dev pyproject.toml -o requirements-dev.lock -c requirements.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
