package kerneltest_test

import (
	"flag"
	"os"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kernel/kerneltest"
)

var update = flag.Bool("update", false, "write testdata/golden.txt")

// TestConformance: the backend that is always there passes.
func TestConformance(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	kerneltest.Run(t, b, kerneltest.All)
}

// TestGolden: testdata/golden.txt names the outputs of every Exact case that
// has outputs, and no other. With -update it is written; only a second run,
// without, tells whether what was written passes.
func TestGolden(t *testing.T) {
	const file = "testdata/golden.txt"
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	hashes := map[string]string{}
	for _, c := range kerneltest.Cases() {
		if !c.Applies(kernel.Exact) {
			continue
		}
		r := kerneltest.Check(b, c, kernel.Exact)
		if r.Hash != "" {
			hashes[r.Case] = r.Hash
		}
		if !r.OK() && !*update {
			t.Error(&r)
		}
	}
	text := kerneltest.FormatGolden(hashes)
	if *update {
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != string(text) {
		t.Errorf("%s is stale: run go test -run TestGolden -update, and say in RATIONALE.md why", file)
	}
}

// TestWorkers: the number of workers cannot change a result.
func TestWorkers(t *testing.T) {
	var all []kernel.Backend
	for _, n := range []int{1, 2, 3, 8} {
		b := cpu.New(cpu.Options{Workers: n})
		defer b.Close()
		all = append(all, b)
	}
	for _, c := range kerneltest.Cases() {
		if c.Problem == nil || c.Slow {
			continue
		}
		for _, policy := range []kernel.Policy{kernel.Exact, kernel.Fast} {
			if r := kerneltest.Same(c, policy, all...); !r.OK() {
				t.Error(&r)
			}
		}
	}
}
