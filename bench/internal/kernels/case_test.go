package kernels

import (
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// Counted pair by pair and element by element.
func TestWorkOfACaseByBruteForce(t *testing.T) {
	for _, kind := range Kinds {
		for _, causal := range []bool{true, false} {
			for _, kv := range Types {
				if kv.Codec != kernel.NoCodec {
					continue // a row has no bytes a feature; see below
				}
				for _, n := range []int{1, 2, 7, 33} {
					c := Case{Kind: kind, KV: kv, HeadDim: 5, Heads: 6, KVHeads: 2, Causal: causal, Length: n}
					wide := 4
					if kind == Prefill && kv.DType == tensor.BF16 {
						wide = 2
					}
					flop, touched := 0, map[[4]int]int{} // tensor, row, head, feature: bytes
					for i := range c.Queries() {
						index := n - c.Queries() + i
						for h := range c.Heads {
							for d := range c.HeadDim {
								touched[[4]int{0, i, h, d}], touched[[4]int{1, i, h, d}] = wide, wide
								if kind == Backward {
									touched[[4]int{7, i, h, d}], touched[[4]int{8, i, h, d}], touched[[4]int{9, i, h}] = 4, 4, 4
								}
							}
							for j := range n {
								if (causal || kind == Decode) && j > index {
									continue
								}
								for d := range c.HeadDim {
									flop += 4 // multiply and add, for the score and for the output
									if kind == Backward {
										flop += 6 // for the score and four gradients
										touched[[4]int{5, j, h / (c.Heads / c.KVHeads), d}] = 4
										touched[[4]int{6, j, h / (c.Heads / c.KVHeads), d}] = 4
									}
									key := [4]int{2, j, h / (c.Heads / c.KVHeads), d}
									touched[key] = int(kv.DType.Size())
									key[0] = 3
									touched[key] = int(kv.DType.Size())
								}
							}
						}
					}
					bytes := 0
					for _, b := range touched {
						bytes += b
					}
					if c.FLOP() != float64(flop) || c.Bytes() != float64(bytes) || c.Intensity() != float64(flop)/float64(bytes) {
						t.Errorf("%v: %v FLOP and %v bytes, want %d and %d", c, c.FLOP(), c.Bytes(), flop, bytes)
					}
				}
			}
		}
	}
}

// What a coded cache takes is what its tensors take; the last page is plain.
func TestBytesOfCodedPages(t *testing.T) {
	for _, kv := range Types[len(Types)-2:] {
		for _, dim := range []int{64, 96, 128} {
			c := Case{Kind: Decode, KV: kv, HeadDim: dim, Heads: 6, KVHeads: 2, PageSize: 16, Length: 16 * 5}
			config := c.cache(1)
			config.Pages = 1
			with, err := kvcache.Bytes(config)
			config.CodedPages++
			more, err2 := kvcache.Bytes(config)
			if err != nil || err2 != nil {
				t.Fatal(err, err2)
			}
			if got, want := c.kvBytes(), 5*(more-with); got != want {
				t.Errorf("%v: %d bytes, want %d, five pages", c, got, want)
			}
			whole := c.kvBytes()
			c.Length += 3
			if got, want := c.kvBytes(), whole+3*2*2*int64(dim)*2; got != want {
				t.Errorf("%v: %d bytes, want %d, five pages and three rows of F16", c, got, want)
			}
		}
	}
}

func TestCases(t *testing.T) {
	a := Default([]int{1, 2})
	a.Kinds = Kinds
	for _, full := range []bool{false, true} {
		list := a.Cases(full)
		seen := map[string]bool{}
		for _, c := range list {
			key := c.String() + " " + string(rune('0'+c.Threads))
			if seen[key] {
				t.Errorf("%s twice", key)
			}
			seen[key] = true
			if c.Heads%c.KVHeads != 0 || c.Kind == Prefill && (c.PageSize != 0) != (c.KV.Codec != kernel.NoCodec) || c.Kind == Decode && c.Causal {
				t.Errorf("%+v makes no sense", c)
			}
		}
		// the base and 2+2+2+1 others; all combinations
		want := (8 + 11) * 2 * 8
		if full {
			coded := 3 // which cannot be contiguous
			want = (8*2*len(Types) + 11*(2*len(Types)-coded)) * 2 * 3 * 3
		}
		if !full {
			want += (8 + 11) * 2 * (len(Types) - 3)
		}
		if plain := 3; full { // types that have gradients
			want += 8 * 2 * plain * 2 * 3 * 3
		} else {
			want += 8 * 2 * (1 + 2 + 2 + 1 + plain - 1)
		}
		if len(list) != want {
			t.Errorf("full %v: %d cases, want %d", full, len(list), want)
		}
		for _, name := range []string{"prefill/kv=f32/d=128/heads=8-2/causal/n=4096 2", "decode/kv=f16/d=128/heads=32-8/page=64/n=32768 1"} {
			if !seen[name] {
				t.Errorf("full %v: no %s", full, name)
			}
		}
	}
	// An axis without its usual value takes the first that it has.
	a.HeadDims, a.Causal, a.PageSizes, a.PrefillLengths, a.DecodeLengths = []int{80}, []bool{false}, []int{16}, []int{10}, []int{10}
	a.Groups, a.Types, a.Threads = []int{2}, Types[2:3], []int{1}
	if list := a.Cases(false); !slices.EqualFunc(list, []string{"prefill/kv=bf16/d=80/heads=8-4/full/n=10", "decode/kv=bf16/d=80/heads=16-8/page=16/n=10",
		"backward/kv=bf16/d=80/heads=8-4/full/n=10"},
		func(c Case, s string) bool { return c.String() == s }) {
		t.Errorf("%v", list)
	}
}

func TestMemoryOfACase(t *testing.T) {
	c := Case{Kind: Decode, KV: Types[1], HeadDim: 128, Heads: 32, KVHeads: 8, Length: 32 << 10, PageSize: 64}
	for _, limit := range []int64{1 << 40, 1 << 30, 300 << 20} {
		n := c.layers(limit)
		if c.need(n) > limit || int64(n)*c.kvBytes() < workingSet && c.need(n+1) <= limit {
			t.Errorf("limit %d: %d layers of %d bytes", limit, n, c.kvBytes())
		}
	}
	if n := c.layers(1000); n != 1 {
		t.Errorf("%d layers where memory is short, want one, which is refused", n)
	}
}

func TestSizes(t *testing.T) {
	for word, want := range map[string]int{"0": 0, "17": 17, "4k": 4096, " 1M ": 1 << 20, "1024m": 1 << 30} {
		if got, err := ParseSize(word); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", word, got, err, want)
		}
	}
	for _, word := range []string{"", "k", "-1", "1.5k", "1025m", "99999999999999999999", "4kk"} {
		if got, err := ParseSize(word); err == nil {
			t.Errorf("%q: %d, want an error", word, got)
		}
	}
}
