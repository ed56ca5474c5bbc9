package prefix_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/tensor"
)

// history is what the keys of a sequence hold, one number each.
func (m *model) history(id kvcache.ID) []float32 {
	m.t.Helper()
	key, _, err := m.cache.Gather(0, id)
	m.must(err)
	var out []float32
	for j := range key.Shape[0] {
		out = append(out, key.At(j, 0, 0))
	}
	return out
}

// TestFan: forks of one prompt go on by themselves and share its pages.
func TestFan(t *testing.T) {
	m := newModel(t, kvcache.Config{DType: tensor.F32})
	root := m.start(40)
	want := m.history(root)
	ids, err := prefix.Fan(m.cache, root, 5)
	m.must(err)
	for _, id := range ids {
		m.grow(id, 2)
	}
	if s := m.cache.Stats(); s.Used != 3+5 || s.Sequences != 6 {
		t.Errorf("%+v", s)
	}
	for _, id := range ids {
		if !slices.Equal(m.history(id)[:40], want) {
			t.Error("a fork has other keys")
		}
	}
	if _, err := prefix.Fan(m.cache, root, -1); !errors.As(err, new(*prefix.ValueError)) {
		t.Errorf("-1 forks: %v", err)
	}
	m.must(m.cache.Free(root))
	if _, err := prefix.Fan(m.cache, root, 1); !errors.As(err, new(*kvcache.UnknownSequenceError)) {
		t.Errorf("a freed sequence: %v", err)
	}
	m.must(m.cache.CheckIntegrity())
}

// TestBeams: after any steps each beam has the history of its line of parents.
func TestBeams(t *testing.T) {
	m := newModel(t, kvcache.Config{DType: tensor.F32})
	rng := rand.New(rand.NewPCG(3, 4))
	beams := []kvcache.ID{m.start(20)}
	histories := [][]float32{m.history(beams[0])}
	for range 30 {
		parents := make([]int, 1+rng.IntN(5))
		for i := range parents {
			parents[i] = rng.IntN(len(beams))
		}
		next, err := prefix.Beams(m.cache, beams, parents)
		m.must(err)
		lines := make([][]float32, len(next))
		for i, id := range next {
			m.grow(id, 1+rng.IntN(3))
			h := m.history(id)
			if p := histories[parents[i]]; !slices.Equal(h[:len(p)], p) {
				t.Fatalf("beam %d has not the history of parent %d", i, parents[i])
			}
			lines[i] = h
		}
		beams, histories = next, lines
		m.must(m.cache.CheckIntegrity())
		if s := m.cache.Stats(); s.Sequences != len(beams) {
			t.Fatalf("%d sequences of %d beams", s.Sequences, len(beams))
		}
	}
	before := m.cache.Stats()
	gone := m.start(0)
	m.must(m.cache.Free(gone))
	for _, tt := range []struct {
		beams   []kvcache.ID
		parents []int
		target  any
	}{
		{beams, []int{0, len(beams)}, new(*prefix.ValueError)},
		{beams, []int{-1}, new(*prefix.ValueError)},
		{[]kvcache.ID{beams[0], beams[0]}, []int{0}, new(*prefix.ValueError)},
		{[]kvcache.ID{beams[0], gone}, []int{0}, new(*kvcache.UnknownSequenceError)},
	} {
		if _, err := prefix.Beams(m.cache, tt.beams, tt.parents); !errors.As(err, tt.target) || m.cache.Stats() != before {
			t.Errorf("beams %v, parents %v: %v", tt.beams, tt.parents, err)
		}
	}
}

// TestSpeculate: what is taken back costs nothing, and what is accepted stays.
func TestSpeculate(t *testing.T) {
	m := newModel(t, kvcache.Config{DType: tensor.F16, Coding: kernel.KIVI(kernel.Int8, headDim), CodedPages: 64, Residual: pageSize})
	rng := rand.New(rand.NewPCG(5, 6))
	ids := []kvcache.ID{m.start(40), m.start(3)}
	ids = append(ids, m.fork(ids[0], 0))
	d, err := prefix.Speculate(m.cache, ids...)
	m.must(err)
	lengths := []int{40, 3, 40}
	for range 40 {
		counts, drafted := make([]int, 3), make([]int, 3)
		for i := range ids {
			drafted[i] = 1 + rng.IntN(8)
			counts[i] = rng.IntN(drafted[i] + 1)
			lengths[i] += counts[i]
			m.grow(ids[i], drafted[i])
		}
		too := slices.Clone(counts)
		too[2] = drafted[2] + 1
		for _, bad := range [][]int{too, counts[:2], {0, -1, 0}} {
			if err := d.Accept(bad); !errors.As(err, new(*prefix.ValueError)) {
				t.Fatalf("%v of %v: %v", bad, drafted, err)
			}
		}
		m.must(d.Accept(counts))
		for i, id := range ids {
			if n, _ := m.cache.Len(id); n != lengths[i] {
				t.Fatalf("sequence %d has %d keys, want %d", i, n, lengths[i])
			}
		}
		m.must(m.cache.CheckIntegrity())
	}
	m.must(m.cache.Free(ids[1]))
	if err := d.Accept([]int{0, 0, 0}); !errors.As(err, new(*kvcache.UnknownSequenceError)) {
		t.Errorf("a freed sequence: %v", err)
	}
	if _, err := prefix.Speculate(m.cache, ids...); !errors.As(err, new(*kvcache.UnknownSequenceError)) {
		t.Errorf("a freed sequence: %v", err)
	}
}
