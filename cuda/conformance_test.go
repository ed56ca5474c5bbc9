//go:build cuda && cgo

package cuda

import (
	"strings"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kernel/kerneltest"
	"github.com/longctx/longctx/tensor"
)

// open returns the backend of the first device, real or simulated.
func open(t *testing.T) *Backend {
	b, err := Open(0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// TestConformance: every case passes, with the golden hashes of the CPU, but those
// of operations and codings that this backend does not have.
func TestConformance(t *testing.T) {
	const coding = "coding=" // of codes other than INT8 and INT4, keys per channel and values in groups
	lacks := []string{"scanbackward"}
	kerneltest.Run(t, open(t), func(c kerneltest.Case, _ kernel.Policy) bool {
		if strings.Contains(c.Name, coding) {
			return false
		}
		for _, op := range lacks {
			if c.Op == op || c.String() == "errors/"+op+"/valid" {
				return false
			}
		}
		return true
	})
}

// TestRunAllocatesNothing: neither memory of Go nor of the device is taken by a
// Run.
func TestRunAllocatesNothing(t *testing.T) {
	b := open(t)
	const tokens, heads, dim = 3, 2, 32
	s := kernel.Spec{Heads: heads, KVHeads: heads, HeadDim: dim, ValueDim: dim, DType: tensor.F32, KVDType: tensor.F32, Terms: 1, Scale: 1}
	a, err := b.Attention(s)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	batch := kernel.Batch{
		QueryStart: []int32{0, tokens}, SeqLens: []int32{tokens}, KeyStart: []int32{0},
		Terms: []kernel.Term{{Region: kernel.Everywhere}}, ScoreScale: []float32{1, 1, 1},
	}
	if err := a.Plan(&batch); err != nil {
		t.Fatal(err)
	}
	view := func() tensor.View {
		m, err := b.Alloc(4 * tokens * heads * dim)
		if err != nil {
			t.Fatal(err)
		}
		return tensor.Of(m, tensor.F32, tokens, heads, dim)
	}
	args := kernel.Args{Query: view(), Key: view(), Value: view(), Out: view()}
	if n := testing.AllocsPerRun(5, func() {
		if err := a.Run(&args); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Run allocates %v times, want 0", n)
	}
	if err := b.Wait(); err != nil {
		t.Fatal(err)
	}
}
