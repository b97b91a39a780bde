# What people type. Everything that is needed beyond Rust and Python is installed by scripts/, pinned, under .tools/.

# A folder a checkout: cargo takes two clones of one workspace for the same, and would mix what it compiled for each.
export CARGO_TARGET_DIR ?= $(CURDIR)/target

# Cargo is always called with --workspace below: it would otherwise choose other features for the same dependencies and
# compile them anew.

export PATH := $(CURDIR)/.tools/bin:$(PATH)

PROMPT ?= a 3d panda on a yellow background
# By the environment, not as a part of a shell's line: a prompt may hold quotes.
export PROMPT
MINUTES ?= 60
INKSTONE := $(CARGO_TARGET_DIR)/debug/inkstone

.PHONY: help demo up build test lint unit e2e test-siege chaos chaos-short clients schemathesis kms bench-health bench-edge bench-tasks bench-backlog bench-memory bench-engine bench-start fuzz-snapshots fuzz-edge test-arm64 cuda test-kernels bench-cuda tools test-tools docs install

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

tools: ## install the pinned tools that running needs
	@scripts/install-tools.sh nats

test-tools: tools
	@scripts/install-tools.sh nextest deny buf

build: tools
	@scripts/build.sh

demo: build ## draw PROMPT with the whole platform, once
	@exec $(INKSTONE) demo --prompt "$$PROMPT"

up: build ## run the platform until Ctrl-C
	@exec $(INKSTONE) up

install: build ## put `inkstone` into ~/.local/bin
	@mkdir -p $(HOME)/.local/bin && cp $(INKSTONE) $(HOME)/.local/bin/inkstone && echo "~/.local/bin/inkstone"

test: lint unit e2e chaos-short clients schemathesis kms ## everything that CI runs

lint: test-tools ## format, clippy, layers, tidiness, generated docs, protos, licences
	@scripts/lint.sh

unit: test-tools ## unit and integration tests of every crate
	cargo nextest run --workspace --filterset 'not package(e2e) and not (package(chaos) and kind(test))'

e2e: test-tools ## real processes, kill -9, bad input
	cargo build --workspace --bins
	cargo nextest run --workspace --filterset 'package(e2e)'

test-siege: test-tools ## a hundred thousand connections with half a head each, beside a caller who must be served (half a minute or more)
	cargo build --workspace --bins
	cargo nextest run --workspace --run-ignored only --no-capture --filterset 'package(e2e) and test(a_hundred_thousand_connections)'

chaos-short: test-tools ## a minute of random faults, the same each time, and proof of what held (docs/RELIABILITY.md)
	cargo build --workspace --bins
	cargo nextest run --workspace --filterset 'package(chaos) and kind(test)'

chaos: tools ## MINUTES of random faults, each time others (SEED=N for the same again, ARGS="--replay FILE")
	cargo build --workspace --bins
	@$(CARGO_TARGET_DIR)/debug/chaos --out $(CARGO_TARGET_DIR)/chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

clients: build ## the OpenAI, DashScope, Triton, KServe and gRPC clients that callers have, against a running platform
	@scripts/test-clients.sh

schemathesis: build ## the running server against its own OpenAPI document
	@scripts/schemathesis.sh

kms: test-tools ## auth against a server that speaks AWS KMS's protocol
	@scripts/test-kms.sh

bench-health: build ## /healthz latency while pictures are drawn (needs hey)
	@scripts/bench-health.sh

bench-edge: tools ## durable submissions a second, beside mosec and litserve answering nothing
	@scripts/bench-edge.sh

bench-tasks: tools ## tasks a second from submission to end with an engine that takes no time, beside Temporal
	@scripts/bench-tasks.sh

bench-backlog: test-tools ## a million waiting tasks: memory, restart, another tenant's turn, throughput
	cargo nextest run --release --workspace --test orchestrator --run-ignored only --no-capture --filterset 'package(orchestrator) & test(a_million_waiting)'

bench-memory: tools ## resident memory of each service
	cargo build --release --quiet --workspace --bins --examples
	$(CARGO_TARGET_DIR)/release/examples/memory

bench-engine: ## our engine beside diffusers, in one run (installs torch, 2 GB)
	@scripts/bench-engine.sh

bench-start: ## time and memory from process start to the first step, SDXL's size too (7 GB of scratch; ARGS="--keep")
	@scripts/bench-start.sh $(ARGS)

test-arm64: ## the engine's tests for arm64, in QEMU (Debian, as root; 20 minutes)
	@scripts/test-arm64.sh

fuzz-snapshots: ## a million snapshots that lie (two minutes)
	cargo build --workspace --example fuzz_snapshots
	@$(CARGO_TARGET_DIR)/debug/examples/fuzz_snapshots

fuzz-edge: ## a million altered inputs for each reader of what callers send (ARGS="INPUTS SEED TARGET")
	cargo build --workspace --bin fuzz-edge
	@$(CARGO_TARGET_DIR)/debug/fuzz-edge $(ARGS)

cuda: ## the worker for NVIDIA GPUs; no GPU is needed to build it (installs CUDA, 2 GB)
	@scripts/cuda/build.sh

test-kernels: ## the CUDA kernels, emulated on the CPU
	@scripts/cuda/test-kernels.sh

bench-cuda: ## the engine on a GPU, beside diffusers where it is (docs/CUDA.md)
	@scripts/cuda/bench.sh

docs: ## write docs/SETTINGS.md anew
	cargo xtask settings
