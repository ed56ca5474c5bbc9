//go:build cuda && cgo

package cuda

import (
	"bytes"
	"context"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/tensor"
)

// TestSwapSpace: a sequence that is swapped out, its pages used by another, and
// restored elsewhere has the exported pages of the CPU's cache, byte for byte,
// and the CPU's pages can be imported.
func TestSwapSpace(t *testing.T) {
	ctx := context.Background()
	config := kvcache.Config{Layers: 2, Pages: 6, PageSize: 4, KVHeads: 2, HeadDim: 32, ValueDim: 32, DType: tensor.F16,
		Coding: kernel.KIVI(kernel.Int8, 32), CodedPages: 6, Residual: 4}
	b := open(t)
	key := page.Key{Namespace: "model"}
	var want [][]byte
	for _, x := range []kernel.Backend{cpu.New(cpu.Options{}), b} {
		c, err := kvcache.New(x, config)
		check(t, err)
		w, err := c.NewSwapSpace(4, 4)
		check(t, err)
		id := c.NewSequence()
		storeTokens(t, x, c, id, 11, 0)
		_, err = c.Extend([]kvcache.ID{id}, []int{0}, nil) // codes a page
		check(t, err)
		check(t, w.SwapOut(ctx, id))
		other := c.NewSequence()
		storeTokens(t, x, c, other, 16, 100)
		check(t, w.Restore(ctx, id))
		var got [][]byte
		for k := range 3 {
			blob, err := w.Export(ctx, id, k, key, nil)
			check(t, err)
			got = append(got, blob)
		}
		if h, _, err := page.Parse(got[0]); err != nil || h.Layout.Coding.Key.Codec != kernel.Int8 {
			t.Fatalf("the first page is not coded: %+v, %v", h, err)
		}
		if want == nil {
			want = got
		}
		check(t, c.Free(other))
		again := c.NewSequence()
		check(t, w.Import(ctx, again, want...))
		for k := range want {
			blob, err := w.Export(ctx, again, k, key, nil)
			check(t, err)
			if !bytes.Equal(got[k], want[k]) || !bytes.Equal(blob, want[k]) {
				t.Errorf("%s: page %d has other bytes", x.Name(), k)
			}
		}
		check(t, c.CheckIntegrity())
		check(t, w.CheckIntegrity())
		check(t, w.Close())
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// storeTokens adds n tokens to a sequence, with rows that seed decides.
func storeTokens(t *testing.T, b kernel.Backend, c *kvcache.Cache, id kvcache.ID, n, seed int) {
	t.Helper()
	slots, err := c.Extend([]kvcache.ID{id}, []int{n}, nil)
	check(t, err)
	f := c.Config()
	for layer := range f.Layers {
		rows := func(from int) tensor.View {
			v := tensor.New(tensor.F32, int64(n), int64(f.KVHeads), int64(f.HeadDim))
			for i := range v.F32s() {
				v.F32s()[i] = float32((i*7+from+seed+layer)%61) / 8
			}
			if b.Name() == "cpu" {
				return v
			}
			m, err := b.Alloc(4 * v.Len())
			check(t, err)
			check(t, b.(*Backend).CopyIn(m, v.Bytes()))
			v.Buf = m
			return v
		}
		check(t, c.Append(layer, slots, rows(0), rows(3)))
	}
}
