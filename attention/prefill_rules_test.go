package attention_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// meansOf are the means of blocks of keys, in float64.
func (s *selecting) meansOf(h, block int) (out [][]float64) {
	keys, dim := int(s.in.SeqLens[0]), int(s.in.Query.Shape[2])
	for at := 0; at < keys; at += block {
		mean := make([]float64, dim)
		n := min(block, keys-at)
		for j := at; j < at+n; j++ {
			for d := range mean {
				mean[d] += s.keyAt(j, h, d) / float64(n)
			}
		}
		out = append(out, mean)
	}
	return out
}

// pooledRow is the softmax over the key blocks up to block x of the mean query of
// that block. worth says whose mean counts; nil: all.
func (s *selecting) pooledRow(h, x, block int, worth func(y int) bool) []float64 {
	tokens, keys, dim := int(s.in.Query.Shape[0]), int(s.in.SeqLens[0]), int(s.in.Query.Shape[2])
	lo, hi := max(x*block, keys-tokens), min((x+1)*block, keys)
	means, out := s.meansOf(h, block), make([]float64, x+1)
	for y := range out {
		for i := lo; i < hi; i++ {
			for d := range dim {
				out[y] += float64(s.in.Scale) / float64(hi-lo) * float64(s.in.Query.At(int64(i-keys+tokens), int64(h), int64(d))) * means[y][d]
			}
		}
		if worth != nil && !worth(y) {
			out[y] = math.Inf(-1)
		}
	}
	return softmaxed(out)
}

// see marks a key block for the queries of a query block.
func (s *selecting) see(c cells, x, y, block int) {
	tokens, keys := int(s.in.Query.Shape[0]), int(s.in.SeqLens[0])
	for i := max(x*block, keys-tokens); i < min((x+1)*block, keys); i++ {
		c[[2]int{i, y * block}] = true
	}
}

// MoBA: the own chunk counts in top-k, later ones are not chosen.
func TestMoBAChoosesTheChunksOfTheRule(t *testing.T) {
	eachPrefill(func(b kernel.Backend, s *selecting, block int) {
		tokens, keys := int(s.in.Query.Shape[0]), int(s.in.SeqLens[0])
		m := attention.MoBA{Chunk: block, Chunks: 3}
		lists, err := prefillWith(b, s, m)
		if err != nil {
			t.Fatal(err)
		}
		group := 4 / s.in.KVHeads
		for g := range s.in.KVHeads {
			for r := range tokens {
				i := keys - tokens + r
				chosen := map[int32]bool{int32(i / block): true}
				for h := g * group; h < (g+1)*group; h++ {
					gate := make([]float64, i/block)
					for c, mean := range s.meansOf(h, block)[:i/block] {
						for d, x := range mean {
							gate[c] += x * float64(s.in.Query.At(int64(r), int64(h), int64(d)))
						}
					}
					for _, c := range byWeight(gate)[:min(2, len(gate))] {
						chosen[int32(c)] = true
					}
				}
				var want []int32
				for c := range chosen {
					want = append(want, c)
				}
				slices.Sort(want)
				row := g*tokens + r
				if got := lists.Indices[lists.Indptr[row]:lists.Indptr[row+1]]; !slices.Equal(got, want) {
					t.Fatalf("chunks of %d, query %d of %d keys, KV head %d: %v, want %v", block, i, keys, g, got, want)
				}
			}
		}
	})
}

// Means made as keys come are those made at once.
func TestMoBAMeansGrow(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	for _, dim := range []int{1, 8} {
		s := newSelecting(rand.New(rand.NewPCG(15, 1)), 1, 100, 4, 4, 2, dim)
		m := attention.MoBA{Chunk: 12, Chunks: 2}
		once, grown := tensor.New(tensor.F32, 25, 2, int64(dim)), tensor.New(tensor.F32, 25, 2, int64(dim))
		if err := m.Means(b, &s.in, s.key, once, nil); err != nil {
			t.Fatal(err)
		}
		for n := range 100 {
			in := s.in
			pages := (n + 4) / 4
			in.SeqLens, in.Pages = []int32{int32(n + 1)}, kernel.BlockTable{Indptr: []int32{0, int32(pages)}, Indices: s.pages[:pages]}
			if err := m.Means(b, &in, s.key, grown, []int32{int32(n)}); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(once.F32s(), grown.F32s()) {
			t.Fatal("means made key by key differ from those made at once")
		}
		for c, mean := range s.meansOf(0, 12) {
			for d, want := range mean {
				if got := float64(once.At(int64(s.pages[c*3]), 0, int64(d))); math.Abs(got-want) > 1e-6 {
					t.Errorf("feature %d of chunk %d has the mean %v, want %v", d, c, got, want)
				}
			}
		}
	}
}

func TestBlockSparseSeesTheBlocksOfTheRule(t *testing.T) {
	eachPrefill(func(b kernel.Backend, s *selecting, block int) {
		m := attention.MInference{Block: block, Last: 1, Heads: []attention.MInferenceHead{{Pattern: attention.BlockSparse, First: 3}}}
		lists, err := m.Select(b, &s.in, s.key)
		if err != nil {
			t.Fatal(err)
		}
		s.judgePooled(t, fmt.Sprintf("%+v", m), lists, block, func(h, x int, c cells) {
			for _, y := range byWeight(s.pooledRow(h, x, block, nil)[:x])[:min(2, x)] {
				s.see(c, x, y, block)
			}
		})
	})
}

// judgePooled holds lists against what rule marks for each head and query block.
func (s *selecting) judgePooled(t *testing.T, name string, lists kernel.BlockSparse, block int, rule func(h, x int, c cells)) {
	t.Helper()
	heads := make([]cells, 4)
	for h := range heads {
		heads[h] = cells{}
		for x := (int(s.in.SeqLens[0]) - int(s.in.Query.Shape[0])) / block; x*block < int(s.in.SeqLens[0]); x++ {
			rule(h, x, heads[h])
		}
	}
	s.blocksOf(t, name, lists, block, heads)
}

func TestSpargeAttnSeesTheBlocksOfTheRule(t *testing.T) {
	seen := map[bool]int{}
	eachPrefill(func(b kernel.Backend, s *selecting, block int) {
		tokens, keys := int(s.in.Query.Shape[0]), int(s.in.SeqLens[0])
		m := attention.SpargeAttn{Block: block, Alike: min(1.2/float64(block), 0.9), Share: 0.5}
		lists, err := m.Select(b, &s.in, s.key)
		if err != nil {
			t.Fatal(err)
		}
		alike := func(lo, hi int, at func(i, d int) float64) bool {
			sum := 0.0
			for i := lo; i < hi; i++ {
				for j := lo; j < hi; j++ {
					dot, x, y := 0.0, 0.0, 0.0
					for d := range 8 {
						dot, x, y = dot+at(i, d)*at(j, d), x+at(i, d)*at(i, d), y+at(j, d)*at(j, d)
					}
					sum += dot / math.Sqrt(x*y) / float64((hi-lo)*(hi-lo))
				}
			}
			seen[sum >= m.Alike]++
			return sum >= m.Alike
		}
		s.judgePooled(t, fmt.Sprintf("%+v", m), lists, block, func(h, x int, c cells) {
			keysAlike := func(y int) bool {
				return alike(y*block, min((y+1)*block, keys), func(j, d int) float64 { return s.keyAt(j, h, d) })
			}
			queriesAlike := alike(max(x*block, keys-tokens), min((x+1)*block, keys), func(i, d int) float64 {
				return float64(s.in.Query.At(int64(i-keys+tokens), int64(h), int64(d)))
			})
			any := false
			for y := 0; y <= x; y++ {
				if any = any || keysAlike(y); !queriesAlike || !keysAlike(y) {
					s.see(c, x, y, block)
				}
			}
			if any {
				for _, y := range fewest(s.pooledRow(h, x, block, keysAlike), 0.5) {
					s.see(c, x, y, block)
				}
			}
		})
	})
	if seen[true] == 0 || seen[false] == 0 {
		t.Errorf("blocks alike and not: %v, want some of each", seen)
	}
}

func TestFlexPrefillSeesWhatTheRuleSays(t *testing.T) {
	trusted := map[bool]int{}
	eachPrefill(func(b kernel.Backend, s *selecting, block int) {
		tokens, keys := int(s.in.Query.Shape[0]), int(s.in.SeqLens[0])
		m := attention.FlexPrefill{Block: block, Share: 0.47, Divergence: 0.13, MinBlocks: 2} // a row of the map sums to 1: no share that whole rows make
		lists, err := m.Select(b, &s.in, s.key)
		if err != nil {
			t.Fatal(err)
		}
		heads := make([]cells, 4)
		for h := range heads {
			heads[h] = cells{}
			n, scores := min(block, tokens), s.scoresOf(h)
			last := (keys - 1) / block
			columns, slashes, seen := make([]float64, keys), make([]float64, keys), make([]float64, last+1)
			for r := tokens - n; r < tokens; r++ {
				for j, w := range softmaxed(scores[r]) {
					if o := keys - tokens + r - j; o >= 0 {
						columns[j], slashes[o], seen[j/block] = columns[j]+w, slashes[o]+w, seen[j/block]+w/float64(n)
					}
				}
			}
			estimate, js := s.pooledRow(h, last, block, nil), 0.0
			for i, x := range estimate {
				mean := (x + seen[i]) / 2
				js += x*math.Log(x/mean)/2 + seen[i]*math.Log(seen[i]/mean)/2
			}
			var pairs [][2]int
			var weight []float64
			for x := (keys - tokens) / block; x <= last; x++ {
				for y, w := range s.pooledRow(h, x, block, nil) {
					pairs, weight = append(pairs, [2]int{x, y}), append(weight, w)
				}
				s.see(heads[h], x, 0, block)
				s.see(heads[h], x, max(x-1, 0), block)
			}
			trusts := math.Sqrt(js) < m.Divergence
			trusted[trusts]++
			if trusts {
				for _, k := range fewest(weight, 0.47) {
					s.see(heads[h], pairs[k][0], pairs[k][1], block)
				}
				continue
			}
			for i := keys - tokens; i < keys; i++ {
				for _, j := range fewest(columns, 0.47) {
					heads[h][[2]int{i, j}] = true
				}
				for _, o := range fewest(slashes, 0.47) {
					heads[h][[2]int{i, i - o}] = true
				}
			}
		}
		s.blocksOf(t, fmt.Sprintf("%+v", m), lists, block, heads)
	})
	if trusted[true] == 0 || trusted[false] == 0 {
		t.Errorf("trusted and not: %v, want some of each", trusted)
	}
}

// Choose gives each head the pattern that recalls more: a head of one loud key far
// back takes lines, one of near keys the window.
func TestMInferenceChoosesPatternsByHead(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	s := newSelecting(rand.New(rand.NewPCG(16, 1)), 40, 200, 4, 2, 2, 8)
	for r := range 40 {
		for d := range 8 {
			s.in.Query.Set(2, int64(r), 0, int64(d))
			s.in.Query.Set(2, int64(r), 1, int64(d))
		}
	}
	for d := range 8 {
		s.key.Set(3, int64(s.pages[70/4]), 70%4, 0, int64(d))
		for j := 150; j < 200; j++ {
			s.key.Set(3, int64(s.pages[j/4]), int64(j%4), 1, int64(d))
		}
	}
	window, lines := attention.MInferenceHead{Pattern: attention.AShape, First: 1, Second: 60}, attention.MInferenceHead{Pattern: attention.VerticalSlash, First: 31, Second: 30}
	got, err := attention.MInference{Block: 8, Last: 16}.Choose(b, &s.in, s.key, []attention.MInferenceHead{window, lines})
	if err != nil {
		t.Fatal(err)
	}
	if want := []attention.MInferenceHead{lines, window}; !slices.Equal(got, want) {
		t.Errorf("patterns %v, want %v", got, want)
	}
}

// A sequence's blocks do not depend on what else is in the step.
func TestPrefillOfSequencesTogether(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	s := newSelecting(rand.New(rand.NewPCG(17, 1)), 50, 120, 4, 4, 2, 8)
	all, start := *s, []int32{0, 20, 20, 50}
	all.in.QueryStart, all.in.SeqLens = start, []int32{33, 1, 97}
	all.in.Scores = tensor.New(tensor.F32, 50, 4, 30)
	all.in.Pages = kernel.BlockTable{Indptr: []int32{0}}
	for _, n := range all.in.SeqLens {
		all.in.Pages.Indices = append(all.in.Pages.Indices, s.pages[:(n+3)/4]...)
		all.in.Pages.Indptr = append(all.in.Pages.Indptr, int32(len(all.in.Pages.Indices)))
	}
	for _, m := range withBudget(8, 10, 0.3) {
		if moba, ok := m.(attention.MoBA); ok && moba.Chunk > 4 {
			continue // sequences share pages here, but not chunks of several
		}
		got, err := prefillWith(b, &all, m)
		if err != nil {
			t.Fatal(err)
		}
		for i, n := range all.in.SeqLens {
			one := *s
			one.in.Query = s.in.Query.Slice(0, int64(start[i]), int64(start[i+1]))
			pages := s.pages[:(n+3)/4]
			one.in.QueryStart, one.in.SeqLens, one.in.Pages = []int32{0, start[i+1] - start[i]}, []int32{n}, kernel.BlockTable{Indptr: []int32{0, int32(len(pages))}, Indices: pages}
			want, err := prefillWith(b, &one, m)
			if err != nil {
				t.Fatal(err)
			}
			for row := range len(want.Indptr) - 1 {
				at := int(got.RowStart[i]) + row
				if x, y := got.Indices[got.Indptr[at]:got.Indptr[at+1]], want.Indices[want.Indptr[row]:want.Indptr[row+1]]; !slices.Equal(x, y) {
					t.Fatalf("%+v: sequence %d, row %d: blocks %v, alone %v", m, i, row, x, y)
				}
			}
		}
	}
}

func TestPrefillRefusesWhatItCannotDo(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	r := rand.New(rand.NewPCG(18, 1))
	nan := math.NaN()
	heads := func(h ...attention.MInferenceHead) attention.MInference {
		return attention.MInference{Block: 8, Last: 1, Heads: h}
	}
	lines := attention.MInferenceHead{Pattern: attention.VerticalSlash, First: 1, Second: 1}
	for _, m := range []any{
		attention.MoBA{}, attention.MoBA{Chunk: 8}, attention.MoBA{Chunk: 6, Chunks: 1}, attention.MoBA{Chunk: -4, Chunks: 1}, attention.MoBA{Chunk: math.MaxInt &^ 3, Chunks: 1},
		attention.MInference{}, heads(), heads(lines, lines, lines), heads(attention.MInferenceHead{}), heads(attention.MInferenceHead{Pattern: 3, First: 1, Second: 1}),
		heads(attention.MInferenceHead{Pattern: attention.BlockSparse, First: 1, Second: 1}), heads(attention.MInferenceHead{Pattern: attention.AShape, First: 1}),
		heads(attention.MInferenceHead{Pattern: attention.AShape, First: 1, Second: -1}), heads(attention.MInferenceHead{Pattern: attention.AShape, First: math.MaxInt, Second: 1}),
		attention.MInference{Block: 8, Heads: []attention.MInferenceHead{lines}}, attention.MInference{Block: 7, Last: 1, Heads: []attention.MInferenceHead{lines}},
		attention.FlexPrefill{}, attention.FlexPrefill{Block: 8, Share: 1.1, MinBlocks: 1}, attention.FlexPrefill{Block: 8, Share: nan, MinBlocks: 1},
		attention.FlexPrefill{Block: 8, Share: 0.5, Divergence: nan, MinBlocks: 1}, attention.FlexPrefill{Block: 8, Share: 0.5}, attention.FlexPrefill{Block: 2, Share: 0.5, MinBlocks: 1},
		attention.XAttention{}, attention.XAttention{Block: 8, Stride: 3, Threshold: 0.5}, attention.XAttention{Block: 8, Stride: 4}, attention.XAttention{Block: 6, Stride: 2, Threshold: 0.5},
		attention.SpargeAttn{}, attention.SpargeAttn{Block: 8, Alike: 2, Share: 0.5}, attention.SpargeAttn{Block: 8, Alike: nan, Share: 0.5}, attention.SpargeAttn{Block: 8}, attention.SpargeAttn{Block: 9, Share: 1},
		attention.SampleAttention{}, attention.SampleAttention{Block: 8, Share: 0.5, Window: 1}, attention.SampleAttention{Block: 8, Rows: 1, Share: 0.5},
		attention.SampleAttention{Block: 8, Rows: 1, Share: -1, Window: 1}, attention.SampleAttention{Block: 3, Rows: 1, Share: 1, Window: 1},
	} {
		if _, err := prefillWith(b, newSelecting(r, 3, 20, 4, 2, 1, 8), m); err == nil {
			t.Errorf("%+v was taken", m)
		}
	}
	for name, spoil := range map[string]func(*selecting){
		"page size":   func(s *selecting) { s.in.PageSize = 0 },
		"few pages":   func(s *selecting) { s.in.SeqLens = []int32{21} },
		"key rank":    func(s *selecting) { s.key = tensor.New(tensor.F32, 5, 4, 8) },
		"key heads":   func(s *selecting) { s.key = tensor.New(tensor.F32, 5, 4, 2, 8) },
		"key type":    func(s *selecting) { s.key = tensor.New(tensor.F8E4M3, 5, 4, 1, 8) },
		"pages":       func(s *selecting) { s.in.Pages.Indices = []int32{0, 1, 2, 3, 5} },
		"no pages":    func(s *selecting) { s.in.Pages.Indices = nil },
		"coded pages": func(s *selecting) { s.in.Pages.Coded = []bool{false, false, false, false, true} },
		"queries":     func(s *selecting) { s.in.QueryStart = []int32{0, 2} },
		"scale":       func(s *selecting) { s.in.Scale = float32(nan) },
	} {
		for _, m := range withBudget(8, 20, 0.5) {
			s := newSelecting(r, 3, 20, 4, 2, 1, 8)
			spoil(s)
			if _, err := prefillWith(b, s, m); err == nil {
				t.Errorf("%s: %T took it", name, m)
			}
		}
	}
	if _, err := heads().Choose(b, &newSelecting(r, 3, 20, 4, 2, 1, 8).in, tensor.New(tensor.F32, 5, 4, 1, 8), nil); err == nil {
		t.Error("no candidates were taken")
	}
}
