package attention_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// dense is attention over all keys of the scene.
func (s *selecting) dense(t *testing.T, b kernel.Backend, key tensor.View, c attention.Config) kernel.Args {
	c.Mask = attention.Causal()
	a, err := attention.New(b, c)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Plan(attention.Step{QueryLens: []int{int(s.in.Query.Shape[0])}, KV: pagedKV{s}}); err != nil {
		t.Fatal(err)
	}
	args := s.args(key)
	if err := a.Run(&args); err != nil {
		t.Fatal(err)
	}
	return args
}

func (s *selecting) args(key tensor.View) kernel.Args {
	q := s.in.Query
	return kernel.Args{Query: q, Key: key, Value: key, Out: tensor.New(tensor.F32, q.Shape[0], q.Shape[1], q.Shape[2]), LSE: tensor.New(tensor.F32, q.Shape[0], q.Shape[1])}
}

// everything lists all keys that each token may see.
func (s *selecting) everything() *attention.Keys {
	out := &attention.Keys{Indptr: []int32{0}}
	for t := range int(s.in.Query.Shape[0]) {
		for range s.in.KVHeads {
			for j := range int(s.in.SeqLens[0]) - int(s.in.Query.Shape[0]) + t + 1 {
				out.Indices = append(out.Indices, int32(j))
			}
			out.Indptr = append(out.Indptr, int32(len(out.Indices)))
		}
	}
	return out
}

func TestKeyAttentionOfAllKeysIsDense(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(17, 18))
	for i := range 20 {
		tokens := 1 + r.IntN(4)
		s := newSelecting(r, tokens, tokens+r.IntN(700), 1+r.IntN(40), 4, 1<<r.IntN(3), 8)
		key := s.key
		if i%2 == 1 { // heads before slots, as kvcache has them
			key = tensor.New(tensor.F32, s.key.Shape[0], s.key.Shape[2], s.key.Shape[1], s.key.Shape[3]).Swap(1, 2)
			for p := range s.key.Shape[0] {
				for slot := range s.key.Shape[1] {
					for g := range s.key.Shape[2] {
						for d := range s.key.Shape[3] {
							key.Set(s.key.At(p, slot, g, d), p, slot, g, d)
						}
					}
				}
			}
		}
		c := attention.Config{Heads: 4, KVHeads: s.in.KVHeads, HeadDim: 8, PageSize: s.in.PageSize}
		if i%3 > 0 {
			c.Rotary = plain{dim: 8}
		}
		want := s.dense(t, b, key, c)
		for _, ranks := range []bool{false, true} {
			k, err := attention.NewKeyAttention(b, c, ranks)
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Plan(&s.in, s.everything(), key); err != nil {
				t.Fatal(err)
			}
			got := s.args(key)
			if err := k.Run(&got); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got.Out.F32s(), want.Out.F32s()) || !slices.Equal(got.LSE.F32s(), want.LSE.F32s()) {
				t.Fatalf("%d tokens, %d keys, pages of %d, ranks %v: not the bits of dense attention", tokens, s.in.SeqLens[0], s.in.PageSize, ranks)
			}
			k.Close()
		}
	}
}

// Attention over some keys is that by hand, with positions as they were or as ranks.
func TestKeyAttentionOfSomeKeys(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(19, 20))
	for range 20 {
		s := newSelecting(r, 2, 10+r.IntN(200), 1+r.IntN(9), 4, 2, 8)
		keys := &attention.Keys{Indptr: []int32{0}}
		for tok := range 2 {
			for range 2 {
				own := int(s.in.SeqLens[0]) - 2 + tok
				for j := range own {
					if r.IntN(3) == 0 {
						keys.Indices = append(keys.Indices, int32(j))
					}
				}
				keys.Indices = append(keys.Indices, int32(own))
				keys.Indptr = append(keys.Indptr, int32(len(keys.Indices)))
			}
		}
		for _, ranks := range []bool{false, true} {
			k, err := attention.NewKeyAttention(b, attention.Config{Heads: 4, KVHeads: 2, HeadDim: 8, PageSize: s.in.PageSize, Rotary: plain{dim: 8}}, ranks)
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Plan(&s.in, keys, s.key); err != nil {
				t.Fatal(err)
			}
			got := s.args(s.key)
			if err := k.Run(&got); err != nil {
				t.Fatal(err)
			}
			k.Close()
			for tok := range 2 {
				for h := range 4 {
					want := s.byHand(keys.Of(tok, h/2, 2), tok, h, ranks)
					for d, w := range want {
						if e := math.Abs(float64(got.Out.At(int64(tok), int64(h), int64(d))) - w); e > 1e-5 {
							t.Fatalf("ranks %v, token %d, head %d, feature %d: %v, want %v", ranks, tok, h, d, got.Out.At(int64(tok), int64(h), int64(d)), w)
						}
					}
				}
			}
		}
	}
}

// byHand is attention over a list, of plain RoPE with scale 1/√dim.
func (s *selecting) byHand(list []int32, t, h int, ranks bool) []float64 {
	dim, g := s.dim(), h/s.group()
	out, sum := make([]float64, dim), 0.0
	for n, j := range list {
		distance := float64(list[len(list)-1] - j)
		if ranks {
			distance = float64(len(list) - 1 - n)
		}
		dot := 0.0
		for d := range dim / 2 {
			a := distance * math.Pow(10000, -2*float64(d)/float64(dim))
			x, y, u, v := s.q(t, h, d), s.q(t, h, d+dim/2), s.k(int(j), g, d), s.k(int(j), g, d+dim/2)
			dot += (x*u+y*v)*math.Cos(a) - (y*u-x*v)*math.Sin(a)
		}
		w := math.Exp(dot / math.Sqrt(float64(dim)))
		sum += w
		for d := range dim {
			out[d] += w * s.k(int(j), g, d)
		}
	}
	for d := range out {
		out[d] /= sum
	}
	return out
}

func TestKeyAttentionRefusesBadArguments(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(25, 26))
	s := newSelecting(r, 2, 20, 4, 4, 2, 8)
	good := attention.Config{Heads: 4, KVHeads: 2, HeadDim: 8, PageSize: 4}
	for name, spoil := range map[string]func(*attention.Config){
		"mask": func(c *attention.Config) { c.Mask = attention.Causal() }, "heads": func(c *attention.Config) { c.KVHeads = 3 },
		"no heads": func(c *attention.Config) { c.KVHeads = 0 }, "contiguous": func(c *attention.Config) { c.PageSize = 0 },
		"slopes": func(c *attention.Config) { c.Score.Slopes = true }, "backward": func(c *attention.Config) { c.Backward = true },
		"codec": func(c *attention.Config) { c.Coding = kernel.KIVI(kernel.Int8, 8) }, "dim": func(c *attention.Config) { c.HeadDim = 0 },
	} {
		c := good
		spoil(&c)
		if _, err := attention.NewKeyAttention(b, c, false); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	k, err := attention.NewKeyAttention(b, good, false)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	args := s.args(s.key)
	if err := k.Run(&args); err == nil {
		t.Error("Run before Plan")
	}
	lists := s.everything()
	far := &attention.Keys{Indptr: slices.Clone(lists.Indptr), Indices: slices.Clone(lists.Indices)}
	far.Indices[3] = 99
	for name, plan := range map[string]func() error{
		"key":        func() error { return k.Plan(&s.in, far, s.key) },
		"no lists":   func() error { return k.Plan(&s.in, nil, s.key) },
		"few lists":  func() error { return k.Plan(&s.in, &attention.Keys{Indptr: []int32{0}}, s.key) },
		"no keys":    func() error { return k.Plan(&s.in, lists, tensor.View{}) },
		"other keys": func() error { return k.Plan(&s.in, lists, tensor.New(tensor.F32, 5, 3, 2, 8)) },
	} {
		if err := plan(); err == nil {
			t.Errorf("Plan with a bad %s", name)
		}
	}
	if err := k.Plan(&s.in, lists, s.key); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*kernel.Args){
		"value order": func(a *kernel.Args) { a.Value = tensor.New(tensor.F32, 5, 2, 4, 8).Swap(1, 2) },
		"no value":    func(a *kernel.Args) { a.Value = tensor.View{} },
		"no query":    func(a *kernel.Args) { a.Query = tensor.View{} },
		"out":         func(a *kernel.Args) { a.Out = tensor.New(tensor.F32, 2, 3, 8) },
		"gaps":        func(a *kernel.Args) { a.Query = tensor.New(tensor.F32, 2, 6, 8).Slice(1, 0, 4) },
	} {
		args := s.args(s.key)
		spoil(&args)
		if err := k.Run(&args); err == nil {
			t.Errorf("Run with a bad %s", name)
		}
	}
	if err := k.Run(nil); err == nil {
		t.Error("Run(nil)")
	}
}
