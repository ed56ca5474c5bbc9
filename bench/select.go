package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"text/tabwriter"

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
	f := newFlags(std, "select", "Decodes one token over a paged cache with planted keys, dense and with each selector\n(nsa: the mass and error of its selected blocks alone):\nattention mass recalled, output error and times (median). With -model: in the model of\nextrapolate, in place of planted keys; bits per byte and recall of a planted number too.")
	lengths := f.String("keys", "32768,131072", "`numbers` of keys, with commas")
	size := f.Int("page", 64, "keys a page: `number`")
	pages := f.Int("pages", 64, "pages that a query head sees: `number`")
	repeats := f.Int("repeats", 15, "timed repeats: `number`")
	which := f.String("selectors", "", "`names` with commas (default: all, "+strings.Join(selectorNames(), ", ")+")")
	queries := f.Int("queries", 0, "prefill the last `number` of tokens, with the prefill selectors alone; 0: decode")
	asJSON := f.Bool("json", false, "print JSON")
	var o selectModelFlags
	ofModel := f.Bool("model", false, "judge decode and prefill selectors in a model; of the flags above -selectors, -page (default 8) and -json hold, and those below")
	f.StringVar(&o.weights, "weights", "", "safetensors `file` of a byte-level Llama (default: the one that comes with bench)")
	f.StringVar(&o.lengths, "lengths", "1x,2x,4x", "tokens, or multiples of the trained length")
	f.StringVar(&o.budgets, "budgets", "50,25,12.5", "keys that a query head sees, in `percent`")
	f.StringVar(&o.method, "method", "yarn", "of extrapolation, one that changes frequencies alone")
	f.StringVar(&o.text, "text", "", "`file` to judge by (default: source of Go that the model has not seen)")
	f.StringVar(&o.out, "out", "bench-results", "`folder` for the results")
	f.IntVar(&o.windows, "windows", 8, "sequences for bits per byte at each length")
	f.IntVar(&o.trials, "trials", 20, "keys planted at each length, a multiple of 10")
	f.IntVar(&o.workers, "workers", 0, "processors to use; 0: all")
	f.Uint64Var(&o.seed, "seed", 1, "of everything drawn")
	if err := parse(f, args); err != nil {
		return err
	}
	if *ofModel {
		o.selectors, o.page, o.asJSON = *which, 8, *asJSON
		f.Visit(func(x *flag.Flag) {
			if x.Name == "page" {
				o.page = *size
			}
		})
		return o.run(ctx, std, args)
	}
	names := strings.Split(*which, ",")
	if *which == "" {
		names = selectorNames()
	}
	chosen, err := decodeSelectors(names)
	if err != nil {
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
	var results []selectResult
	for _, n := range keys {
		s, err := newScene(n, *size, *pages)
		if err != nil {
			return err
		}
		for _, c := range chosen {
			if err := ctx.Err(); err != nil {
				return err
			}
			r, err := s.judge(c, *repeats)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			results = append(results, r)
		}
		s.close()
		searched, err := selectSearched(n, *size, *repeats, names)
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
