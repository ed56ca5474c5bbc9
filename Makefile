# What CI runs, by name. Everything works with the go command alone.

GO ?= go
FUZZTIME ?= 60s

.PHONY: all test bench-test race lint matrix fuzz verify kernels extrapolate quick golden generate cuda

all: lint test

test:
	$(GO) test -tags cpu ./...

race:
	$(GO) test -race -short -skip Conformance ./tensor ./kernel ./attention ./rope ./kvcache ./cpu/...

lint:
	test -z "$$(gofmt -l .)"
	$(GO) vet ./... && cd bench && $(GO) vet ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./... && cd bench && $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

# Every set of tags and the other architectures. arm64 tests run where qemu is.
matrix:
	.ci/matrix

fuzz:
	.ci/fuzz $(FUZZTIME)

verify:
	$(GO) run ./bench verify

kernels:
	$(GO) run ./bench kernels

extrapolate:
	$(GO) run ./bench extrapolate

quick:
	$(GO) run ./bench extrapolate -quick

# Writes the golden hashes of the Exact policy. They change only with its
# specification: say why in RATIONALE.md.
golden:
	$(GO) test ./kernel/kerneltest -run TestGolden -update

# Writes the assembly of the CPU backend. A test fails when it is stale.
generate:
	$(GO) test ./cpu/internal/vec/asmgen/... -update

# Compiles the CUDA kernels. There are none yet; CMake says so.
cuda:
	cmake -S . -B build && cmake --build build
