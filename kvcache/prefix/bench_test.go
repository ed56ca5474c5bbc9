package prefix_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// large is an index of so many pages of one token: prompts of 100, of which the
// first 50 are one of ten beginnings.
func large(b *testing.B, kind string, pages int) (*kvcache.Cache, prefix.Index) {
	b.Helper()
	c, err := kvcache.New(cpu.New(cpu.Options{Workers: 1}), kvcache.Config{Layers: 1, Pages: pages + 100, PageSize: 1, KVHeads: 1, HeadDim: 1, ValueDim: 1, DType: tensor.F16})
	if err != nil {
		b.Fatal(err)
	}
	x, err := prefix.NewRadix(c, prefix.Options{})
	if kind == "chain" {
		x, err = prefix.NewChain(c, prefix.Options{})
	}
	if err != nil {
		b.Fatal(err)
	}
	for i := int32(0); x.Stats().Pages < pages-100; i++ {
		p := &prefix.Prompt{Tokens: make([]int32, 100)}
		for j := range p.Tokens {
			p.Tokens[j] = i % 10
		}
		p.Tokens[50] = i
		id := c.NewSequence()
		_, err := c.Extend([]kvcache.ID{id}, []int{100}, nil)
		if err == nil {
			_, err = x.Insert(p, id)
		}
		if err := errors.Join(err, c.Free(id)); err != nil {
			b.Fatal(err)
		}
	}
	return c, x
}

// BenchmarkEvict is the time of one page given back, of 10⁴ to 10⁶ known.
func BenchmarkEvict(b *testing.B) {
	for _, kind := range []string{"radix", "chain"} {
		for _, pages := range []int{1e4, 1e5, 1e6} {
			b.Run(fmt.Sprintf("%s/pages=%d", kind, pages), func(b *testing.B) {
				_, x := large(b, kind, pages)
				b.ResetTimer()
				done := 0
				for done < b.N {
					n := x.Evict(min(b.N-done, 1000))
					if done += n; n == 0 {
						b.StopTimer()
						_, x = large(b, kind, pages)
						b.StartTimer()
					}
				}
			})
		}
	}
}

// BenchmarkMatch is the time of a prompt of 128 Ki tokens in pages of 16, found
// in full.
func BenchmarkMatch(b *testing.B) {
	c, err := kvcache.New(cpu.New(cpu.Options{Workers: 1}), kvcache.Config{Layers: 1, Pages: 8192, PageSize: 16, KVHeads: 1, HeadDim: 1, ValueDim: 1, DType: tensor.F16})
	if err != nil {
		b.Fatal(err)
	}
	p := &prefix.Prompt{Tokens: make([]int32, 128<<10)}
	id := c.NewSequence()
	if _, err := c.Extend([]kvcache.ID{id}, []int{len(p.Tokens)}, nil); err != nil {
		b.Fatal(err)
	}
	for name, x := range kinds(b, c, prefix.LRU) {
		b.Run(name, func(b *testing.B) {
			if _, err := x.Insert(p, id); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for range b.N {
				l, err := x.Match(p)
				if err != nil || l.Tokens() != len(p.Tokens) {
					b.Fatal(err, l.Tokens())
				}
				l.Release()
			}
		})
	}
}

// BenchmarkCascade is one layer of a decode step of 16 sequences that share 8 Ki
// keys and have 64 each of their own, in one pass and in two.
func BenchmarkCascade(b *testing.B) {
	const sequences, shared, own = 16, 8 << 10, 64
	config := attention.Config{Heads: 8, KVHeads: 2, HeadDim: 128, DType: tensor.F32, KVDType: tensor.F16, PageSize: 16, KeyStorage: kernel.PostRoPE, Policy: kernel.Fast,
		Rotary: rope.Default{Base: rope.Base{HeadDim: 128, Theta: 1e4}}, Mask: attention.Causal()}
	backend := cpu.New(cpu.Options{})
	c, err := kvcache.New(backend, kvcache.Config{Layers: 1, Pages: 1024, PageSize: 16, KVHeads: 2, HeadDim: 128, ValueDim: 128, DType: tensor.F16, KeyStorage: kernel.PostRoPE})
	if err != nil {
		b.Fatal(err)
	}
	root := c.NewSequence()
	_, err = c.Extend([]kvcache.ID{root}, []int{shared}, nil)
	ids, err2 := prefix.Fan(c, root, sequences)
	lens, counts := make([]int, sequences), make([]int, sequences)
	for i := range ids {
		lens[i], counts[i] = 1, own
	}
	_, err3 := c.Extend(ids, counts, nil)
	whole, err4 := attention.New(backend, config)
	tails, err5 := attention.New(backend, config)
	config.Mask = attention.Bidirectional()
	prefixes, err6 := attention.New(backend, config)
	if err := errors.Join(err, err2, err3, err4, err5, err6); err != nil {
		b.Fatal(err)
	}
	args := func() *kernel.Args {
		a := &kernel.Args{Query: tensor.New(tensor.F32, sequences, 8, 128), Out: tensor.New(tensor.F32, sequences, 8, 128), LSE: tensor.New(tensor.F32, sequences, 8)}
		if err := c.Bind(0, a); err != nil {
			b.Fatal(err)
		}
		return a
	}
	one, two := args(), args()
	view := c.Sequences(ids...)
	cascade := prefix.NewCascade(view)
	if err := errors.Join(cascade.Plan(lens), whole.Plan(attention.Step{KV: view, QueryLens: lens}),
		prefixes.Plan(attention.Step{KV: cascade.Shared(), QueryLens: cascade.SharedQueryLens(), QueryPos: cascade.QueryPos()}),
		tails.Plan(attention.Step{KV: cascade.Tails(), QueryLens: lens, QueryPos: cascade.QueryPos()})); err != nil {
		b.Fatal(err)
	}
	merge := &kernel.MergeArgs{OutA: one.Out, LSEA: one.LSE, OutB: two.Out, LSEB: two.LSE, Out: one.Out, LSE: one.LSE, Policy: kernel.Fast}
	b.Run("one pass", func(b *testing.B) {
		for range b.N {
			if err := whole.Run(one); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cascade", func(b *testing.B) {
		for range b.N {
			if err := errors.Join(prefixes.Run(one), tails.Run(two), backend.Merge(merge)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
