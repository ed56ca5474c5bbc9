package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/longctx/longctx/bench/internal/method"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/bench/internal/task"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/codec"
	"github.com/longctx/longctx/kvcache/policy"
	"github.com/longctx/longctx/tensor"
)

// cacheFlags are the flags of cache.
type cacheFlags struct {
	list, asJSON, quick, full        bool
	policies, codecs, budgets, parts string
	model, text, method, length, out string
	workers, windows, trials, page   int
	seed                             uint64
}

// cacheParts are what can be measured.
var cacheParts = []string{"quality", "prefix", "swap"}

func parseCache(std streams, args []string) (*cacheFlags, error) {
	var o cacheFlags
	f := newFlags(std, "cache", "Holds the cache of a model in less memory: what every policy over every codec keeps of\n"+
		"the model's bits per byte, of the recall of a planted number and of the weights of attention,\nand for how much memory; then what an index of prefixes saves, and how fast pages move.\n"+
		"Writes tables, plots, CSV and JSON. Ctrl-C writes what is finished.")
	f.BoolVar(&o.list, "list", false, "list policies, codecs and tiers, and run nothing")
	f.BoolVar(&o.asJSON, "json", false, "print JSON in place of tables")
	f.StringVar(&o.parts, "parts", strings.Join(cacheParts, ","), "what to measure, with commas")
	f.StringVar(&o.policies, "policies", "all", "names with commas; none is a policy too")
	f.StringVar(&o.codecs, "codecs", "all", "names with commas")
	f.StringVar(&o.budgets, "budgets", "50,25,12.5", "keys that stay, in `percent` of the prompt; the second one is that of policies over other codecs than f16")
	f.StringVar(&o.model, "model", "", "safetensors `file` of a byte-level Llama (default: the one that comes with bench)")
	f.StringVar(&o.text, "text", "", "`file` to judge by (default: source of Go that the model has not seen)")
	f.StringVar(&o.method, "method", "yarn", "of extrapolation, one that changes frequencies alone")
	f.StringVar(&o.length, "length", "2x", "tokens, or multiples of the trained length")
	f.StringVar(&o.out, "out", "bench-results", "`folder` for the results")
	f.BoolVar(&o.quick, "quick", false, "few policies, codecs and trials: under a minute on two cores")
	f.BoolVar(&o.full, "full", false, "every policy over every codec at every budget")
	f.IntVar(&o.workers, "workers", 0, "processors to use; 0: all")
	f.IntVar(&o.windows, "windows", 0, "sequences for bits per byte (default 8, with -quick 3)")
	f.IntVar(&o.trials, "trials", 0, "keys planted, a multiple of 10 (default 20, with -quick 10)")
	f.IntVar(&o.page, "page", 16, "keys a page")
	f.Uint64Var(&o.seed, "seed", 1, "of everything drawn")
	if err := parse(f, args); err != nil {
		return nil, err
	}
	pick := func(x *int, full, quick, unit int, name string) error {
		switch {
		case *x == 0 && o.quick:
			*x = quick
		case *x == 0:
			*x = full
		case *x < 0 || *x%unit != 0:
			return fmt.Errorf("-%s is %d, want a positive multiple of %d", name, *x, unit)
		}
		return nil
	}
	if err := errors.Join(pick(&o.windows, 8, 3, 1, "windows"), pick(&o.trials, 20, 10, task.Depths, "trials")); err != nil {
		return nil, err
	}
	for part := range strings.SplitSeq(o.parts, ",") {
		if !slices.Contains(cacheParts, part) {
			return nil, fmt.Errorf("-parts has %q, want some of %s", part, strings.Join(cacheParts, ", "))
		}
	}
	if o.page < 1 || o.page > 256 {
		return nil, fmt.Errorf("-page is %d, want 1 to 256", o.page)
	}
	if o.quick && o.policies == "all" {
		o.policies = "none,streaming-llm,h2o,snapkv,ada-kv,kvzip,keydiff"
	}
	if o.quick && o.codecs == "all" {
		o.codecs = "f16,fp8,int8,kivi4,kivi2,gear"
	}
	return &o, nil
}

// cacheResults are all results of a run of cache.
type cacheResults struct {
	Machine map[string]string `json:"machine"`
	Command string            `json:"command"`
	Partial bool              `json:"partial"`
	Seconds float64           `json:"seconds"`
	Quality []cacheQuality    `json:"quality"`
	Left    []cacheLeft       `json:"left_out"`
	Prefix  []cachePrefix     `json:"prefix"`
	Cascade []cacheCascade    `json:"cascade"`
	Swap    []cacheSwap       `json:"swap"`
}

// cacheQuality is what a policy over a codec keeps, and in how much memory.
type cacheQuality struct {
	Policy      string  `json:"policy"`
	Codec       string  `json:"codec"`
	Budget      float64 `json:"budget_percent"` // 100: no policy
	Memory      float64 `json:"memory_percent"` // of all keys in f16
	Keys        float64 `json:"keys"`           // of a head, in the mean
	Pages       float64 `json:"pages"`          // in use, plain and coded, of all heads
	BitsPerByte float64 `json:"bits_per_byte"`
	Recall      float64 `json:"recall"`
	Mass        float64 `json:"mass"` // of the weights of the prompt's last queries, on keys that stay
	TokensPerS  float64 `json:"tokens_per_s"`
}

// cacheLeft is a policy or codec that is not measured, and why.
type cacheLeft struct{ Name, Why string }

func runCache(ctx context.Context, std streams, args []string) error {
	o, err := parseCache(std, args)
	if err != nil {
		return err
	}
	if o.list {
		return listCache(std.out, o.asJSON)
	}
	b, restore, err := host(o.workers)
	if err != nil {
		return err
	}
	defer restore()
	if err := os.MkdirAll(o.out, 0o755); err != nil { // before the work, not after
		return err
	}
	start := time.Now()
	r := cacheResults{Machine: machine(b), Command: "bench cache " + strings.Join(args, " ")}
	var stopped error
	for part := range strings.SplitSeq(o.parts, ",") {
		switch part {
		case "quality":
			stopped = o.quality(ctx, std, b, &r)
		case "prefix":
			stopped = o.prefix(ctx, std, b, &r)
		case "swap":
			stopped = o.swap(ctx, std, b, &r)
		}
		if stopped != nil {
			break
		}
	}
	if stopped != nil && !errors.Is(stopped, context.Canceled) {
		return stopped
	}
	r.Partial, r.Seconds = stopped != nil, time.Since(start).Seconds()
	if err := o.write(std, &r); err != nil {
		return err
	}
	return stopped
}

// holdings is what there is to measure.
type holdings struct {
	*cacheFlags
	model    *model.Model
	rotation kernel.Rotation
	length   int
	material task.Material
	results  *cacheResults
	dense    float64        // bytes of all keys in f16
	levels   kvcache.Levels // of kvquant
	bases    []codec.Bases  // of palu
}

func (o *cacheFlags) prepare(r *cacheResults) (*holdings, error) {
	h := &holdings{cacheFlags: o, results: r}
	var err error
	if h.model, _, err = loadModel(o.model); err != nil {
		return nil, err
	}
	lengths, err := parseLengths(o.length, h.model.Config.Context)
	if err != nil {
		return nil, err
	}
	if len(lengths) != 1 {
		return nil, fmt.Errorf("-length is %q, want one length", o.length)
	}
	h.length = lengths[0]
	h.material = task.Material{Trained: h.model.Config.Context, Seed: o.seed}
	if h.material.Text, _, err = loadText(o.text, task.Need(h.length)); err != nil {
		return nil, err
	}
	methods, err := method.Select(o.method)
	if err != nil {
		return nil, err
	}
	if len(methods) != 1 {
		return nil, fmt.Errorf("-method is %q, want one method", o.method)
	}
	how, err := methods[0].Setup(h.model.Config, h.length)
	if err != nil {
		return nil, err
	}
	if how.Rotary == nil || how.Position != nil || how.Evict != nil || how.Score.Slopes || len(how.Mask.Regions) != 1 {
		return nil, fmt.Errorf("-method is %s, want one that changes frequencies alone", o.method)
	}
	h.rotation, err = how.Rotary.Rotation(h.length)
	return h, err
}

// holder is a policy with its settings, and what has to be done for it.
type holder struct {
	name  string
	entry *policy.Entry // nil: all keys stay
}

// coder is a codec with what has to be done for it.
type coder struct{ codec.Entry }

func (h *holdings) choose() (policies []holder, codecs []coder, err error) {
	names := strings.Split(h.policies, ",")
	if h.policies == "all" {
		names = []string{"none"}
		for _, e := range policy.Policies() {
			names = append(names, e.Name)
		}
	}
	for _, name := range names {
		if name == "none" {
			policies = append(policies, holder{name: name})
			continue
		}
		e, err := policy.Find(name)
		if err != nil {
			return nil, nil, err
		}
		why := trained[name]
		if e.Kind != "evict" && e.Kind != "merge" {
			why = "it drops no keys but " + e.Kind
		}
		if why != "" {
			h.results.Left = append(h.results.Left, cacheLeft{name, why})
			continue
		}
		policies = append(policies, holder{name, &e})
	}
	names = strings.Split(h.codecs, ",")
	if h.codecs == "all" {
		names = nil
		for _, e := range codec.Codecs() {
			names = append(names, e.Name)
		}
	}
	for _, name := range names {
		e, err := codec.Find(name)
		if err != nil {
			return nil, nil, err
		}
		c := h.config(coder{e}, h.length)
		if c.Cache.LayerCoding != nil {
			h.results.Left = append(h.results.Left, cacheLeft{name, "it has a coding for each layer, and a cache of heads has one for all"})
			continue
		}
		codecs = append(codecs, coder{e})
	}
	return policies, codecs, nil
}

// trained are policies that do nothing but what a model has learned for them.
var trained = map[string]string{
	"dmc":            "it needs the decisions of a model that was trained so",
	"locret":         "it needs heads that were trained to retain",
	"razorattention": "it needs to know which heads retrieve",
	"duoattention":   "it needs gates that were trained",
}

// residual is how many tokens codecs leave plain: of this small model fewer than
// their papers do.
const residual = 32

// config is how a codec holds keys.
func (h *holdings) config(c coder, keys int) model.HeldConfig {
	out := model.HeldConfig{Rotation: h.rotation, Policy: kernel.Fast}
	k := &out.Cache
	*k = kvcache.Config{Layers: h.model.Config.Layers, KVHeads: h.model.Config.KVHeads, HeadDim: h.model.Config.HeadDim, ValueDim: h.model.Config.HeadDim, PageSize: h.page, KeyStorage: kernel.PostRoPE}
	c.Apply(k)
	if c.Bases != nil {
		out.Bases = slices.Repeat([]codec.Bases{c.Bases(h.model.Config.HeadDim, h.model.Config.HeadDim)}, k.Layers)
	}
	switch c.Name {
	case "kvquant":
		k.Levels = []kvcache.Levels{h.levels}
	case "palu":
		out.Bases = h.bases
	}
	if len(k.Levels) > 1 { // a cache of heads has those of one
		k.Levels = k.Levels[:1]
		for _, v := range []*tensor.View{&k.Levels[0].Key, &k.Levels[0].Value} {
			if !v.IsZero() {
				*v = v.Slice(0, 0, 1)
			}
		}
	}
	if k.DType == 0 {
		k.DType = f16
	}
	streams := k.Layers * k.KVHeads
	k.Pages = streams * 2 * ((keys+h.page-1)/h.page + 2) // Apply writes before it frees
	if k.Coded() || k.LayerCoding != nil {
		k.CodedPages = k.Pages
		k.Residual = min(k.Residual, (residual+h.page-1)/h.page*h.page)
	}
	return out
}

// holding is a policy with a budget over a codec.
func (h *holdings) holding(p holder, c coder, percent float64) (*task.Holding, error) {
	keys := h.length
	if p.name == "kvzip" {
		keys *= 2
	}
	out := &task.Holding{HeldConfig: h.config(c, keys), Mixed: c.Mixed}
	if p.entry == nil {
		return out, nil
	}
	out.Keys = max(int(percent/100*float64(h.length)), 8)
	var err error
	out.Planner, err = p.entry.Planner(policy.Sizes{Layers: out.Cache.Layers, KVHeads: out.Cache.KVHeads, HeadDim: h.model.Config.HeadDim, Keys: out.Keys, PageSize: h.page})
	if err != nil {
		return nil, err
	}
	out.Bias, out.Second, out.Texts = p.entry.Kind == "merge", p.name == "kvzip", p.name == "sirllm"
	if x, ok := out.Planner.(*policy.Policy); ok && x.Trigger != nil && out.Cache.Coded() {
		x.Block = h.page    // rows of a coded page go together
		if x.Merge != nil { // and nothing is added to them
			x.Trigger, x.Block = nil, 0
		}
	}
	return out, nil
}

func (o *cacheFlags) quality(ctx context.Context, std streams, b kernel.Backend, r *cacheResults) error {
	h, err := o.prepare(r)
	if err != nil {
		return err
	}
	var budgets []float64
	for word := range strings.SplitSeq(o.budgets, ",") {
		x, err := strconv.ParseFloat(word, 64)
		if err != nil || !(x > 0 && x <= 100) {
			return fmt.Errorf("-budgets has %q, want percents above 0, at most 100", word)
		}
		budgets = append(budgets, x)
	}
	windows, err := h.material.Windows(o.windows, h.length, h.length)
	if err != nil {
		return err
	}
	recall, err := h.material.Recall(o.trials, h.length, h.length)
	if err != nil {
		return err
	}
	e := &task.Evaluator{Model: h.model, Backend: b}
	if err := h.calibrate(b); err != nil {
		return err
	}
	policies, codecs, err := h.choose()
	if err != nil {
		return err
	}
	type job struct {
		holder
		coder
		budget float64
	}
	var jobs []job
	for _, c := range codecs {
		for _, p := range policies {
			at := budgets
			switch {
			case p.entry == nil:
				at = []float64{100}
			case c.Name != "f16" && !o.full:
				at = budgets[min(1, len(budgets)-1):][:1]
			}
			for _, x := range at {
				jobs = append(jobs, job{p, c, x})
			}
		}
	}
	tokens := int64((o.windows + o.trials) * h.length)
	bar := newBar(std, tokens*int64(len(jobs)+1))
	defer bar.Close()
	step := func(n int) { bar.Add64(int64(n)) }
	all, err := e.Hold(ctx, &task.Holding{HeldConfig: h.config(coder{must("f16")}, h.length)}, windows, recall, step)
	if err != nil {
		return err
	}
	h.dense = all.Bytes
	for _, j := range jobs {
		bar.Describe(fmt.Sprintf("%-18s %-8s %5.4g%%", j.holder.name, j.Name, j.budget))
		how, err := h.holding(j.holder, j.coder, j.budget)
		if err != nil {
			return err
		}
		x, err := e.Hold(ctx, how, windows, recall, step)
		if errors.Is(err, context.Canceled) {
			return err
		}
		if judged := x.BitsPerByte + x.Mass; err == nil && (math.IsNaN(judged) || math.IsInf(judged, 0)) { // JSON has no such numbers
			err = fmt.Errorf("%v bits per byte and a mass of %v", x.BitsPerByte, x.Mass)
		}
		if err != nil {
			r.Left = append(r.Left, cacheLeft{fmt.Sprintf("%s over %s at %v %%", j.holder.name, j.Name, j.budget), err.Error()})
			continue
		}
		r.Quality = append(r.Quality, cacheQuality{j.holder.name, j.Name, j.budget, 100 * x.Bytes / h.dense, x.Keys, x.Pages, x.BitsPerByte, x.Recall, x.Mass, x.TokensPerS})
	}
	return nil
}
