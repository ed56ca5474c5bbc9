// Package backend opens backends by name and picks the default. It alone
// imports cpu and cuda; build tags decide what is linked.
package backend

import (
	"fmt"
	"strings"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
)

// Default is the first backend of All.
func Default() kernel.Backend { return All()[0] }

// All returns every backend this program can use on this machine, the default
// first: an accelerator where one is linked and found, then the CPU.
func All() []kernel.Backend {
	if b, err := accelerator(); err == nil {
		return []kernel.Backend{b, cpu.New(cpu.Options{})}
	}
	return []kernel.Backend{cpu.New(cpu.Options{})}
}

// Open returns a backend by name: "cpu", "cuda", or "" for the default. The
// error says why a known one cannot be had.
func Open(name string) (kernel.Backend, error) {
	switch strings.ToLower(name) {
	case "":
		return Default(), nil
	case "cpu":
		return cpu.New(cpu.Options{}), nil
	case "cuda":
		b, err := accelerator()
		if err != nil {
			return nil, fmt.Errorf("backend: cuda: %w", err)
		}
		return b, nil
	}
	return nil, fmt.Errorf("backend: unknown backend %q (have cpu, cuda)", name)
}
