package backend

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// host has tensors of a backend, wherever its memory is.
type host struct {
	t *testing.T
	b kernel.Backend
}

// device is what a backend has whose memory is not the host's.
type device interface {
	CopyIn(dst tensor.Buffer, src []byte) error
	CopyOut(dst []byte, src tensor.Buffer) error
}

func (h host) put(x []float32, shape ...int64) tensor.View {
	h.t.Helper()
	v := tensor.New(tensor.F32, shape...)
	copy(v.F32s(), x)
	d, ok := h.b.(device)
	if !ok {
		return v
	}
	m, err := h.b.Alloc(4 * v.Len())
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { m.(interface{ Close() error }).Close() })
	if err := d.CopyIn(m, v.Bytes()[:4*v.Len()]); err != nil {
		h.t.Fatal(err)
	}
	return tensor.Of(m, tensor.F32, shape...)
}

func (h host) get(v tensor.View) []float32 {
	h.t.Helper()
	out := tensor.New(tensor.F32, v.Len())
	if d, ok := h.b.(device); ok {
		if err := d.CopyOut(out.Bytes()[:4*v.Len()], v.Buf); err != nil {
			h.t.Fatal(err)
		}
	} else {
		copy(out.F32s(), v.F32s())
	}
	return out.F32s()[:v.Len()]
}

// story is prefill, a fork, decode of both, a roll-back and an eviction of a
// model of two layers over a paged cache. It returns all outputs.
func story(t *testing.T, b kernel.Backend, config kvcache.Config) (outs []float32) {
	const layers, heads = 2, 4
	h, r := host{t, b}, rand.New(rand.NewPCG(7, 9))
	normal := func(n int64) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return x
	}
	config.Layers, config.Pages, config.PageSize, config.KVHeads, config.HeadDim, config.ValueDim = layers, 40, 16, 2, 32, 32
	if config.DType.Float8() {
		scales := kvcache.Scales{Key: h.put([]float32{0.3, 0.7}, 2), Value: h.put([]float32{0.01, 2}, 2)}
		config.Scales = []kvcache.Scales{scales, scales}
	}
	if config.MaxPages > 0 {
		config.Pages = 12
	}
	cache, err := kvcache.New(b, config)
	if err != nil {
		t.Fatal(err)
	}
	a, err := attention.New(b, attention.Config{Heads: heads, KVHeads: 2, HeadDim: 32, DType: tensor.F32, KVDType: config.DType, PageSize: 16, Coding: config.Coding,
		Mask: attention.Causal(), Rotary: rope.Default{Base: rope.Base{HeadDim: 32}}, KeyStorage: config.KeyStorage})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	step := func(ids []kvcache.ID, counts ...int) {
		t.Helper()
		slots, err := cache.Extend(ids, counts, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Plan(attention.Step{QueryLens: counts, KV: cache.Sequences(ids...)}); err != nil {
			t.Fatal(err)
		}
		n := int64(len(slots))
		for layer := range layers {
			if err := cache.Append(layer, slots, h.put(normal(n*64), n, 2, 32), h.put(normal(n*64), n, 2, 32)); err != nil {
				t.Fatal(err)
			}
			args := kernel.Args{Query: h.put(normal(n*heads*32), n, heads, 32), Out: h.put(nil, n, heads, 32), LSE: h.put(nil, n, heads)}
			if err := cache.Bind(layer, &args); err != nil {
				t.Fatal(err)
			}
			if err := a.Run(&args); err != nil {
				t.Fatal(err)
			}
			outs = append(append(outs, h.get(args.Out)...), h.get(args.LSE)...)
		}
	}
	one := cache.NewSequence()
	step([]kvcache.ID{one}, 70)
	two, err := cache.Fork(one)
	if err != nil {
		t.Fatal(err)
	}
	both := []kvcache.ID{one, two}
	step(both, 1, 3)
	step(both, 1, 1)
	if err := cache.Truncate(two, 72); err != nil {
		t.Fatal(err)
	}
	step(both, 5, 2)
	if !config.Coded() {
		if err := cache.Drop(one, 16, 32); err != nil {
			t.Fatal(err)
		}
	}
	if config.MaxPages > 0 {
		if err := cache.Grow(config.MaxPages); err != nil {
			t.Fatal(err)
		}
	}
	step(both, 1, 40)
	if err := cache.CheckIntegrity(); err != nil {
		t.Error(err)
	}
	return outs
}

// A model over a cache computes the same bits on every backend.
func TestBackendsAgree(t *testing.T) {
	others := All()
	others = others[:len(others)-1]
	if len(others) == 0 {
		t.Skip("there is no backend but cpu")
	}
	for _, c := range []kvcache.Config{
		{DType: tensor.F32}, {DType: tensor.F16, MaxPages: 40}, {DType: tensor.BF16, KeyStorage: kernel.PreRoPE}, {DType: tensor.F16, KeyStorage: kernel.PostRoPE},
		{DType: tensor.F8E4M3}, {DType: tensor.BF16, Coding: kernel.KIVI(kernel.Int8, 32), CodedPages: 40}, {DType: tensor.F16, Coding: kernel.KIVI(kernel.Int4, 32), CodedPages: 40, Residual: 32},
	} {
		t.Run(fmt.Sprintf("%v/%v/%v/%d", c.DType, c.Coding, c.KeyStorage, c.MaxPages), func(t *testing.T) {
			host := cpu.New(cpu.Options{})
			defer host.Close()
			want := story(t, host, c)
			for _, b := range others {
				got := story(t, b, c)
				if !slices.Equal(got, want) {
					bad := 0
					for i := range min(len(got), len(want)) {
						if got[i] != want[i] {
							bad++
						}
					}
					t.Errorf("%s: %d of %d outputs differ from cpu's", b.Name(), bad, len(want))
				}
			}
		})
	}
}
