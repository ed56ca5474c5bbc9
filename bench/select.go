package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Shape of the layer that select decodes.
const (
	selectHeads, selectKVHeads, selectDim = 8, 2, 128
	selectNeedles                         = 8 // planted keys
)

// selectNames are the selectors there are.
var selectNames = []string{"quest", "magicpig", "retrieval"}

// selectResult is a line of select's table.
type selectResult struct {
	Selector string  `json:"selector"`
	Keys     int     `json:"keys"`
	Mass     float64 `json:"mass_recalled"` // of dense attention's weights, mean over heads
	Error    float64 `json:"output_error"`  // ‖Out − dense‖/‖dense‖
	Dense    float64 `json:"dense_ms"`
	Choice   float64 `json:"choice_ms"` // scores, top-k and Plan
	Run      float64 `json:"run_ms"`
	Speedup  float64 `json:"speedup"` // Dense/(Choice + Run)
	Index    float64 `json:"index_s"` // made once, of a selector that searches
}

// pagedKeys is one sequence whose pages lie in order.
type pagedKeys struct {
	keys, size int
	pages      []int32
}

func (p *pagedKeys) KeyStorage() kernel.KeyStorage    { return kernel.PreRoPE }
func (p *pagedKeys) PageSize() int                    { return p.size }
func (p *pagedKeys) KeyPositions(dst []int32) []int32 { return nil }
func (p *pagedKeys) LowerKV(dst *kernel.Batch) error {
	dst.SeqLens = append(dst.SeqLens[:0], int32(p.keys))
	dst.Pages.Indptr = append(dst.Pages.Indptr[:0], 0, int32(len(p.pages)))
	dst.Pages.Indices = append(dst.Pages.Indices[:0], p.pages...)
	return nil
}

func runSelect(ctx context.Context, std streams, args []string) error {
	f := newFlags(std, "select", "Decodes one token over a paged cache with planted keys, dense and with each selector:\nattention mass recalled, output error and times (median).")
	lengths := f.String("keys", "32768,131072", "`numbers` of keys, with commas")
	size := f.Int("page", 64, "keys a page: `number`")
	pages := f.Int("pages", 64, "pages that a query head sees: `number`")
	repeats := f.Int("repeats", 15, "timed repeats: `number`")
	names := f.String("selectors", strings.Join(selectNames, ","), "`names` of selectors, with commas")
	queries := f.Int("queries", 0, "prefill the last `number` of tokens, with the prefill selectors alone; 0: decode")
	asJSON := f.Bool("json", false, "print JSON")
	if err := parse(f, args); err != nil {
		return err
	}
	if *size < 1 || *size > 1<<12 {
		return fmt.Errorf("-page is %d, want 1 to %d", *size, 1<<12)
	}
	if *queries < 0 {
		return fmt.Errorf("-queries is %d, want at least 0", *queries)
	}
	if *repeats < 1 {
		return fmt.Errorf("-repeats is %d, want at least 1", *repeats)
	}
	keys, err := keyCounts(*lengths)
	if err != nil {
		return err
	}
	if *queries != 0 {
		return runSelectPrefill(ctx, std, keys, *size, *queries, *repeats, *asJSON)
	}
	chosen := strings.Split(*names, ",")
	for _, name := range chosen {
		if !slices.Contains(selectNames, name) {
			return fmt.Errorf("-selectors has %q, want some of %s", name, strings.Join(selectNames, ", "))
		}
	}
	var results []selectResult
	for _, n := range keys {
		if err := ctx.Err(); err != nil {
			return err
		}
		if slices.Contains(chosen, "quest") {
			r, err := selectQuest(n, *size, *pages, *repeats)
			if err != nil {
				return err
			}
			results = append(results, r)
		}
		searched, err := selectSearched(n, *size, *repeats, chosen)
		if err != nil {
			return err
		}
		results = append(results, searched...)
	}
	if *asJSON {
		e := json.NewEncoder(std.out)
		e.SetIndent("", "  ")
		return e.Encode(results)
	}
	fmt.Fprintf(std.out, "%s; one token, %d heads, %d KV heads, dim %d, f32, pages of %d, %d seen by a head, exact\n", cpu.Variant(), selectHeads, selectKVHeads, selectDim, *size, *pages)
	t := tabwriter.NewWriter(std.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "selector\tkeys\tmass recalled\toutput error\tdense ms\tchoice ms\trun ms\tspeed-up\tindex s\t\n")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%d\t%.4f\t%.2g\t%.3f\t%.3f\t%.3f\t%.2f\t%.1f\t\n", r.Selector, r.Keys, r.Mass, r.Error, r.Dense, r.Choice, r.Run, r.Speedup, r.Index)
	}
	return t.Flush()
}

// keyCounts reads numbers of keys.
func keyCounts(list string) (out []int, err error) {
	if err := json.Unmarshal([]byte("["+list+"]"), &out); err != nil || len(out) == 0 {
		return nil, fmt.Errorf("-keys is %q, want numbers with commas", list)
	}
	for _, n := range out {
		if n < selectNeedles || n > 1<<21 {
			return nil, fmt.Errorf("-keys has %d, want %d to %d", n, selectNeedles, 1<<21)
		}
	}
	return out, nil
}

// plant draws a cache and a query whose heads score some keys far above the
// others.
func plant(n, size int) (query, key, value tensor.View) {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	pages := int64((n + size - 1) / size)
	draw := func(v tensor.View) tensor.View {
		x := v.F32s()
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return v
	}
	query = draw(tensor.New(tensor.F32, 1, selectHeads, selectDim))
	key = draw(tensor.New(tensor.F32, pages, int64(size), selectKVHeads, selectDim))
	value = draw(tensor.New(tensor.F32, pages, int64(size), selectKVHeads, selectDim))
	group := selectHeads / selectKVHeads
	for h := range selectHeads {
		for range selectNeedles {
			j := r.IntN(n)
			for d := range int64(selectDim) {
				key.Set(1.2*query.At(0, int64(h), d), int64(j/size), int64(j%size), int64(h/group), d)
			}
		}
	}
	return query, key, value
}

// decoding is one planned kernel with its output.
type decoding struct {
	attention *attention.Attention
	args      kernel.Args
	step      attention.Step
}

func newDecoding(b kernel.Backend, keys *pagedKeys, mask attention.Mask, query, key, value tensor.View) (*decoding, error) {
	a, err := attention.New(b, attention.Config{Heads: selectHeads, KVHeads: selectKVHeads, HeadDim: selectDim, PageSize: keys.size, Mask: mask})
	if err != nil {
		return nil, err
	}
	return &decoding{a, kernel.Args{Query: query, Key: key, Value: value, Out: tensor.New(tensor.F32, 1, selectHeads, selectDim), LSE: tensor.New(tensor.F32, 1, selectHeads)},
		attention.Step{QueryLens: []int{1}, KV: keys}}, nil
}

func selectQuest(n, size, pages, repeats int) (selectResult, error) {
	out := selectResult{Selector: "quest", Keys: n}
	b := cpu.New(cpu.Options{})
	defer b.Close()
	query, key, value := plant(n, size)
	keys, rows := &pagedKeys{keys: n, size: size}, []int32(nil)
	for p := range (n + size - 1) / size {
		keys.pages, rows = append(keys.pages, int32(p)), append(rows, int32(min(size, n-p*size)))
	}
	m := int64(len(keys.pages))
	least, most := tensor.New(tensor.F32, m, selectKVHeads, selectDim), tensor.New(tensor.F32, m, selectKVHeads, selectDim)
	q := attention.Quest{Pages: pages, Sinks: 1, Recent: 1}
	if err := q.Bounds(b, key, least, most, keys.pages, rows); err != nil {
		return out, err
	}
	dense, err := newDecoding(b, keys, attention.Causal(), query, key, value)
	if err != nil {
		return out, err
	}
	defer dense.attention.Close()
	sparse, err := newDecoding(b, keys, attention.Blocks(), query, key, value)
	if err != nil {
		return out, err
	}
	defer sparse.attention.Close()
	if err := dense.attention.Plan(dense.step); err != nil {
		return out, err
	}
	in := &attention.Selection{Query: query, QueryStart: []int32{0, 1}, SeqLens: []int32{int32(n)},
		Pages: kernel.BlockTable{Indptr: []int32{0, int32(m)}, Indices: keys.pages}, PageSize: size, KVHeads: selectKVHeads,
		Scale: float32(1 / math.Sqrt(selectDim)), Scores: tensor.New(tensor.F32, 1, selectHeads, m)}
	var times [3][]float64 // dense, choice, run
	for range repeats {    // in turn, so that other load falls on all alike
		for i, f := range []func() error{
			func() error { return dense.attention.Run(&dense.args) },
			func() (err error) {
				if sparse.step.Blocks, err = q.Select(b, in, least, most); err != nil {
					return err
				}
				return sparse.attention.Plan(sparse.step)
			},
			func() error { return sparse.attention.Run(&sparse.args) },
		} {
			start := time.Now()
			if err := f(); err != nil {
				return out, err
			}
			times[i] = append(times[i], time.Since(start).Seconds()*1e3)
		}
	}
	median := func(x []float64) float64 { slices.Sort(x); return x[len(x)/2] }
	out.Dense, out.Choice, out.Run = median(times[0]), median(times[1]), median(times[2])
	out.Speedup = out.Dense / (out.Choice + out.Run)
	out.Mass, out.Error = recalled(&sparse.args, &dense.args)
	return out, nil
}

// recalled is the share of dense attention's weights that the chosen keys have,
// and the relative error of the output.
func recalled(sparse, dense *kernel.Args) (mass, rel float64) {
	for i, x := range sparse.LSE.F32s() {
		mass += math.Exp(float64(x)-float64(dense.LSE.F32s()[i])) / selectHeads
	}
	var difference, norm float64
	for i, x := range dense.Out.F32s() {
		d := float64(sparse.Out.F32s()[i]) - float64(x)
		difference, norm = difference+d*d, norm+float64(x)*float64(x)
	}
	return mass, math.Sqrt(difference / norm)
}
