# One line each; `make help` lists them. Programs that a target needs are built or installed on first use.
.PHONY: help demo playground test chaos bench images manifests lint

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: ## Show it: a real two-node cluster, registries stopped, Pods started; removes everything again (root)
	@cargo run -p breakwater-tests --bin demo

playground: ## The demo's cluster, kept running until Ctrl-C, with how to use it (root)
	@cargo run -p breakwater-tests --bin demo -- --playground

test: lint ## Everything: format, lints, unit, property, contract, API, node and cluster tests (root)
	@cargo test --workspace --features breakwater-tests/cluster

chaos: ## The cache under every fault, as a table; docs/chaos.md says how to put another mirror under it (root)
	@cargo run --quiet --release -p breakwater-tests --bin chaos

bench: ## Measure the cache beside nginx and distribution, write docs/benchmarks.md; ROWS="blob herd" for some only (root)
	@cargo run -p breakwater-tests --bin bench -- $(ROWS)

images: ## Build the static binaries and one OCI image archive; its path is the last line printed
	@cargo run -p breakwater-tests --bin image

manifests: ## Regenerate config/crd from crds/src
	@for kind in registrymirrors mirrornodes; do cargo run --quiet -p breakwater-crds --bin crdgen $$kind > config/crd/$$kind.yaml || exit 1; done

lint: ## Formatting and clippy, warnings refused
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --features breakwater-tests/cluster -- -D warnings
