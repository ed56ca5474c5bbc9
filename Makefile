# What CI runs, by name. Everything works with the go command alone.

GO ?= go
FUZZTIME ?= 60s
MODULES = . bench kvcache/tier/redis kvcache/tier/s3

.PHONY: all test bench-test race lint matrix fuzz verify kernels extrapolate quick golden generate cuda-env cuda-go cuda cuda-fresh cuda-test gpu-check gpu-check-build

all: lint test

test:
	$(GO) test -tags cpu ./...

race:
	$(GO) test -race -short -skip Conformance ./tensor ./kernel ./attention/... ./rope ./recurrence/... ./kvcache/... ./internal/soak ./cpu/...

lint:
	test -z "$$(gofmt -l .)"
	for d in $(MODULES); do (cd $$d && $(GO) vet ./... && $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...) || exit 1; done

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

# Writes the assembly of the CPU backend and the stub library of the CUDA
# driver. A test fails when it is stale.
generate:
	$(GO) test ./cpu/internal/vec/asmgen/... ./cuda/internal/stubgen -update

# What the build tag cuda needs beside Go: a C compiler and these variables.
# They point to a cuda.h and a libcuda of our own; with CUDA_HOME=… to the cuda.h
# of that toolkit, 12 or 13. Use: eval "$$(make -s cuda-env)"
CUDA_CFLAGS = -O2 -g -I$(CURDIR)/cuda/include/compat -I$(or $(addsuffix /include,$(CUDA_HOME)),$(CURDIR)/cuda/include)
CUDA_LDFLAGS = -O2 -g -L$(CURDIR)/build/lib

cuda-env: build/lib/libcuda.a
	@echo 'export CGO_ENABLED=1'
	@echo 'export CGO_CFLAGS="$(CUDA_CFLAGS)"'
	@echo 'export CGO_LDFLAGS="$(CUDA_LDFLAGS)"'

build/lib/libcuda.a: $(wildcard cuda/stub/*) cuda/include/cuda.h CMakeLists.txt
	@cmake -S . -B build >&2 && cmake --build build --target stub >&2
	@touch $@

# Builds, vets and tests the packages with the tag, without a device.
cuda-go: export CGO_CFLAGS = $(CUDA_CFLAGS)
cuda-go: export CGO_LDFLAGS = $(CUDA_LDFLAGS)
cuda-go: build/lib/libcuda.a
	$(GO) build -tags cuda ./...
	$(GO) vet -tags cuda ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 -tags cuda ./cuda/... ./backend/...
	$(GO) test -count=1 -tags cuda ./cuda/... ./backend/...

# Runs the packages with the tag on the simulated driver: kernels and all, on a
# machine without a device. It needs a C++ compiler.
cuda-test: export CGO_CFLAGS = $(CUDA_CFLAGS)
cuda-test: export CGO_LDFLAGS = $(CUDA_LDFLAGS)
cuda-test: export LD_LIBRARY_PATH = $(CURDIR)/build/sim
cuda-test: build/lib/libcuda.a
	cmake -S . -B build && cmake --build build --target sim --parallel 2
	$(GO) test -count=1 -tags cuda ./cuda/... ./backend/... # a cached result knows nothing of the driver it ran on

# What a device has to show: on a machine with one, or with the programs of
# gpu-check-build, under 64 MiB, carried there: .ci/gpu-check FOLDER RESULTS.
gpu-check-build: export CGO_CFLAGS = $(CUDA_CFLAGS)
gpu-check-build: export CGO_LDFLAGS = $(CUDA_LDFLAGS)
gpu-check-build: build/lib/libcuda.a
	mkdir -p build/gpu
	$(GO) test -c -tags cuda -ldflags '-s -w' -o build/gpu/cuda.test ./cuda
	$(GO) build -tags cuda -ldflags '-s -w' -o build/gpu/bench ./bench
	git describe --always --dirty > build/gpu/commit
	cp .ci/gpu-check build/gpu/gpu-check
	du -sh build/gpu

gpu-check: gpu-check-build
	.ci/gpu-check build/gpu bench-results/gpu

# Compiles the kernels of package cuda and writes their images, which are
# committed. .ci/cuda-tools installs the compiler that CI compares with.
CUDA_TOOLS = $(CURDIR)/build/cuda-tools/cuda13

cuda:
	.ci/cuda-tools
	cmake -S . -B build/kernels -DCUDA_HOME=$(CUDA_TOOLS)
	cmake --build build/kernels --target kernels --parallel 2

# Compiles them elsewhere and compares.
cuda-fresh:
	.ci/cuda-tools
	rm -rf build/fresh
	cmake -S . -B build/fresh -DCUDA_HOME=$(CUDA_TOOLS) -DKERNELS_OUT=$(CURDIR)/build/fresh/bin
	cmake --build build/fresh --target kernels --parallel 2
	diff -r build/fresh/bin cuda/kernels/bin
