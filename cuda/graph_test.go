//go:build cuda && cgo

package cuda

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// stepper decodes one token a step of two sequences over pages, with rotation.
type stepper struct {
	b     *Backend
	k     kernel.Attention
	batch kernel.Batch
	args  kernel.Args
	out   *buffer
	table kernel.RotaryTable
}

const (
	stepHeads, stepDim, stepPage, stepPages = 4, 64, 16, 512
	stepRows                                = 4096 // of the rotation table
)

func newStepper(t *testing.T, b *Backend) *stepper {
	s := &stepper{b: b}
	k, err := b.Attention(kernel.Spec{Heads: stepHeads, KVHeads: 2, HeadDim: stepDim, ValueDim: stepDim, DType: tensor.F32, KVDType: tensor.F32,
		PageSize: stepPage, Terms: 1, RotaryDim: stepDim, Scale: 0.125})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	r := rand.New(rand.NewPCG(1, 2))
	view := func(fill bool, shape ...int64) tensor.View {
		n := int64(4)
		for _, x := range shape {
			n *= x
		}
		m, err := b.Alloc(n)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.(*buffer).Close() })
		if fill {
			x := make([]float32, n/4)
			for i := range x {
				x[i] = float32(r.NormFloat64())
			}
			if err := b.CopyIn(m, bytesOf(x)); err != nil {
				t.Fatal(err)
			}
		}
		return tensor.Of(m, tensor.F32, shape...)
	}
	s.k = k
	s.args = kernel.Args{Query: view(true, 2, stepHeads, stepDim), Key: view(true, stepPages, stepPage, 2, stepDim), Value: view(true, stepPages, stepPage, 2, stepDim),
		Out: view(false, 2, stepHeads, stepDim)}
	s.out = s.args.Out.Buf.(*buffer)
	s.table = kernel.RotaryTable{Cos: make([]float32, stepRows*stepDim/2), Sin: make([]float32, stepRows*stepDim/2), Version: kernel.NewVersion()}
	for i := range s.table.Cos {
		s.table.Cos[i], s.table.Sin[i] = float32(r.NormFloat64()), float32(r.NormFloat64())
	}
	return s
}

// plan sets the lengths of the sequences.
func (s *stepper) plan(lens ...int32) error {
	rows := kernel.RowMap{Count: slices.Max(lens)}
	s.batch = kernel.Batch{QueryStart: []int32{0, 1, 2}, SeqLens: lens, ScoreScale: []float32{0.2, 0.2}, Rotary: s.table,
		Terms: []kernel.Term{{Region: kernel.Everywhere, RowQ: rows, RowK: rows}}}
	s.batch.Pages.Indptr = []int32{0}
	for i, n := range lens {
		for p := range (n + stepPage - 1) / stepPage {
			s.batch.Pages.Indices = append(s.batch.Pages.Indices, (p*7+int32(i))%stepPages)
		}
		s.batch.Pages.Indptr = append(s.batch.Pages.Indptr, int32(len(s.batch.Pages.Indices)))
	}
	return s.k.Plan(&s.batch)
}

// result runs and returns what Out holds.
func (s *stepper) result(t *testing.T, run func() error) []float32 {
	t.Helper()
	if err := s.b.dev.clear(s.out.addr, s.out.Size()); err != nil {
		t.Fatal(err)
	}
	if err := run(); err != nil {
		t.Fatal(err)
	}
	x := make([]float32, s.out.Size()/4)
	if err := s.b.CopyOut(bytesOf(x), s.out); err != nil {
		t.Fatal(err)
	}
	return x
}

// A graph captured once serves the steps that follow, as long as the tables have
// room, and says so where they have not. Its results are those of a Run.
func TestGraphServesLaterPlans(t *testing.T) {
	s := newStepper(t, open(t))
	run := func() error { return s.k.Run(&s.args) }
	if err := s.plan(1500, 70); err != nil {
		t.Fatal(err)
	}
	g, err := s.b.Capture(run)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { g.Close() }()
	served, captures := 0, 0
	for _, lens := range [][2]int32{{1500, 70}, {1501, 71}, {1600, 90}, {1700, 600}, {40, 1100}, {3, 1}, {1990, 1990}, {4000, 4000}, {1501, 71}} {
		if err := s.plan(lens[0], lens[1]); err != nil {
			t.Fatal(err)
		}
		want := s.result(t, run)
		var stale *StaleGraphError
		if err := g.Launch(); errors.As(err, &stale) {
			captures++
			again, err := s.b.Capture(run)
			if err := errors.Join(err, g.Close()); err != nil {
				t.Fatal(err)
			}
			g = again
		} else if err != nil {
			t.Fatal(err)
		} else {
			served++
		}
		got := s.result(t, g.Launch)
		if !slices.EqualFunc(got, want, func(x, y float32) bool { return x == y }) || slices.Max(got) == 0 {
			t.Errorf("lengths %v: the graph's results differ from a Run's", lens)
		}
	}
	if served < 5 || captures < 1 {
		t.Errorf("the graph served %d plans and was captured anew for %d, want most served and the longest not", served, captures)
	}
	if err := s.plan(5); err == nil {
		t.Error("a batch of one length for two sequences was planned")
	}
	var stale *StaleGraphError
	if err := g.Launch(); !errors.As(err, &stale) {
		t.Errorf("after a Plan that failed Launch gives %v", err)
	}
}

// Of a rotation table with a Version only new rows are copied, and of one without
// all that are named.
func TestRotaryTableIsKept(t *testing.T) {
	s := newStepper(t, open(t))
	a := s.k.(*attention)
	run := func() error { return s.k.Run(&s.args) }
	results := func(lens ...int32) []float32 {
		if err := s.plan(lens...); err != nil {
			t.Fatal(err)
		}
		return s.result(t, run)
	}
	want := results(900, 33)
	fresh := slices.Clone(s.table.Cos)
	clear(s.table.Cos[:800*stepDim/2]) // a promise broken, to see that they are not copied
	if got := results(900, 33); !slices.Equal(got, want) {
		t.Error("rows that the device has were copied again")
	}
	s.table.Version = 0
	if got := results(900, 33); slices.Equal(got, want) {
		t.Error("a table without a Version was not copied")
	}
	copy(s.table.Cos, fresh)
	s.table.Version = kernel.NewVersion()
	if got := results(900, 33); !slices.Equal(got, want) {
		t.Error("a table with another Version was not copied")
	}
	if n := len(a.rotary.have); n != 1 || a.rotary.have[0] != (rows{0, 900}) {
		t.Errorf("rows %v on the device, want 0 to 900", a.rotary.have)
	}
	longer := results(2000, 33)
	s.table.Version = kernel.NewVersion()
	if got := results(2000, 33); !slices.Equal(got, longer) {
		t.Error("rows copied later differ from rows copied at once")
	}
}
