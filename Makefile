# One line each; `make help` lists them. Programs that a target needs are built or installed on first use.
FUZZ_SECONDS ?= 30
ADVISORIES = https://github.com/RustSec/advisory-db

.PHONY: help demo playground test chaos fallback bench bench-node scale fuzz images manifests lint

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: ## Show it: a real two-node cluster, registries stopped, Pods started; removes everything again (root)
	@cargo run -p breakwater-tests --bin demo

playground: ## The demo's cluster, kept running until Ctrl-C, with how to use it (root)
	@cargo run -p breakwater-tests --bin demo -- --playground

test: lint ## Everything: format, lints, unit, property, contract, API, node and cluster tests (root)
	@cargo test --workspace --features breakwater-tests/cluster

chaos: ## The cache under every fault, as a table; docs/chaos.md says how to put another mirror under it (root)
	@cargo run --quiet -p breakwater-tests --bin chaos

fallback: ## What each fault costs a pull on each containerd, written to docs/fallback.md; FAULTS="stall,agent" for some (root)
	@cargo run --quiet -p breakwater-tests --bin fallback -- $(FAULTS)

bench: ## Measure the cache beside nginx and distribution, write docs/benchmarks.md; ROWS="blob herd" for some only (root)
	@cargo run -p breakwater-tests --bin bench -- $(ROWS)

bench-node: ## Measure what the agent costs a node, write docs/node-footprint.md (root)
	@cargo run --quiet -p breakwater-tests --bin bench-node

scale: ## Measure the operator beside 50 mirrors, 5,000 nodes and 50,000 Pods, write docs/scale.md (root)
	@cargo run --quiet -p breakwater-tests --bin scale

fuzz: ## Fuzz each parser for FUZZ_SECONDS (30); installs cargo-fuzz if need be, any toolchain will do
	@cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --version 0.13.2 --locked
	@cd fuzz && for target in $$(cargo fuzz list); do echo "== $$target"; mkdir -p corpus/$$target; \
	  cargo fuzz run --sanitizer none $$target corpus/$$target seeds/$$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -verbosity=0 -print_final_stats=1 || exit 1; done

images: ## Build the static binaries and one OCI image archive; its path is the last line printed
	@cargo run -p breakwater-tests --bin image

manifests: ## Regenerate config/crd and docs/reference.md from crds/src, and what the chart takes from config
	@for kind in registrymirrors mirrornodes; do cargo run --quiet -p breakwater-crds --bin crdgen $$kind > config/crd/$$kind.yaml || exit 1; done
	@cargo run --quiet -p breakwater-crds --bin crdgen reference > docs/reference.md
	@cd charts/breakwater && rm -rf files && mkdir files && cp -r ../../config/crd ../../config/rbac ../../config/monitoring ../../config/default/namespaces.yaml files && rm files/*/kustomization.yaml files/*/*_test.yaml

lint: ## Formatting and clippy, warnings refused; dependencies by deny.toml, advisories where their database can be reached
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --features breakwater-tests/cluster -- -D warnings
	@cargo deny --version >/dev/null 2>&1 || cargo install cargo-deny --version 0.20.2 --locked
	@cargo deny --locked check bans licenses sources
	@if timeout 20 git ls-remote --quiet $(ADVISORIES) HEAD >/dev/null 2>&1; then cargo deny --locked check advisories; \
	  else echo "advisories not checked: cannot reach $(ADVISORIES)"; fi
