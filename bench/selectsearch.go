package main

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// turnedKeys are pages of keys stored turned, as an index takes them.
type turnedKeys struct{ pagedKeys }

func (*turnedKeys) KeyStorage() kernel.KeyStorage { return kernel.PostRoPE }

// searcher is an index of keys with the attention that takes what it finds.
type searcher struct {
	name   string
	index  func(key, learn tensor.View) error
	search func(query tensor.View, keys int, found *attention.Found) error
	run    *attention.SearchedAttention
}

// learnedQueries of each head are the planted query and half as much noise, as
// those of prefill are like the ones that follow.
const learnedQueries = 32

// searchers are the selectors that search for keys, with settings of their papers.
func searchers(b kernel.Backend, size int) ([]searcher, error) {
	config := attention.Config{Heads: selectHeads, KVHeads: selectKVHeads, HeadDim: selectDim, PageSize: size}
	pig := attention.MagicPIG{Bits: 10, Tables: 150, Sinks: 4, Window: 64, Seed: 1}
	hashed, err := pig.NewIndex(selectKVHeads, selectDim)
	if err != nil {
		return nil, err
	}
	graph := attention.RetrievalAttention{TopK: 100, Beam: 128, Degree: 8, Neighbours: 32, Sinks: 128, Window: 512}
	keys, err := graph.NewIndex(selectKVHeads, selectDim)
	if err != nil {
		return nil, err
	}
	out := []searcher{
		{name: pig.Name(), index: func(key, _ tensor.View) error { return hashed.Append(b, key) },
			search: func(query tensor.View, n int, found *attention.Found) error { return hashed.Search(b, query, n, found) }},
		{name: graph.Name(), search: keys.Search, index: func(key, learn tensor.View) error {
			if err := keys.Append(key); err != nil {
				return err
			}
			return keys.Learn(b, learn)
		}},
	}
	if out[0].run, err = pig.New(b, config); err != nil {
		return nil, err
	}
	out[1].run, err = graph.New(b, config)
	return out, err
}

// selectSearched measures those of the selectors that search for keys.
func selectSearched(n, size, repeats int, names []string) ([]selectResult, error) {
	b := cpu.New(cpu.Options{})
	defer b.Close()
	query, key, value := plant(n, size)
	keys := &turnedKeys{pagedKeys{keys: n, size: size}}
	for p := range (n + size - 1) / size {
		keys.pages = append(keys.pages, int32(p))
	}
	dense, err := newDecoding(b, &keys.pagedKeys, attention.Causal(), query, key, value)
	if err != nil {
		return nil, err
	}
	defer dense.attention.Close()
	if err := dense.attention.Plan(dense.step); err != nil {
		return nil, err
	}
	r, learn := rand.New(rand.NewPCG(uint64(n), 2)), tensor.New(tensor.F32, learnedQueries, selectHeads, selectDim)
	for i := range learn.F32s() {
		learn.F32s()[i] = query.F32s()[i%(selectHeads*selectDim)] + float32(r.NormFloat64()/2)
	}
	list, err := searchers(b, size)
	if err != nil {
		return nil, err
	}
	var out []selectResult
	for _, s := range list {
		defer s.run.Close()
		if !slices.Contains(names, s.name) {
			continue
		}
		result, err := s.measure(n, repeats, keys, dense, learn)
		if err != nil {
			return nil, err
		}
		out = append(out, result)
	}
	return out, nil
}

func (s *searcher) measure(n, repeats int, keys *turnedKeys, dense *decoding, learn tensor.View) (selectResult, error) {
	out := selectResult{Selector: s.name, Keys: n}
	start := time.Now()
	rows := tensor.Of(dense.args.Key.Buf, tensor.F32, int64(n), selectKVHeads, selectDim) // the pages lie in order
	if err := s.index(rows, learn); err != nil {
		return out, err
	}
	out.Index = time.Since(start).Seconds()
	args := dense.args
	args.Out, args.LSE = tensor.New(tensor.F32, 1, selectHeads, selectDim), tensor.New(tensor.F32, 1, selectHeads)
	var found attention.Found
	var times [3][]float64 // dense, choice, run
	for range repeats {    // in turn, so that other load falls on all alike
		for i, f := range []func() error{
			func() error { return dense.attention.Run(&dense.args) },
			func() error {
				found.Reset()
				if err := s.search(args.Query, n, &found); err != nil {
					return err
				}
				return s.run.Plan(attention.Step{QueryLens: []int{1}, KV: keys})
			},
			func() error { return s.run.Run(&args, &found) },
		} {
			start := time.Now()
			if err := f(); err != nil {
				return out, err
			}
			times[i] = append(times[i], time.Since(start).Seconds()*1e3)
		}
	}
	out.Dense, out.Choice, out.Run = median(times[0]), median(times[1]), median(times[2])
	out.Speedup = out.Dense / (out.Choice + out.Run)
	out.Mass, out.Error = recalled(&args, &dense.args)
	if len(found.LogWeight) > 0 { // the sum is an estimate of the whole one: that of the keys themselves
		found.LogWeight = nil
		if err := s.run.Run(&args, &found); err != nil {
			return out, err
		}
		out.Mass, _ = recalled(&args, &dense.args)
	}
	return out, nil
}
