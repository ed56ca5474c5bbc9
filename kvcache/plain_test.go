package kvcache_test

import (
	"errors"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// TestKeepPlain: the pages that are named stay plain, with their rows to the bit, for
// forks too; the others are coded; a page that is free again is as any other.
func TestKeepPlain(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	config := kvcache.Config{Layers: 2, Pages: 16, PageSize: 4, KVHeads: 1, HeadDim: 16, ValueDim: 16, DType: tensor.F32, Coding: kernel.KIVI(kernel.Int2, 16), CodedPages: 8}
	c, err := kvcache.New(b, config)
	if err != nil {
		t.Fatal(err)
	}
	ok := func(err error) {
		t.Helper()
		if err == nil {
			err = c.CheckIntegrity()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	rows := tensor.New(tensor.F32, 18, 1, 16)
	for i := range rows.F32s() {
		rows.F32s()[i] = float32(i%37) / 7
	}
	extend := func(id kvcache.ID, n int) {
		t.Helper()
		slots, err := c.Extend([]kvcache.ID{id}, []int{n}, nil)
		ok(err)
		for layer := range 2 {
			ok(c.Append(layer, slots, rows.Slice(0, 0, int64(n)), rows.Slice(0, 0, int64(n))))
		}
	}
	id := c.NewSequence()
	extend(id, 18)
	ok(c.KeepPlain(id, []int{1, 3, 4}))
	fork, err := c.Fork(id)
	ok(err)
	extend(id, 0)
	extend(fork, 0)
	if s := c.Stats(); s.CodedUsed != 2 || s.Used != 3 {
		t.Errorf("%d coded and %d plain pages, want 2 and 3", s.CodedUsed, s.Used)
	}
	for layer := range 2 {
		k, _, err := c.Gather(layer, id)
		ok(err)
		for i := range int64(18) {
			same := true
			for d := range int64(16) {
				same = same && k.At(i, 0, d) == rows.At(i, 0, d)
			}
			if plain := i/4 == 1 || i/4 >= 3; same != plain {
				t.Errorf("layer %d: row %d is as it was: %v, want %v", layer, i, same, plain)
			}
		}
	}
	for _, pages := range [][]int{{-1}, {5}} {
		if err := c.KeepPlain(id, pages); err == nil {
			t.Errorf("pages %v: no error", pages)
		}
	}
	ok(c.Free(id))
	ok(c.Free(fork))
	var unknown *kvcache.UnknownSequenceError
	if err := c.KeepPlain(id, nil); !errors.As(err, &unknown) {
		t.Errorf("a sequence that ended: %v", err)
	}
	id = c.NewSequence()
	extend(id, 18)
	extend(id, 0)
	if s := c.Stats(); s.CodedUsed != 4 {
		t.Errorf("%d coded pages in all, want 4", s.CodedUsed)
	}
}
