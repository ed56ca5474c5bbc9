package kvcache_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// BenchmarkApply keeps every eighth key, by rows or by pages, of 8 heads of 65536
// keys of 128 features. Bytes are those of the rows that stay.
func BenchmarkApply(b *testing.B) {
	const heads, n, dim, page = 8, 65536, 128, 16
	backend := cpu.New(cpu.Options{})
	defer backend.Close()
	c, err := kvcache.NewHeads(backend, kvcache.Config{Layers: 1, KVHeads: heads, Pages: heads * n / page * 5 / 4, PageSize: page, HeadDim: dim, ValueDim: dim, DType: tensor.BF16})
	if err != nil {
		b.Fatal(err)
	}
	id := c.NewSequence()
	if _, err := c.Extend([]kvcache.ID{id}, []int{n}, nil); err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 8))
	for _, unit := range []int32{1, page} {
		plans := make([]kvcache.Plan, heads)
		for h := range plans {
			for at := int32(0); at < n; at += 8 * unit {
				first := at + unit*int32(rng.IntN(8))
				for j := range unit {
					plans[h].Keep = append(plans[h].Keep, first+j)
				}
			}
		}
		b.Run(fmt.Sprintf("rows=%d", unit), func(b *testing.B) {
			b.SetBytes(heads * n / 8 * 2 * dim * 2)
			for b.Loop() {
				b.StopTimer()
				fork, err := c.Fork(id)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := c.Apply([]kvcache.ID{fork}, plans); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := c.Free(fork); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
