package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/tensor"
)

// cacheCascade is a layer's decode step of sequences that share a prefix, which is
// read once for each of them, and once for all.
type cacheCascade struct {
	Sequences int     `json:"sequences"`
	Shared    int     `json:"shared_tokens"`
	Own       int     `json:"own_tokens"`
	OnePass   float64 `json:"one_pass_ms"`
	Cascade   float64 `json:"cascade_ms"` // in the same run, in turn; medians
	Speedup   float64 `json:"speed_up"`
	Apart     float64 `json:"apart"` // largest difference of the outputs, of the largest of them
}

// cascadeScene are sequences that share pages, and both ways to attend to them.
type cascadeScene struct {
	backend               kernel.Backend
	cache                 *kvcache.Cache
	whole, prefixes, tail *attention.Attention
	one, shared, own      *kernel.Args
}

// The sizes of a layer.
const cascadeHeads, cascadeKVHeads, cascadeDim = 8, 2, 128

func newCascadeScene(b kernel.Backend, page, sequences, shared, own int, seed uint64) (_ *cascadeScene, err error) {
	s := &cascadeScene{backend: b}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	pages := (shared+page-1)/page + sequences*((own+page-1)/page+1)
	if s.cache, err = kvcache.New(b, kvcache.Config{Layers: 1, Pages: pages, PageSize: page, KVHeads: cascadeKVHeads, HeadDim: cascadeDim, ValueDim: cascadeDim,
		DType: tensor.F16, KeyStorage: kernel.PostRoPE}); err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(seed, 12))
	draw := func(n, heads int64) tensor.View {
		v := tensor.New(tensor.F32, n, heads, cascadeDim)
		for i := range v.F32s() {
			v.F32s()[i] = float32(random.NormFloat64())
		}
		return v
	}
	extend := func(ids []kvcache.ID, counts []int) error {
		slots, err := s.cache.Extend(ids, counts, nil)
		if err != nil {
			return err
		}
		n := int64(len(slots))
		return s.cache.Append(0, slots, draw(n, cascadeKVHeads), draw(n, cascadeKVHeads))
	}
	root := s.cache.NewSequence()
	if err := extend([]kvcache.ID{root}, []int{shared}); err != nil {
		return nil, err
	}
	ids, err := prefix.Fan(s.cache, root, sequences)
	if err != nil {
		return nil, err
	}
	if err := extend(ids, slices.Repeat([]int{own}, sequences)); err != nil {
		return nil, err
	}
	return s, s.plan(ids, page, draw(int64(sequences), cascadeHeads))
}

// plan prepares both ways for one token of each sequence.
func (s *cascadeScene) plan(ids []kvcache.ID, page int, query tensor.View) (err error) {
	config := attention.Config{Heads: cascadeHeads, KVHeads: cascadeKVHeads, HeadDim: cascadeDim, DType: tensor.F32, KVDType: tensor.F16, PageSize: page,
		KeyStorage: kernel.PostRoPE, Policy: kernel.Fast, Mask: attention.Causal()}
	var errs [3]error
	s.whole, errs[0] = attention.New(s.backend, config)
	s.tail, errs[1] = attention.New(s.backend, config)
	config.Mask = attention.Bidirectional() // all queries come after the prefix
	s.prefixes, errs[2] = attention.New(s.backend, config)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	n := int64(len(ids))
	for _, args := range []**kernel.Args{&s.one, &s.shared, &s.own} {
		*args = &kernel.Args{Query: query, Out: tensor.New(tensor.F32, n, cascadeHeads, cascadeDim), LSE: tensor.New(tensor.F32, n, cascadeHeads)}
		if err := s.cache.Bind(0, *args); err != nil {
			return err
		}
	}
	view, lens := s.cache.Sequences(ids...), slices.Repeat([]int{1}, len(ids))
	cascade := prefix.NewCascade(view)
	if err := cascade.Plan(lens); err != nil {
		return err
	}
	return errors.Join(s.whole.Plan(attention.Step{KV: view, QueryLens: lens}),
		s.prefixes.Plan(attention.Step{KV: cascade.Shared(), QueryLens: cascade.SharedQueryLens(), QueryPos: cascade.QueryPos()}),
		s.tail.Plan(attention.Step{KV: cascade.Tails(), QueryLens: lens, QueryPos: cascade.QueryPos()}))
}

func (s *cascadeScene) onePass() error { return s.whole.Run(s.one) }

func (s *cascadeScene) cascade() error {
	if err := errors.Join(s.prefixes.Run(s.shared), s.tail.Run(s.own)); err != nil {
		return err
	}
	return s.backend.Merge(&kernel.MergeArgs{OutA: s.shared.Out, LSEA: s.shared.LSE, OutB: s.own.Out, LSEB: s.own.LSE, Out: s.shared.Out, LSE: s.shared.LSE, Policy: kernel.Fast})
}

func (s *cascadeScene) close() (err error) {
	for _, a := range []*attention.Attention{s.whole, s.prefixes, s.tail} {
		if a != nil {
			err = errors.Join(err, a.Close())
		}
	}
	if s.cache != nil {
		err = errors.Join(err, s.cache.Close())
	}
	return err
}

// cascade times both ways over ever more sequences.
func (o *cacheFlags) cascade(ctx context.Context, std streams, b kernel.Backend, r *cacheResults) error {
	counts, shared, own, rounds := []int{1, 4, 16}, 8192, 64, 31
	if o.quick {
		counts, shared, rounds = []int{1, 4}, 512, 5
	}
	bar := newBar(std, int64(len(counts)*rounds))
	defer bar.Close()
	for _, n := range counts {
		x, err := o.cascadeOf(ctx, b, cacheCascade{Sequences: n, Shared: shared, Own: own}, rounds, func() { bar.Add(1) })
		if err != nil {
			return err
		}
		r.Cascade = append(r.Cascade, x)
	}
	return nil
}

func (o *cacheFlags) cascadeOf(ctx context.Context, b kernel.Backend, x cacheCascade, rounds int, step func()) (_ cacheCascade, err error) {
	s, err := newCascadeScene(b, o.page, x.Sequences, x.Shared, x.Own, o.seed)
	if err != nil {
		return x, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	took, err := inTurn(ctx, rounds, step, s.onePass, s.cascade)
	if err != nil {
		return x, err
	}
	x.OnePass, x.Cascade = took[0]*1e3, took[1]*1e3
	x.Speedup, x.Apart = x.OnePass/x.Cascade, apart(s.one.Out.F32s(), s.shared.Out.F32s())
	return x, nil
}

// inTurn runs functions one after another, rounds times, and returns the median
// seconds of each. step is called after each round.
func inTurn(ctx context.Context, rounds int, step func(), run ...func() error) ([]float64, error) {
	times := make([][]float64, len(run))
	for range rounds {
		for i, f := range run {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			start := time.Now()
			if err := f(); err != nil {
				return nil, err
			}
			times[i] = append(times[i], time.Since(start).Seconds())
		}
		step()
	}
	medians := make([]float64, len(run))
	for i := range times {
		medians[i] = median(times[i])
	}
	return medians, nil
}

// median sorts x.
func median(x []float64) float64 { slices.Sort(x); return x[len(x)/2] }
