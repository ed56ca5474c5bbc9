package kvcache_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// coding has keys per channel and values in groups.
func coding(c kernel.Codec, group int) kernel.Coding {
	return kernel.Coding{Key: kernel.Quantizer{Codec: c}, Value: kernel.Quantizer{Codec: c, Group: group}}
}

func smallCoded(codec kernel.Codec) kvcache.Config {
	return kvcache.Config{Layers: 2, Pages: 8, PageSize: 4, KVHeads: 1, HeadDim: 8, ValueDim: 8, DType: tensor.F32, Coding: coding(codec, 4), CodedPages: 6, Residual: 4}
}

// advance extends a sequence by n tokens and checks everything.
func (m *machine) advance(id kvcache.ID, n int) {
	m.t.Helper()
	m.grow(id, n)
	m.check("Extend")
}

// TestResidualStaysPlain: what is coded after each step of a decode.
func TestResidualStaysPlain(t *testing.T) {
	m := fixed(t, smallCoded(kernel.Int8))
	id := m.start(7)
	for n := 7; n < 24; n++ {
		p := m.lower(id).Pages
		for k := range p.Indices {
			// at the last Extend there were n−1 tokens, of which 4 are too young
			if due := n > 7 && (k+1)*4 <= n-1-4; p.IsCoded(k) != due {
				t.Errorf("%d tokens: page %d is coded: %v", n, k, p.IsCoded(k))
			}
		}
		m.advance(id, 1)
	}
	if s := m.cache.Stats(); s.CodedUsed != 4 || s.Used != 2 || s.UsedBytes != 2*512+4*2*128 {
		t.Errorf("in the end: %+v", s)
	}
}

// TestSharedPageIsCodedOnce: a fork takes the page that the other has coded, at
// its own Extend and not before.
func TestSharedPageIsCodedOnce(t *testing.T) {
	m := fixed(t, smallCoded(kernel.Int4))
	a := m.start(12)
	b := m.branch(a)
	plain := m.pages(b)
	m.advance(a, 1)
	if got := m.pages(b); !slices.Equal(got, plain) || m.lower(b).Pages.IsCoded(0) {
		t.Errorf("coding in one fork changed the table of the other")
	}
	coded := m.backend.encoded.Load()
	m.advance(b, 1)
	if m.backend.encoded.Load() != coded || !m.lower(b).Pages.IsCoded(1) || m.pages(b)[1] != m.pages(a)[1] {
		t.Errorf("the fork did not take the coded page")
	}
	if s := m.cache.Stats(); s.CodedUsed != 2 || s.CodedShared != 2 || s.Shared != 1 {
		t.Errorf("in the end: %+v", s)
	}
	m.forget(a)
	m.forget(b)
	m.check("Free")
	if s := m.cache.Stats(); s.Free != s.Pages || s.CodedFree != s.CodedPages || s.UsedBytes != 0 {
		t.Errorf("an empty cache has %+v", s)
	}
}

// TestPageAndItsCodedOne: a sequence that was started from a page and the coded one
// that was made of it keeps both, and so does its fork.
func TestPageAndItsCodedOne(t *testing.T) {
	m := fixed(t, smallCoded(kernel.Int8))
	a := m.start(12)
	pages, err := m.cache.Hold(a, 0, 4, nil)
	m.ok("Hold", err)
	m.advance(a, 1) // codes it in the table of a
	if pages, err = m.cache.Hold(a, 0, 4, pages); err != nil || !pages[1].Coded() || pages[0].Coded() {
		t.Fatal(pages, err)
	}
	slices.Reverse(pages)
	b, err := m.cache.Start(pages, nil)
	m.ok("Start", err)
	c, err := m.cache.Fork(b)
	m.ok("Fork", err)
	for _, id := range []kvcache.ID{b, c} {
		for range 2 {
			_, err := m.cache.Extend([]kvcache.ID{id}, []int{8}, nil)
			m.ok("Extend", err)
			m.ok("CheckIntegrity", m.cache.CheckIntegrity())
		}
		if p := m.lower(id).Pages; !slices.Equal(p.Coded[:2], []bool{true, false}) {
			t.Errorf("pages are coded: %v", p.Coded)
		}
		m.ok("Free", m.cache.Free(id))
	}
	m.ok("Release", m.cache.Release(pages...))
	m.ok("CheckIntegrity", m.cache.CheckIntegrity())
}

// TestTruncateCodedPages: a Truncate within a coded page is refused, at its
// ends it is not, and one that the residual allows never meets one.
func TestTruncateCodedPages(t *testing.T) {
	m := fixed(t, smallCoded(kernel.Int8))
	id := m.start(17)
	m.advance(id, 1) // pages 0 to 2 are coded
	var cut *kvcache.CodedPageError
	if err := m.cache.Truncate(id, 10); !errors.As(err, &cut) || cut.From != 8 || cut.To != 12 {
		t.Errorf("Truncate to 10: %v", err)
	}
	m.check("a Truncate that was refused")
	for _, n := range []int{13, 12, 8} {
		m.ok("Truncate", m.cache.Truncate(id, n))
		m.oracle[id].tokens, m.oracle[id].next = m.oracle[id].tokens[:n], int32(n)
		m.check("Truncate")
	}
	m.advance(id, 3)
	m.ok("Drop", m.cache.Drop(id, 0, 4)) // a coded page
	m.oracle[id].tokens = m.oracle[id].tokens[4:]
	m.check("Drop")
}

// TestNoCodedPageFree: pages stay plain, in order, until there is room.
func TestNoCodedPageFree(t *testing.T) {
	c := smallCoded(kernel.Int8)
	c.CodedPages, c.Pages, c.Residual = 1, 12, 0
	m := fixed(t, c)
	a, b := m.start(12), m.start(8)
	m.advance(a, 1)
	m.advance(b, 1)
	if p := m.lower(a).Pages; !slices.Equal(p.Coded, []bool{true, false, false, false}) || m.lower(b).Pages.IsCoded(0) {
		t.Errorf("with one coded page: %v, %v", p.Coded, m.lower(b).Pages.Coded)
	}
	m.forget(a)
	m.advance(b, 0)
	if p := m.lower(b).Pages; !slices.Equal(p.Coded, []bool{true, false, false}) {
		t.Errorf("with one coded page set free: %v", p.Coded)
	}
}

// TestAttentionOverCodedCache: attention reads from a cache, through Bind, what
// Gather says there is: prefill in chunks and decode, bit for bit.
func TestAttentionOverCodedCache(t *testing.T) {
	backend := cpu.New(cpu.Options{Workers: 1})
	defer backend.Close()
	for _, c := range []kvcache.Config{
		{DType: tensor.F16, Coding: kernel.KIVI(kernel.Int8, 32), CodedPages: 40, Residual: 32},
		{DType: tensor.BF16, Coding: coding(kernel.Int4, 8), CodedPages: 40},
		{DType: tensor.F8E4M3, Coding: kernel.KIVI(kernel.Int4, 32), CodedPages: 3},
		{DType: tensor.F8E5M2},
		{DType: tensor.F16, LayerCoding: []kernel.Coding{coding(kernel.Int4, 8), kernel.KIVI(kernel.Int1, 32)}, CodedPages: 40, Residual: 16},
		{DType: tensor.F16, Coding: everyKind(), Levels: straightLevels(2, 2, everyKind()), CodedPages: 40},
	} {
		c.Layers, c.Pages, c.PageSize, c.KVHeads, c.HeadDim, c.ValueDim = 2, 40, 16, 2, 32, 32
		rng := rand.New(rand.NewPCG(uint64(c.DType), 9))
		random := func(shape ...int64) tensor.View {
			v := tensor.New(tensor.F32, shape...)
			for i := range v.F32s() {
				v.F32s()[i] = float32(rng.NormFloat64())
			}
			return v
		}
		if c.DType.Float8() && c.Coded() { // Gather applies scales only then
			for range c.Layers {
				c.Scales = append(c.Scales, kvcache.Scales{Key: tensor.FromF32([]float32{0.02, 0.3}), Value: tensor.FromF32([]float32{0.01, 1.1})})
			}
		}
		cache, err := kvcache.New(backend, c)
		if err != nil {
			t.Fatal(err)
		}
		config := attention.Config{Heads: 4, KVHeads: 2, HeadDim: 32, ValueDim: 32, KVDType: c.DType, PageSize: 16,
			Mask: attention.Causal(), Rotary: rope.Default{Base: rope.Base{HeadDim: 32, Theta: 1e4}}}
		paged := make([]*attention.Attention, c.Layers)
		for layer := range paged {
			config.Coding = c.CodingOf(layer)
			if paged[layer], err = attention.New(backend, config); err != nil {
				t.Fatal(err)
			}
		}
		config.KVDType, config.PageSize, config.Coding = tensor.F32, 0, kernel.Coding{}
		dense, err := attention.New(backend, config)
		if err != nil {
			t.Fatal(err)
		}
		id := cache.NewSequence()
		length := 0
		for _, n := range []int{100, 60, 1, 1, 30, 1} {
			length += n
			slots, err := cache.Extend([]kvcache.ID{id}, []int{n}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := dense.Plan(attention.Step{QueryLens: []int{n}, KeyLens: []int{length}}); err != nil {
				t.Fatal(err)
			}
			for layer := range c.Layers {
				if err := paged[layer].Plan(attention.Step{QueryLens: []int{n}, KV: cache.Sequences(id)}); err != nil {
					t.Fatal(err)
				}
				if err := cache.Append(layer, slots, random(int64(n), 2, 32), random(int64(n), 2, 32)); err != nil {
					t.Fatal(err)
				}
				got := kernel.Args{Query: random(int64(n), 4, 32), Out: tensor.New(tensor.F32, int64(n), 4, 32)}
				want := kernel.Args{Query: got.Query, Out: tensor.New(tensor.F32, int64(n), 4, 32)}
				key, value, err := cache.Gather(layer, id)
				if err != nil {
					t.Fatal(err)
				}
				want.Key, want.Value = widen(key), widen(value)
				if err := errors.Join(cache.Bind(layer, &got), paged[layer].Run(&got), dense.Run(&want)); err != nil {
					t.Fatal(err)
				}
				for i, x := range got.Out.F32s() {
					if y := want.Out.F32s()[i]; math.Float32bits(x) != math.Float32bits(y) {
						t.Fatalf("%v over %v, %d tokens, layer %d: element %d is %v, want %v", c.Coding, c.DType, length, layer, i, x, y)
					}
				}
			}
		}
		if s := cache.Stats(); c.Coded() && s.CodedUsed < 3 {
			t.Errorf("%v: %d pages are coded", c.Coding, s.CodedUsed)
		}
		if err := cache.CheckIntegrity(); err != nil {
			t.Error(err)
		}
	}
}

// everyKind is a Coding with all that a Quantizer can have.
func everyKind() kernel.Coding {
	return kernel.Coding{Key: kernel.Quantizer{Codec: kernel.Int4, Levels: true, Outliers: 5, Rank: 2},
		Value: kernel.Quantizer{Codec: kernel.Int2, Group: 16, Outliers: 3, Rank: 1}}
}

// straightLevels are tables of keys, whose levels are the codes.
func straightLevels(layers, heads int64, c kernel.Coding) (list []kvcache.Levels) {
	n := int64(c.Key.Codec.MaxCode()) + 1
	v := tensor.New(tensor.F32, heads, n)
	for i := range v.F32s() {
		v.F32s()[i] = float32(int64(i) % n)
	}
	for range layers {
		list = append(list, kvcache.Levels{Key: v})
	}
	return list
}

// TestSwapOfCodings: sequences with pages of any Coding go to the host and come back,
// and pages leave and are taken in again, with the same rows. A coding of each layer has no
// place in a page.
func TestSwapOfCodings(t *testing.T) {
	ctx := context.Background()
	backend := cpu.New(cpu.Options{Workers: 1})
	defer backend.Close()
	every, one := everyKind(), kvcache.Config{Layers: 2, Pages: 8, PageSize: 16, KVHeads: 2, HeadDim: 32, ValueDim: 32, DType: tensor.F16, CodedPages: 8}
	for i := range 4 {
		c := one
		switch c.Coding = kernel.KIVI(kernel.Int8, 32); i {
		case 0:
			c.Coding, c.Levels = every, straightLevels(2, 2, every)
		case 1:
			c.Coding.Value.Codec = kernel.Int4
		case 2:
			c.Coding = kernel.KIVI(kernel.Int1, 32)
		}
		cache, err := kvcache.New(backend, c)
		if err != nil {
			t.Fatal(err)
		}
		ok := func(what string, err error) {
			t.Helper()
			if err == nil {
				err = cache.CheckIntegrity()
			}
			if err != nil {
				t.Fatalf("%v: %s: %v", c.Coding, what, err)
			}
		}
		w, err := cache.NewSwapSpace(4, 4)
		ok("NewSwapSpace", err)
		id := cache.NewSequence()
		slots, err := cache.Extend([]kvcache.ID{id}, []int{50}, nil)
		ok("Extend", err)
		random := rand.New(rand.NewPCG(uint64(i), 1))
		for layer := range 2 {
			rows := tensor.New(tensor.F32, 50, 2, 32)
			for i := range rows.F32s() {
				rows.F32s()[i] = float32(random.NormFloat64())
			}
			ok("Append", cache.Append(layer, slots, rows, rows))
		}
		_, err = cache.Extend([]kvcache.ID{id}, []int{0}, nil)
		ok("Extend", err)
		if n := cache.Stats().CodedUsed; n != 3 {
			t.Errorf("%v: %d coded pages, want 3", c.Coding, n)
		}
		all := func(id kvcache.ID) (out []float32) {
			for layer := range 2 {
				k, v, err := cache.Gather(layer, id)
				ok("Gather", err)
				k, v = widen(k), widen(v)
				out = append(append(out, k.F32s()...), v.F32s()...)
			}
			return out
		}
		want := all(id)
		ok("SwapOut", w.SwapOut(ctx, id))
		ok("Restore", w.Restore(ctx, id))
		if !slices.Equal(all(id), want) {
			t.Errorf("%v: other rows come back", c.Coding)
		}
		var pages [][]byte
		for k := range 4 {
			b, err := w.Export(ctx, id, k, page.Key{Namespace: "a"}, nil)
			ok("Export", err)
			pages = append(pages, b)
		}
		again := cache.NewSequence()
		ok("Import", w.Import(ctx, again, pages...))
		if !slices.Equal(all(again), want) {
			t.Errorf("%v: other rows are imported", c.Coding)
		}
		ok("Close", w.Close())
	}
	c := one
	c.LayerCoding = []kernel.Coding{kernel.KIVI(kernel.Int8, 32), kernel.KIVI(kernel.Int4, 32)}
	cache, err := kvcache.New(backend, c)
	if err != nil {
		t.Fatal(err)
	}
	var value *kvcache.ValueError
	if w, err := cache.NewSwapSpace(2, 2); w != nil || !errors.As(err, &value) {
		t.Errorf("a coding of each layer: %v", err)
	}
}

func widen(v tensor.View) tensor.View {
	out := tensor.New(tensor.F32, v.Shape[:3]...)
	for i := range v.Shape[0] {
		for h := range v.Shape[1] {
			for d := range v.Shape[2] {
				out.Set(v.At(i, h, d), i, h, d)
			}
		}
	}
	return out
}

// TestBind: what a layer has, and what it has not.
func TestBind(t *testing.T) {
	m := fixed(t, small())
	a := kernel.Args{KeyScale: tensor.New(tensor.F32, 1), CodedKey: kernel.CodedPages{Codes: tensor.New(tensor.U8, 1)}}
	m.ok("Bind", m.cache.Bind(1, &a))
	if a.Key != m.cache.KeyView(1) || a.Value != m.cache.ValueView(1) || !a.KeyScale.IsZero() || !a.CodedKey.Codes.IsZero() {
		t.Errorf("bound to %+v", a)
	}
	var value *kvcache.ValueError
	if err := m.cache.Bind(2, &a); !errors.As(err, &value) {
		t.Errorf("Bind of layer 2 of 2: %v", err)
	}
}
