package policy_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/policy"
	"github.com/longctx/longctx/tensor"
)

// TestThinCache: attention over a cache of fewer channels is attention with the
// others 0, and the cache takes so much less memory.
func TestThinCache(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	const n, dim, thin = 40, 16, 6
	rng := rand.New(rand.NewPCG(1, 9))
	normal := func(shape ...int64) tensor.View {
		v := tensor.New(tensor.F32, shape...)
		for i := range v.F32s() {
			v.F32s()[i] = float32(rng.NormFloat64())
		}
		return v
	}
	query, key, value := normal(n, 2, dim), normal(n, 1, dim), normal(n, 1, dim)
	flat := tensor.Of(key.Buf, tensor.F32, n, dim)
	channels, err := policy.ThinK{Keep: thin, Queries: 8}.Channels(query, flat)
	if err != nil {
		t.Fatal(err)
	}
	// attend is attention of the last query over a cache of so many channels.
	attend := func(query, key tensor.View) (out tensor.View, bytes int64) {
		width := int(key.Shape[2])
		c, err := kvcache.NewHeads(b, kvcache.Config{Layers: 1, Pages: 10, PageSize: 4, KVHeads: 1, HeadDim: width, ValueDim: dim, DType: tensor.F32})
		if err != nil {
			t.Fatal(err)
		}
		a, err := attention.New(b, attention.Config{Heads: 2, KVHeads: 1, HeadDim: width, ValueDim: dim, DType: tensor.F32, PageSize: 4, Mask: attention.Causal(), Scale: 1 / math.Sqrt(dim)})
		if err != nil {
			t.Fatal(err)
		}
		id := c.NewSequence()
		slots, err := c.Extend([]kvcache.ID{id}, []int{n}, nil)
		if err == nil {
			err = c.Append(0, slots, key, value)
		}
		var v kvcache.View
		if err == nil {
			err = c.Layer(&v, 0, id)
		}
		if err == nil {
			err = a.Plan(attention.Step{QueryLens: []int{1}, KV: &v})
		}
		out = tensor.New(tensor.F32, 1, 2, dim)
		args := kernel.Args{Query: query.Slice(0, n-1, n), Out: out}
		if err == nil {
			err = c.Bind(&args)
		}
		if err == nil {
			err = a.Run(&args)
		}
		if err != nil {
			t.Fatal(err)
		}
		return out, c.Stats().Bytes
	}
	thinQuery, err := policy.TakeChannels(query, channels)
	if err != nil {
		t.Fatal(err)
	}
	thinKey, err := policy.TakeChannels(key, channels)
	if err != nil {
		t.Fatal(err)
	}
	got, small := attend(thinQuery, thinKey)
	next := 0
	for d := range int64(dim) {
		if next < thin && int64(channels[next]) == d {
			next++
			continue
		}
		for j := range int64(n) {
			key.Set(0, j, 0, d)
		}
	}
	want, large := attend(query, key)
	if small*(2*dim) != large*(thin+dim) {
		t.Errorf("%d bytes, with all channels %d", small, large)
	}
	for i, x := range want.F32s() {
		if y := got.F32s()[i]; math.Abs(float64(x-y)) > 1e-6 {
			t.Fatalf("element %d is %v, want %v", i, y, x)
		}
	}
}
