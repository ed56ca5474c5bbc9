package kvcache_test

import (
	"context"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/tensor"
)

// BenchmarkSwap swaps a sequence of 2048 tokens out and in on the CPU backend,
// and exports and imports a page; copy is a copy of as many bytes.
func BenchmarkSwap(b *testing.B) {
	ctx := context.Background()
	config := kvcache.Config{Layers: 16, Pages: 256, PageSize: 16, KVHeads: 8, HeadDim: 128, ValueDim: 128, DType: tensor.F16}
	c, err := kvcache.New(cpu.New(cpu.Options{}), config)
	if err != nil {
		b.Fatal(err)
	}
	w, err := c.NewSwapSpace(128, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	id := c.NewSequence()
	if _, err := c.Extend([]kvcache.ID{id}, []int{2048}, nil); err != nil {
		b.Fatal(err)
	}
	bytes := c.Stats().UsedBytes
	from, to := make([]byte, bytes), make([]byte, bytes)
	b.Run("copy", func(b *testing.B) {
		b.SetBytes(bytes)
		for b.Loop() {
			copy(to, from)
		}
	})
	b.Run("out+in", func(b *testing.B) {
		b.SetBytes(2 * bytes)
		for b.Loop() {
			if err := w.SwapOut(ctx, id); err != nil {
				b.Fatal(err)
			}
			if err := w.Restore(ctx, id); err != nil {
				b.Fatal(err)
			}
		}
	})
	var blob []byte
	b.Run("export", func(b *testing.B) {
		b.SetBytes(bytes / 128)
		for i := 0; b.Loop(); i++ {
			if blob, err = w.Export(ctx, id, i%128, page.Key{}, blob[:0]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("import", func(b *testing.B) {
		b.SetBytes(bytes / 128)
		for b.Loop() {
			x := c.NewSequence()
			if err := w.Import(ctx, x, blob); err != nil {
				b.Fatal(err)
			}
			if err := c.Free(x); err != nil {
				b.Fatal(err)
			}
		}
	})
}
