package kvcache

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// memory is a backend that only allocates.
type memory struct{ kernel.Backend }

func (memory) Alloc(n int64) (tensor.Buffer, error) { return tensor.NewHost(n), nil }
func (memory) CopyPages(*kernel.CopyArgs) error     { return nil }

// TestCheckIntegrityFinds: each kind of damage is found and named.
func TestCheckIntegrityFinds(t *testing.T) {
	for _, tt := range []struct {
		want   string
		damage func(c *Cache, a, b *sequence)
	}{
		{"", func(*Cache, *sequence, *sequence) {}},
		{"pages are held by no table, 1 noted", func(c *Cache, _, _ *sequence) { c.pool.cached++ }},
		{"1 holds counted, 0 noted", func(c *Cache, _, _ *sequence) { c.pool.held[0]++ }},
		{"page 2 is held -1 times", func(c *Cache, _, _ *sequence) { c.pool.held[2]-- }},
		{"page 0 is in 2 tables, 3 noted", func(c *Cache, _, _ *sequence) { c.pool.refs[0]++ }},
		{"page 2 is in 1 tables, 0 noted", func(c *Cache, a, _ *sequence) { c.pool.refs[a.pages[2]] = 0 }},
		{"page 7 is free twice", func(c *Cache, _, _ *sequence) { c.pool.free[0] = 7; c.pool.free[1] = 7 }},
		{"page 9 of 8 is free", func(c *Cache, _, _ *sequence) { c.pool.free[0] = 9 }},
		{"page 0 is free and in 2 tables", func(c *Cache, _, _ *sequence) { c.pool.free[0] = 0 }},
		{"pages free", func(c *Cache, _, _ *sequence) { c.pool.free = c.pool.free[1:] }},
		{"pages are shared", func(c *Cache, _, _ *sequence) { c.pool.shared++ }},
		{"pages reserved", func(c *Cache, a, _ *sequence) { c.reserved++ }},
		{"pages reserved", func(c *Cache, a, _ *sequence) { c.setReserved(a, 7) }},
		{"tokens counted", func(c *Cache, _, _ *sequence) { c.tokens-- }},
		{"of 9 keys has 2 pages, want 3", func(_ *Cache, a, _ *sequence) { a.pages = a.pages[:2] }},
		{"holds page 8 of 8", func(_ *Cache, a, _ *sequence) { a.pages[0] = 8 }},
		{"holds page 1 twice", func(_ *Cache, a, _ *sequence) { a.pages[0] = 1 }},
		{"positions", func(_ *Cache, a, _ *sequence) { a.positions.next = -1 }},
		{"positions", func(_ *Cache, a, _ *sequence) { a.positions.identity, a.positions.rest = 8, []int32{8} }},
		{"positions", func(_ *Cache, a, _ *sequence) { a.positions.identity, a.positions.rest = 8, []int32{-8} }},
		{"an ID that was not given", func(c *Cache, a, _ *sequence) { c.sequences[math.MaxUint64] = &sequence{} }},
	} {
		c, err := New(memory{}, Config{Layers: 1, Pages: 8, PageSize: 4, KVHeads: 1, HeadDim: 1, ValueDim: 1, DType: tensor.F32})
		if err != nil {
			t.Fatal(err)
		}
		a := c.NewSequence()
		_, err = c.Extend([]ID{a}, []int{9}, nil)
		b, forkErr := c.Fork(a)
		if err := errors.Join(err, forkErr, c.Truncate(b, 8)); err != nil {
			t.Fatal(err)
		}
		tt.damage(c, c.sequences[a], c.sequences[b])
		err = c.CheckIntegrity()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("want %q, got %v", tt.want, err)
		}
	}
}

// TestPositions: the compact form is a plain list of positions, and canonical.
func TestPositions(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var p positions
		var list []int32
		for range 60 {
			switch rng.IntN(4) {
			case 0:
				n := rng.IntN(len(list) + 1)
				p.truncate(n)
				list = list[:n]
			case 1:
				to := rng.IntN(len(list) + 1)
				from := rng.IntN(to + 1)
				next := p.next
				p.drop(from, to)
				list = slices.Delete(list, from, to)
				if p.next != next {
					t.Fatalf("seed %d: drop moved next from %d to %d", seed, next, p.next)
				}
			default:
				x := int32(p.next)
				if rng.IntN(4) == 0 {
					x = rng.Int32N(12)
				}
				p.push(x)
				list = append(list, x)
			}
			if got := p.clone(); !slices.Equal(got.appendTo(nil), list) || p.len() != len(list) {
				t.Fatalf("seed %d: %+v, want %v", seed, p, list)
			}
			prefix := 0
			for prefix < len(list) && int(list[prefix]) == prefix {
				prefix++
			}
			if p.identity != prefix {
				t.Fatalf("seed %d: identity %d of %v, want %d", seed, p.identity, list, prefix)
			}
		}
	}
}

// codingMemory is memory that codes nothing and says it has.
type codingMemory struct{ memory }

func (codingMemory) EncodePages(a *kernel.EncodeArgs) error {
	for i := range a.Encoded {
		a.Encoded[i] = true
	}
	return nil
}

// TestCheckIntegrityFindsCoded: so is damage to what is known of coded pages.
func TestCheckIntegrityFindsCoded(t *testing.T) {
	for _, tt := range []struct {
		want   string
		damage func(c *Cache, a, b *sequence)
	}{
		{"", func(*Cache, *sequence, *sequence) {}},
		{"coded page 0 is in 1 tables, 2 noted", func(c *Cache, _, _ *sequence) { c.codes.pool.refs[0]++ }},
		{"coded page 3 is free twice", func(c *Cache, _, _ *sequence) { c.codes.pool.free[0], c.codes.pool.free[1] = 3, 3 }},
		{"coded pages free", func(c *Cache, _, _ *sequence) { c.codes.pool.free = c.codes.pool.free[1:] }},
		{"coded pages are shared", func(c *Cache, _, _ *sequence) { c.codes.pool.shared++ }},
		{"holds coded page 6 of 6", func(_ *Cache, a, _ *sequence) { a.pages[0] = ^6 }},
		{"holds coded page 1 twice", func(_ *Cache, a, _ *sequence) { a.pages[0] = ^1 }},
		{"has 3 pages that may be coded", func(_ *Cache, a, _ *sequence) { a.seen = 3 }},
		{"coded page 5 is noted to be of page 0", func(c *Cache, _, _ *sequence) { c.codes.twin[0], c.codes.origin[5] = none, 0 }},
		{"page 7, in 0 tables, is noted to be coded page -2", func(c *Cache, _, _ *sequence) { c.codes.twin[7] = unfit }},
		{"page 1, in 1 tables, is noted to be coded page 4", func(c *Cache, _, _ *sequence) { c.codes.join(1, 4) }},
	} {
		c, err := New(codingMemory{}, Config{Layers: 1, Pages: 8, PageSize: 4, KVHeads: 1, HeadDim: 1, ValueDim: 1, DType: tensor.F32, Coding: kernel.KIVI(kernel.Int8, 1), CodedPages: 6})
		if err != nil {
			t.Fatal(err)
		}
		a := c.NewSequence()
		_, err = c.Extend([]ID{a}, []int{9}, nil)
		b, forkErr := c.Fork(a)
		if err := errors.Join(err, forkErr); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Extend([]ID{a}, []int{0}, nil); err != nil {
			t.Fatal(err)
		}
		tt.damage(c, c.sequences[a], c.sequences[b])
		err = c.CheckIntegrity()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("want %q, got %v", tt.want, err)
		}
	}
}
