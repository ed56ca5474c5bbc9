package kerneltest

import (
	"fmt"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// documents are the ids of the keys of one sequence after another, a new one
// for each length.
func documents(lengths ...int) []int32 {
	var out []int32
	for id, n := range lengths {
		for range n {
			out = append(out, int32(3*id))
		}
	}
	return out
}

// tree is the mask of token trees: query r of sequence s sees itself and its
// ancestors, and its parent is drawn from the queries before it.
func tree(seed uint64, queryLens []int) kernel.TreeMask {
	r := newRandom(seed, 50)
	var t kernel.TreeMask
	for _, n := range queryLens {
		t.Start = append(t.Start, int32(len(t.Bits)))
		words := (n + 63) / 64
		first := len(t.Bits)
		t.Bits = append(t.Bits, make([]uint64, n*words)...)
		for q := range n {
			row := t.Bits[first+q*words:][:words]
			if q > 0 {
				parent := r.below(q)
				copy(row, t.Bits[first+parent*words:][:words])
			}
			row[q/64] |= 1 << (q % 64)
		}
	}
	return t
}

// blocks is a block mask with about half of the blocks of every row, none of
// some.
func blocks(seed uint64, s attention.Step, queryBlock, keyBlock, kvHeads int, perHead bool) kernel.BlockSparse {
	r := newRandom(seed, 51)
	b := kernel.BlockSparse{QueryBlock: int32(queryBlock), KeyBlock: int32(keyBlock), PerHead: perHead, Indptr: []int32{0}}
	if !perHead {
		kvHeads = 1
	}
	for i, n := range s.QueryLens {
		b.RowStart = append(b.RowStart, int32(len(b.Indptr)-1))
		if n == 0 {
			continue
		}
		keys := s.KeyLens[i]
		rows := floor(keys-1, queryBlock) - floor(keys-n, queryBlock) + 1
		for range rows * kvHeads {
			none := r.below(7) == 0
			for k := range (keys + keyBlock - 1) / keyBlock {
				if r.below(2) == 0 && !none {
					b.Indices = append(b.Indices, int32(k))
				}
			}
			b.Indptr = append(b.Indptr, int32(len(b.Indices)))
		}
	}
	return b
}

func (t *builder) masks() {
	wide, s := mixed(), sound()
	wide.QueryLens[0], wide.KeyLens[0] = 80, 150
	for _, m := range []struct {
		name string
		attention.Mask
	}{
		{"causal", attention.Causal()},
		{"bidirectional", attention.Bidirectional()},
		{"window=1", attention.Window(1)},
		{"window=20", attention.Window(20)},
		{"window=64", attention.Window(64)},
		{"window=0", attention.Mask{Regions: []kernel.Region{{Key: kernel.All}}}}, // nobody sees a key
		{"window-sinks", attention.WindowSinks(20, 4)},
		{"window-sinks/many", attention.WindowSinks(10, 90)},
		{"chunked=1", attention.Chunked(1)},
		{"chunked=20", attention.Chunked(20)},
		{"chunked=64", attention.Chunked(64)},
		{"window-and-chunked", both(attention.Window(30), attention.Chunked(50))},
		{"two-chunk-sizes", both(attention.Chunked(48), attention.Chunked(80))},
		{"strictly-before", attention.Mask{Regions: []kernel.Region{diff(1, kernel.MaxBound)}}},
		{"band", attention.Mask{Regions: []kernel.Region{diff(-3, 6)}}},
		{"two-bands", attention.Mask{Regions: []kernel.Region{diff(0, 3), diff(30, 70)}}},
		{"key-range", attention.Mask{Regions: []kernel.Region{{Diff: kernel.All, Key: kernel.Range{Lo: 10, Hi: 66}}}}},
		{"chunk-before", attention.Mask{Regions: []kernel.Region{{Diff: kernel.All, Key: kernel.All, Chunk: [2]kernel.ChunkRange{{Size: 16, Range: kernel.Range{Lo: 1, Hi: 3}}}}}}},
	} {
		t.attention("mask/"+m.name, config(4, 2, 16, masked(m.Mask)), wide)
		t.attention("mask/"+m.name+"/bf16-paged", config(4, 1, 16, masked(m.Mask), types(tensor.BF16, tensor.BF16), paged(16)), wide)
	}
	for _, w := range []int{500, 512, 513, 1000} {
		t.attention(fmt.Sprintf("mask/window=%d/long", w), config(2, 1, 16, masked(attention.Window(w))), step([]int{3, 66}, []int{1100, 700}))
	}
	t.attention("mask/window-sinks/long", config(2, 1, 16, masked(attention.WindowSinks(100, 4))), step([]int{3, 66}, []int{1100, 700}))

	prefix := wide
	prefix.PrefixLens = []int{40, 0, 200, 3, 5, 2}
	docs := s
	docs.Documents = append(documents(30, 1, 39), append(documents(30), append(documents(65, 65), documents(17, 3)...)...)...)
	trees := step([]int{70, 0, 1, 5}, []int{130, 30, 530, 5})
	trees.Tree = tree(1, trees.QueryLens)
	shared, perHead := wide, wide
	shared.Blocks = blocks(2, wide, 16, 32, 2, false)
	perHead.Blocks = blocks(3, wide, 7, 5, 2, true)
	long := extend(70, 1100)
	long.Blocks = blocks(4, long, 64, 64, 2, true)
	all := s
	all.Documents, all.PrefixLens, all.Blocks = docs.Documents, []int{50, 3, 100, 7}, blocks(5, s, 8, 8, 2, true)
	all.Tree = tree(6, s.QueryLens)

	causal := attention.Causal()
	for _, m := range []struct {
		name string
		mask attention.Mask
		step attention.Step
	}{
		{"prefix-lm", attention.PrefixLM(), prefix},
		{"prefix-lm-and-window", both(attention.PrefixLM(), attention.Window(20)), prefix},
		{"documents", attention.Documents(), docs},
		{"documents-and-causal", both(attention.Documents(), causal), docs},
		{"documents-and-window-sinks", both(attention.Documents(), attention.WindowSinks(10, 2)), docs},
		{"tree", attention.Tree(), trees},
		{"tree-and-window", both(attention.Tree(), attention.Window(40)), trees},
		{"blocks/shared", attention.Blocks(), shared},
		{"blocks/per-head", attention.Blocks(), perHead},
		{"blocks/causal", both(attention.Blocks(), causal), perHead},
		{"blocks/long", both(attention.Blocks(), causal), long},
		{"blocks-and-chunked", both(attention.Blocks(), attention.Chunked(48)), shared},
		{"everything", both(both(attention.PrefixLM(), attention.Documents()), both(attention.Blocks(), attention.Tree())), all},
	} {
		t.attention("mask/"+m.name, config(4, 2, 16, masked(m.mask)), m.step)
		t.attention("mask/"+m.name+"/f16-paged", config(4, 2, 16, masked(m.mask), types(tensor.F16, tensor.F16), paged(3)), m.step)
	}
	t.attention("mask/everything/two-terms", config(4, 2, 16, masked(both(both(attention.PrefixLM(), attention.Documents()), attention.Blocks())), rotated(rope(16)), positioned(reRoPE(10))), all)
}
