# Builds, tests and measures Postrider. A new machine needs the Rust toolchain, git, make, python3 (with venv) and, for tests, etcd;
# what is missing is installed where that is possible.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO_DENY_VERSION := 0.20.2
TOOLS := $(CURDIR)/.tools
VENV := $(TOOLS)/venv
export PATH := $(TOOLS)/bin:$(HOME)/.cargo/bin:$(PATH)

# The simulation wants a runtime that takes a seed, so it is built apart.
SIMULATION := RUSTFLAGS='--cfg tokio_unstable' CARGO_TARGET_DIR=$${CARGO_TARGET_DIR:-target}/simulation \
	cargo run --quiet --profile simulation -p postrider-tests --features simulation --bin simulate --

# Scenarios and faults take turns under both runners; nextest sums up what failed at the end.
TEST := $$(cargo nextest --version >/dev/null 2>&1 && echo cargo nextest run || echo cargo test --no-fail-fast)

.PHONY: help demo test load chaos chaos-short upgrade simulation simulation-check simulation-bugs lint fmt clippy doc deny proto-lint build etcd nft faketime venv

help: ## Shows what can be made.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1|/' | column -t -s '|'

demo: ## Runs Postrider in one process with a receiver of its own, and shows each request as it arrives.
	cargo run -p postrider-standalone --bin postrider -- demo --once --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0

test: etcd nft faketime venv build simulation-check ## Runs all tests: a thousand simulated clusters, faults of real programs, units, architecture, scenarios on a real cluster.
	$(TEST) --workspace --test chaos -- $$(tests/chaos/short/unable.sh)
	$(TEST) --workspace

load: etcd ## Measures: make load ARGS='--mode unary --publishers 64' (see ARGS=--help).
	cargo build --release --workspace --bins
	$${CARGO_TARGET_DIR:-target}/release/load $(ARGS)

chaos: etcd ## Kills programs while they work, and judges what came of it: make chaos ARGS='--events 1000000 --kills 51 --rate 1000' (see ARGS=--help).
	cargo build --release --workspace --bins
	$${CARGO_TARGET_DIR:-target}/release/chaos $(ARGS)

chaos-short: etcd nft faketime build ## The faults of real programs alone, one after the other: about 9 minutes.
	$(TEST) --workspace --test chaos

# The other revision is built from a copy, in a folder of its own.
OTHER := $${CARGO_TARGET_DIR:-target}/other

upgrade: etcd ## Replaces a cluster of another revision by one of this, and back, under load: make upgrade FROM=HEAD~20
	rm -rf $(OTHER)/source && mkdir -p $(OTHER)/source
	git archive $(FROM) | tar -x -C $(OTHER)/source
	cargo build --release --manifest-path $(OTHER)/source/Cargo.toml --target-dir $(OTHER) --workspace --bins
	cargo build --release --workspace --bins
	$${CARGO_TARGET_DIR:-target}/release/chaos upgrade --other $(OTHER)/release $(ARGS)

simulation: ## Runs clusters in a simulated network: make simulation ARGS='run --start 1 --seeds 10000' (see ARGS=--help).
	$(SIMULATION) $(ARGS)

simulation-check: etcd
	$(SIMULATION) check
	$(SIMULATION) run

simulation-bugs: ## Switches on each known bug, and looks for a simulated cluster that finds it.
	$(SIMULATION) bugs

lint: fmt clippy doc deny proto-lint ## Checks form, lints, documentation, dependencies and protobuf files.

fmt:
	cargo fmt --check

# All targets are those that run with the tests: the faults run apart.
clippy:
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p postrider-tests --test chaos -- -D warnings
	cargo clippy -p postrider-tests --features simulation --bin simulate -- -D warnings

doc:
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps

deny: $(TOOLS)/cargo-deny-$(CARGO_DENY_VERSION)
	cargo fetch --locked
	cargo deny --offline check licenses bans sources

proto-lint: venv
	$(VENV)/bin/buf lint proto

# One build of everything, so that the programs that scenarios start are never older than the tests.
build:
	cargo build --workspace --all-targets

etcd:
	@if command -v "$${ETCD_BIN:-etcd}" >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq etcd-server >/dev/null; \
	else echo 'install etcd: apt-get install etcd-server' >&2; exit 1; fi

# For network namespaces in which an agent is cut off. `make test` leaves out what it cannot do without, and says so; `make chaos-short` fails.
nft:
	@if command -v nft >/dev/null && command -v ip >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq iproute2 nftables >/dev/null; \
	else echo 'install nft and ip, and run the tests as root: apt-get install nftables iproute2' >&2; fi

# For clocks that jump.
faketime:
	@if command -v faketime >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq faketime >/dev/null; \
	else echo 'install libfaketime: apt-get install faketime' >&2; fi

venv: $(VENV)/installed

# Made again when the requirements change.
$(VENV)/installed: tests/requirements.txt
	@python3 -m venv $(VENV) 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null && python3 -m venv $(VENV); \
		else echo 'install venv: apt-get install python3-venv' >&2; exit 1; fi; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

$(TOOLS)/cargo-deny-$(CARGO_DENY_VERSION):
	cargo install --quiet --locked --debug --root $(TOOLS) cargo-deny@$(CARGO_DENY_VERSION)
	touch $@
