package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Keys of neighbouring tokens share a topic of so many tokens.
const topicTokens = 256

// prefillScene is the last queries of a prompt over its cache.
type prefillScene struct {
	b          *cpu.Backend
	keys       *pagedKeys
	in         *attention.Selection
	key, value tensor.View
}

// newPrefillScene plants topics: the keys of a topic lie around one direction, and
// queries around those of two topics before them. In the heads of the first KV
// head these are the same for all queries, as lines are; in the others each run of
// queries has its own.
func newPrefillScene(n, size, queries int) *prefillScene {
	s := &prefillScene{b: cpu.New(cpu.Options{}), keys: &pagedKeys{keys: n, size: size}}
	r := rand.New(rand.NewPCG(uint64(n), 3))
	pages := (n + size - 1) / size
	for p := range pages {
		s.keys.pages = append(s.keys.pages, int32(p))
	}
	noise := func(scale float64, shape ...int64) tensor.View {
		v := tensor.New(tensor.F32, shape...)
		x := v.F32s()
		for i := range x {
			x[i] = float32(scale * r.NormFloat64())
		}
		return v
	}
	topics := int64((n + topicTokens - 1) / topicTokens)
	direction := noise(1, topics, selectKVHeads, selectDim)
	row := func(v *tensor.View, at int64) []float32 { return v.F32s()[at*selectDim:][:selectDim] }
	s.key, s.value = noise(0.5, int64(pages), int64(size), selectKVHeads, selectDim), noise(1, int64(pages), int64(size), selectKVHeads, selectDim)
	query := noise(0.5, int64(queries), selectHeads, selectDim)
	for j := range int64(n) {
		for g := range int64(selectKVHeads) {
			to := row(&s.key, j*selectKVHeads+g)
			for d, x := range row(&direction, j/topicTokens*selectKVHeads+g) {
				to[d] += x
			}
		}
	}
	before := max(int64(n-queries)/topicTokens, 1)
	var target [selectHeads][2]int64
	for t := range int64(queries) {
		for h := range int64(selectHeads) {
			g := h / (selectHeads / selectKVHeads)
			for i := range target[h] {
				if t == 0 || g > 0 && t%topicTokens == 0 {
					target[h][i] = r.Int64N(before)
				}
				to := row(&query, t*selectHeads+h)
				for d, x := range row(&direction, target[h][i]*selectKVHeads+g) {
					to[d] += 0.9 * x
				}
			}
		}
	}
	s.in = &attention.Selection{Query: query, QueryStart: []int32{0, int32(queries)}, SeqLens: []int32{int32(n)},
		Pages: kernel.BlockTable{Indptr: []int32{0, int32(pages)}, Indices: s.keys.pages}, PageSize: size, KVHeads: selectKVHeads,
		Scale: float32(1 / math.Sqrt(selectDim)), Policy: kernel.Fast}
	return s
}

func (s *prefillScene) attention(mask attention.Mask) (*decoding, error) {
	d, err := newDecoding(s.b, s.keys, mask, s.in.Query, s.key, s.value)
	if err != nil {
		return nil, err
	}
	queries := s.in.Query.Shape[0]
	d.args.Out, d.args.LSE = tensor.New(tensor.F32, queries, selectHeads, selectDim), tensor.New(tensor.F32, queries, selectHeads)
	d.step.QueryLens = []int{int(queries)}
	return d, nil
}

// prefillChoice makes the lists of a selector.
type prefillChoice struct {
	name   string
	choose func(s *prefillScene) (kernel.BlockSparse, error)
}

// prefillChoices are the prefill selectors, near the settings of their papers.
func prefillChoices(size int) []prefillChoice {
	type selector interface {
		Select(kernel.Backend, *attention.Selection, tensor.View) (kernel.BlockSparse, error)
	}
	of := func(name string, m selector) prefillChoice {
		return prefillChoice{name, func(s *prefillScene) (kernel.BlockSparse, error) { return m.Select(s.b, s.in, s.key) }}
	}
	block := (127/size + 1) * size
	stride := 16
	for block%stride != 0 {
		stride /= 2
	}
	shape := func(p attention.MInferencePattern, first, second int) attention.MInference {
		return attention.MInference{Block: block, Last: 64, Heads: []attention.MInferenceHead{{Pattern: p, First: first, Second: second}}}
	}
	patterns := []attention.MInferenceHead{{Pattern: attention.VerticalSlash, First: 1000, Second: 256}, {Pattern: attention.BlockSparse, First: 16}}
	chosen := attention.MInference{Block: block, Last: 64}
	return []prefillChoice{
		{"moba", func(s *prefillScene) (kernel.BlockSparse, error) {
			m := attention.MoBA{Chunk: block * 4, Chunks: 3}
			means := tensor.New(tensor.F32, s.key.Shape[0], selectKVHeads, selectDim)
			if err := m.Means(s.b, s.in, s.key, means, nil); err != nil {
				return kernel.BlockSparse{}, err
			}
			in := *s.in
			in.Scores = tensor.New(tensor.F32, in.Query.Shape[0], selectHeads, s.key.Shape[0])
			return m.Select(s.b, &in, s.key, means)
		}},
		of("minference a-shape", shape(attention.AShape, 1024, 4096)),
		of("minference vertical-slash", shape(attention.VerticalSlash, 1000, 256)),
		of("minference block-sparse", shape(attention.BlockSparse, 16, 0)),
		{"minference chosen", func(s *prefillScene) (_ kernel.BlockSparse, err error) {
			if chosen.Heads == nil { // in the round that is not timed, as a model keeps them
				if chosen.Heads, err = chosen.Choose(s.b, s.in, s.key, patterns); err != nil {
					return kernel.BlockSparse{}, err
				}
			}
			return chosen.Select(s.b, s.in, s.key)
		}},
		of("flexprefill", attention.FlexPrefill{Block: block, Share: 0.9, Divergence: 0.1, MinBlocks: 1}),
		of("xattention", attention.XAttention{Block: block, Stride: stride, Threshold: 0.9}),
		of("spargeattn", attention.SpargeAttn{Block: block, Alike: 0.1, Share: 0.9}),
		of("sampleattention", attention.SampleAttention{Block: block, Rows: 64, Share: 0.95, Window: 1024}),
	}
}

// runSelectPrefill measures the last queries of prompts of so many keys.
func runSelectPrefill(ctx context.Context, std streams, keys []int, size, queries, repeats int, asJSON bool) error {
	var results []selectResult
	for _, n := range keys {
		if queries > n {
			return fmt.Errorf("-queries is %d, want at most the %d keys", queries, n)
		}
		out, err := selectPrefill(ctx, n, size, queries, repeats)
		if err != nil {
			return err
		}
		results = append(results, out...)
	}
	if asJSON {
		e := json.NewEncoder(std.out)
		e.SetIndent("", "  ")
		return e.Encode(results)
	}
	fmt.Fprintf(std.out, "%s; the last %d queries, %d heads, %d KV heads, dim %d, f32, pages of %d, scores fast, attention exact\n", cpu.Variant(), queries, selectHeads, selectKVHeads, selectDim, size)
	t := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "selector\tkeys\tmass recalled\toutput error\tdense ms\tchoice ms\trun ms\tspeed-up\t\n")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%d\t%.4f\t%.2g\t%.1f\t%.1f\t%.1f\t%.2f\t\n", strings.ReplaceAll(r.Selector, " ", "-"), r.Keys, r.Mass, r.Error, r.Dense, r.Choice, r.Run, r.Speedup)
	}
	return t.Flush()
}

func selectPrefill(ctx context.Context, n, size, queries, repeats int) ([]selectResult, error) {
	s := newPrefillScene(n, size, queries)
	defer s.b.Close()
	dense, err := s.attention(attention.Causal())
	if err != nil {
		return nil, err
	}
	defer dense.attention.Close()
	mask := attention.Causal()
	mask.Kinds |= kernel.MaskBlocks
	sparse, err := s.attention(mask)
	if err != nil {
		return nil, err
	}
	defer sparse.attention.Close()
	if err := dense.attention.Plan(dense.step); err != nil {
		return nil, err
	}
	timed := func(times *[]float64, f func() error) error {
		start := time.Now()
		err := f()
		*times = append(*times, time.Since(start).Seconds()*1e3)
		return err
	}
	choices := prefillChoices(size)
	times := make([][2][]float64, len(choices))
	var whole []float64
	results := make([]selectResult, len(choices))
	for round := range repeats + 1 { // in turn, so that other load falls on all alike
		if err := timed(&whole, func() error { return dense.attention.Run(&dense.args) }); err != nil {
			return nil, err
		}
		for i, c := range choices {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if err := timed(&times[i][0], func() (err error) {
				if sparse.step.Blocks, err = c.choose(s); err != nil {
					return err
				}
				return sparse.attention.Plan(sparse.step)
			}); err != nil {
				return nil, err
			}
			if err := timed(&times[i][1], func() error { return sparse.attention.Run(&sparse.args) }); err != nil {
				return nil, err
			}
			results[i].Mass, results[i].Error = recalled(&sparse.args, &dense.args)
		}
		if round == 0 { // memory is new and patterns are searched
			whole, times = nil, make([][2][]float64, len(choices))
		}
	}
	for i := range results {
		r := &results[i]
		r.Selector, r.Keys, r.Mass = choices[i].name, n, r.Mass/float64(queries)
		r.Dense, r.Choice, r.Run = median(whole), median(times[i][0]), median(times[i][1])
		r.Speedup = r.Dense / (r.Choice + r.Run)
	}
	return results, nil
}
