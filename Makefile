# One page of commands; `make help` lists them. What each needs from the machine, `make setup` brings.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

tools := $(or $(LOGSTER_TOOLS),$(CURDIR)/.tools)
setup := deploy/setup/setup.sh

# What the tests find their services by.
export LOGSTER_ONNXRUNTIME ?= $(tools)/onnxruntime/libonnxruntime.so.1.31.1
export LOGSTER_KAFKA_CLUSTER ?= $(CURDIR)/deploy/kafka/cluster.sh
export LOGSTER_CORPUS ?= $(abspath ../shared/corpus)

cargo_flags := --release --locked --workspace
# A failing property test fails again; `make fuzz` draws new cases each time.
seed := 20261121

.NOTPARALLEL: # cargo takes every core already

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install and verify what builds and tests need (idempotent)
	@$(setup)

.PHONY: build
build: ## Build the release binary, target/release/logster
	@$(setup) build-packages
	cargo build --release --locked

.PHONY: demo
demo: ## Build, then run the embedded demo: no broker, no Java
	@$(setup) build-packages onnxruntime
	cargo build --release --locked
	target/release/logster demo

.PHONY: lint
lint: ## Check formatting, clippy and shell scripts
	cargo fmt --all --check
	cargo clippy $(cargo_flags) --all-targets -- -D warnings
	for script in $$(git ls-files '*.sh' .ci/run); do bash -n "$$script"; done
	deploy/check.sh
	! command -v shellcheck >/dev/null || shellcheck --severity warning $$(git ls-files '*.sh' .ci/run)

.PHONY: test
test: setup lint ## Set up, lint, then run every test, against real Kafka brokers too
	deploy/kafka/test.sh
	@[ -d "$$LOGSTER_CORPUS" ] || echo "note: no corpus at $$LOGSTER_CORPUS (set LOGSTER_CORPUS)"
	PROPTEST_RNG_SEED=$(seed) cargo test $(cargo_flags) --no-fail-fast

.PHONY: chaos
chaos: setup ## Seeded faults against real brokers: CHAOS_SEED=1 CHAOS_FAULTS=100 CHAOS_BROKERS=1,3
	cargo test $(cargo_flags) --test end_to_end -- --ignored --nocapture --test-threads 1 --skip overload

.PHONY: overload
overload: setup ## Five times the input that a run can take (OVERLOAD_SECONDS=600); loud and late hosts
	cargo test $(cargo_flags) --test end_to_end -- --ignored --nocapture --test-threads 1 overload

.PHONY: bench
bench: setup ## Measure each stage on real captures, beside the peers, in one run
	cargo build --release --locked
	deploy/bench.sh

.PHONY: train
train: ## Train and export the model packages (models/train.sh)
	@$(setup) build-packages onnxruntime
	@[ -x models/train.sh ] || { echo "models/train.sh is missing" >&2; exit 1; }
	models/train.sh

.PHONY: fuzz
fuzz: ## Property tests with FUZZ_CASES=20000; where cargo-fuzz and a nightly Rust are, each parser for FUZZ_SECONDS=60
	@$(setup) build-packages onnxruntime
	PROPTEST_CASES=$${FUZZ_CASES:-20000} cargo test $(cargo_flags) --lib --bins
	@cargo +nightly fuzz --version >/dev/null 2>&1 || echo "note: no cargo-fuzz (cargo install cargo-fuzz) or no nightly Rust: libFuzzer left out"
	! cargo +nightly fuzz --version >/dev/null 2>&1 || for target in normalize json encoding auditd ebpf; do \
	    (cd operators/fuzz && cargo +nightly fuzz run $$target -- -max_total_time=$${FUZZ_SECONDS:-60}); \
	done

.PHONY: clean
clean: ## Remove build outputs and .tools
	cargo clean
	rm -rf .tools out
