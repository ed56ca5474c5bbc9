package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// scene is a cache with planted keys, a query, and dense attention over it.
type scene struct {
	b                 kernel.Backend
	query, key, value tensor.View
	slots             tensor.View // the keys with slots side by side
	keys              *pagedKeys
	rows              []int32 // keys of each page
	in                *attention.Selection
	dense             *decoding
	pages             int // that a head sees
}

// contender is a selector with its attention, ready to run.
type contender struct {
	choose, run func() error
	args        *kernel.Args
	finish      func() error // before args are judged; nil: nothing
	close       func() error
}

// decodeSelector is a selector by name.
type decodeSelector struct {
	name string
	make func(s *scene) (*contender, error)
}

// listing are the selectors that list keys or blocks.
var listing = []decodeSelector{
	{"quest", (*scene).quest}, {"sparq", (*scene).sparq}, {"sparq-mean", (*scene).sparqMean}, {"loki", (*scene).loki}, {"doublesparse", (*scene).doubleSparse},
	{"infllm", (*scene).infLLM}, {"longheads", (*scene).longHeads}, {"pqcache", (*scene).pqCache}, {"reattention", (*scene).reAttention},
	{"squeezedattention", (*scene).squeezed}, {"nsa", (*scene).nsa},
}

// searching are the selectors that search for keys.
var searching = []string{"magicpig", "retrieval"}

// selectorNames are those of all.
func selectorNames() (names []string) {
	for _, s := range listing {
		names = append(names, s.name)
	}
	return append(names, searching...)
}

// decodeSelectors are those of the names that list keys or blocks.
func decodeSelectors(names []string) (out []decodeSelector, err error) {
	for _, name := range names {
		if slices.Contains(searching, name) {
			continue
		}
		i := slices.IndexFunc(listing, func(s decodeSelector) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("-selectors has %q, want some of %s", name, strings.Join(selectorNames(), ","))
		}
		out = append(out, listing[i])
	}
	return out, nil
}

func newScene(n, size, pages int) (*scene, error) {
	s := &scene{b: cpu.New(cpu.Options{}), keys: &pagedKeys{keys: n, size: size}, pages: pages}
	s.query, s.key, s.value = plant(n, size)
	for p := range (n + size - 1) / size {
		s.keys.pages, s.rows = append(s.keys.pages, int32(p)), append(s.rows, int32(min(size, n-p*size)))
	}
	s.slots = tensor.New(tensor.F32, int64(len(s.keys.pages)), selectKVHeads, selectDim, int64(size)).Swap(1, 3).Swap(2, 3)
	to, from := s.slots.F32s(), s.key.F32s()
	for p := range len(s.keys.pages) {
		for slot := range size {
			for g := range selectKVHeads {
				for d := range selectDim {
					to[((p*selectKVHeads+g)*selectDim+d)*size+slot] = from[((p*size+slot)*selectKVHeads+g)*selectDim+d]
				}
			}
		}
	}
	var err error
	if s.dense, err = newDecoding(s.b, s.keys, attention.Causal(), s.query, s.key, s.value); err != nil {
		return nil, err
	}
	if err := s.dense.attention.Plan(s.dense.step); err != nil {
		return nil, err
	}
	s.in = &attention.Selection{Query: s.query, QueryStart: []int32{0, 1}, SeqLens: []int32{int32(n)},
		Pages: kernel.BlockTable{Indptr: []int32{0, int32(len(s.keys.pages))}, Indices: s.keys.pages}, PageSize: size, KVHeads: selectKVHeads,
		Scale: float32(1 / math.Sqrt(selectDim)), Scores: tensor.New(tensor.F32, 1, selectHeads, int64(n))}
	return s, nil
}

func (s *scene) close() {
	s.dense.attention.Close()
	s.b.(*cpu.Backend).Close()
}

// judge times a selector in turn with dense attention, so that other load falls on
// both alike.
func (s *scene) judge(c decodeSelector, repeats int) (selectResult, error) {
	out := selectResult{Selector: c.name, Keys: s.keys.keys}
	x, err := c.make(s)
	if err != nil {
		return out, err
	}
	defer x.close()
	var times [3][]float64 // dense, choice, run
	for range repeats {
		for i, f := range []func() error{func() error { return s.dense.attention.Run(&s.dense.args) }, x.choose, x.run} {
			start := time.Now()
			if err := f(); err != nil {
				return out, err
			}
			times[i] = append(times[i], time.Since(start).Seconds()*1e3)
		}
	}
	out.Dense, out.Choice, out.Run = median(times[0]), median(times[1]), median(times[2])
	out.Speedup = out.Dense / (out.Choice + out.Run)
	if x.finish != nil {
		if err := x.finish(); err != nil {
			return out, err
		}
	}
	out.Mass, out.Error = recalled(x.args, &s.dense.args)
	return out, nil
}

// blocks is a contender that lists blocks.
func (s *scene) blocks(choose func() (kernel.BlockSparse, error)) (*contender, error) {
	d, err := newDecoding(s.b, s.keys, attention.Blocks(), s.query, s.key, s.value)
	if err != nil {
		return nil, err
	}
	return &contender{
		choose: func() (err error) {
			if d.step.Blocks, err = choose(); err != nil {
				return err
			}
			return d.attention.Plan(d.step)
		},
		run: func() error { return d.attention.Run(&d.args) }, args: &d.args, close: d.attention.Close,
	}, nil
}

// singles is a contender that lists single keys.
func (s *scene) singles(choose func() (*attention.Keys, error)) (*contender, error) {
	k, err := attention.NewKeyAttention(s.b, attention.Config{Heads: selectHeads, KVHeads: selectKVHeads, HeadDim: selectDim, PageSize: s.keys.size}, false)
	if err != nil {
		return nil, err
	}
	args := s.dense.args
	args.Out, args.LSE = tensor.New(tensor.F32, 1, selectHeads, selectDim), tensor.New(tensor.F32, 1, selectHeads)
	return &contender{
		choose: func() error {
			keys, err := choose()
			if err != nil {
				return err
			}
			return k.Plan(s.in, keys, s.key)
		},
		run: func() error { return k.Run(&args) }, args: &args, close: k.Close,
	}, nil
}

func (s *scene) quest() (*contender, error) {
	m := int64(len(s.keys.pages))
	least, most := tensor.New(tensor.F32, m, selectKVHeads, selectDim), tensor.New(tensor.F32, m, selectKVHeads, selectDim)
	q := attention.Quest{Pages: s.pages, Sinks: 1, Recent: 1}
	if err := q.Bounds(s.b, s.key, least, most, s.keys.pages, s.rows); err != nil {
		return nil, err
	}
	in := *s.in
	in.Scores = tensor.New(tensor.F32, 1, selectHeads, m)
	return s.blocks(func() (kernel.BlockSparse, error) { return q.Select(s.b, &in, least, most) })
}

func (s *scene) sparq() (*contender, error) {
	q := attention.SparQ{Rank: selectDim / 4, Keys: s.pages * s.keys.size, Sinks: 1, Recent: 16}
	return s.singles(func() (*attention.Keys, error) { return q.Select(s.b, s.in, s.slots) })
}

// sparqMean has the mean of the values, which attention over all with no query gives.
func (s *scene) sparqMean() (*contender, error) {
	q := attention.SparQ{Rank: selectDim / 4, Keys: s.pages * s.keys.size, Sinks: 1, Recent: 16}
	mean, err := newDecoding(s.b, s.keys, attention.Causal(), tensor.New(tensor.F32, 1, selectHeads, selectDim), s.key, s.value)
	if err != nil {
		return nil, err
	}
	defer mean.attention.Close()
	if err := mean.attention.Plan(mean.step); err != nil {
		return nil, err
	}
	if err := mean.attention.Run(&mean.args); err != nil {
		return nil, err
	}
	var alpha []float32
	out, err := s.singles(func() (keys *attention.Keys, err error) {
		keys, alpha, err = q.SelectWithMean(s.b, s.in, s.slots)
		return keys, err
	})
	if err != nil {
		return nil, err
	}
	run := out.run
	out.run = func() error {
		if err := run(); err != nil {
			return err
		}
		return q.Correct(s.b, out.args.Out, mean.args.Out, alpha)
	}
	return out, nil
}

// loki projects on features as they are: of random keys one basis is as good as
// another.
func (s *scene) loki() (*contender, error) {
	const r = selectDim / 4
	basis := tensor.New(tensor.F32, 1, r, selectKVHeads, selectDim)
	for c := range int64(r) {
		for g := range int64(selectKVHeads) {
			basis.Set(1, 0, c, g, c)
		}
	}
	l := attention.Loki{Keys: s.pages * s.keys.size, Sinks: 1, Recent: 1}
	reduced := tensor.New(tensor.F32, int64(len(s.keys.pages)), int64(s.keys.size), selectKVHeads, r)
	flat := func(v tensor.View, dim int64) tensor.View {
		return tensor.Of(v.Buf, tensor.F32, int64(len(s.keys.pages)*s.keys.size), selectKVHeads, dim)
	}
	if err := l.Project(s.b, flat(s.key, selectDim), basis, flat(reduced, r)); err != nil {
		return nil, err
	}
	in := *s.in
	in.Query = tensor.New(tensor.F32, 1, selectHeads, r)
	return s.singles(func() (*attention.Keys, error) {
		if err := l.Project(s.b, s.query, basis, in.Query); err != nil {
			return nil, err
		}
		return l.Select(s.b, &in, reduced)
	})
}

func (s *scene) doubleSparse() (*contender, error) {
	const r = selectDim / 16
	d := attention.DoubleSparse{Keys: s.pages * s.keys.size, Sinks: 1, Recent: 1}
	for range selectKVHeads {
		var list []int32
		for c := range r {
			list = append(list, int32(c*16))
		}
		d.Channels = append(d.Channels, list)
	}
	labels := tensor.New(tensor.F32, int64(len(s.keys.pages)), int64(s.keys.size), selectKVHeads, r)
	if err := d.Label(s.key, labels, s.keys.pages, s.rows); err != nil {
		return nil, err
	}
	return s.singles(func() (*attention.Keys, error) { return d.Select(s.b, s.in, labels) })
}

func (s *scene) representations() tensor.View {
	return tensor.New(tensor.F32, int64(len(s.keys.pages)), selectKVHeads, selectDim)
}

// infLLM has representatives drawn: nothing looked at these keys before.
func (s *scene) infLLM() (*contender, error) {
	m := attention.InfLLM{Blocks: max(s.pages-2, 1), Init: 1, Local: 1, Representatives: 4}
	means, weights := s.representations(), tensor.New(tensor.F32, int64(s.keys.keys), selectKVHeads)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range weights.F32s() {
		weights.F32s()[i] = r.Float32()
	}
	if err := m.Represent(s.key, weights, means, s.keys.pages, s.keys.keys); err != nil {
		return nil, err
	}
	return s.blocks(func() (kernel.BlockSparse, error) { return m.Select(s.b, s.in, means) })
}

// longHeads has queries drawn for the tokens of the cache.
func (s *scene) longHeads() (*contender, error) {
	m, means := attention.LongHeads{Chunks: max(s.pages, 3)}, s.representations()
	r := rand.New(rand.NewPCG(1, 3))
	const pages = 64 // at a time
	for lo := 0; lo < len(s.rows); lo += pages {
		hi := min(lo+pages, len(s.rows))
		n := 0
		for _, rows := range s.rows[lo:hi] {
			n += int(rows)
		}
		queries := tensor.New(tensor.F32, int64(n), selectHeads, selectDim)
		for i := range queries.F32s() {
			queries.F32s()[i] = float32(r.NormFloat64())
		}
		if err := m.Represent(s.b, queries, s.key, s.value, means, s.keys.pages[lo:hi], s.rows[lo:hi]); err != nil {
			return nil, err
		}
	}
	in := *s.in
	in.Scores = tensor.New(tensor.F32, 1, selectHeads, int64(len(s.rows)))
	return s.blocks(func() (kernel.BlockSparse, error) { return m.Select(s.b, &in, means) })
}

func (s *scene) pqCache() (*contender, error) {
	p := attention.PQCache{Keys: s.pages * s.keys.size, Sinks: 1, Recent: 1, Parts: 2, Codes: 64}
	for p.Codes > s.keys.keys {
		p.Codes /= 2
	}
	some := min(len(s.rows), 128)
	centroids, err := p.Train(s.b, s.key, s.keys.pages[:some], s.rows[:some], 3)
	if err != nil {
		return nil, err
	}
	codes := tensor.New(tensor.U8, int64(len(s.rows)), int64(s.keys.size), selectKVHeads, int64(p.Parts))
	if err := p.Encode(s.b, s.key, centroids, codes, s.keys.pages, s.rows); err != nil {
		return nil, err
	}
	return s.singles(func() (*attention.Keys, error) { return p.Select(s.b, s.in, centroids, codes) })
}

// reAttention finds as many keys as keep the spans of all heads, which every KV head
// reads, within what one head of the others sees.
func (s *scene) reAttention() (*contender, error) {
	local := max(s.pages*s.keys.size/2, 1)
	if s.pages*s.keys.size >= s.keys.keys {
		local = s.keys.keys
	}
	m := attention.ReAttention{Top: max((s.pages*s.keys.size-local)/(32*selectHeads), 1), Span: 32, Global: 1, Local: local}
	return s.singles(func() (*attention.Keys, error) { return m.Select(s.b, s.in, s.key) })
}

// squeezed has a threshold at which a KV head reads about as many keys as one head of
// the others.
func (s *scene) squeezed() (*contender, error) {
	var m attention.SqueezedAttention
	fixed := s.keys.keys - 1
	prefix, err := m.Cluster(s.b, s.key, s.keys.pages, fixed, min(1024, fixed), 1)
	if err != nil {
		return nil, err
	}
	lo, hi := math.Log(1e-9), math.Log(0.5)
	for range 20 {
		m.Threshold = math.Exp((lo + hi) / 2)
		keys, err := m.Select(s.b, s.in, prefix)
		if err != nil {
			return nil, err
		}
		if len(keys.Indices) > s.pages*s.keys.size*selectKVHeads {
			lo = (lo + hi) / 2
		} else {
			hi = (lo + hi) / 2
		}
	}
	if m.Threshold = math.Exp(hi); s.pages*s.keys.size >= s.keys.keys {
		m.Threshold = -1
	}
	return s.singles(func() (*attention.Keys, error) { return m.Select(s.b, s.in, prefix) })
}

// nsa counts its choice as running: it is one with its attentions. What it recalls is
// that of its selected blocks.
func (s *scene) nsa() (*contender, error) {
	m := attention.NSA{Blocks: s.pages, Sinks: 1, Recent: min(2, s.pages-1), Window: 512}
	a, err := m.New(s.b, attention.Config{Heads: selectHeads, KVHeads: selectKVHeads, HeadDim: selectDim, PageSize: s.keys.size})
	if err != nil {
		return nil, err
	}
	meanKey, meanValue := s.representations(), s.representations()
	if err := m.Compress(s.key, s.value, meanKey, meanValue, s.keys.pages[:s.keys.keys/s.keys.size]); err != nil {
		return nil, err
	}
	var gates [3]tensor.View
	for i := range gates {
		gates[i] = tensor.New(tensor.F32, 1, selectHeads)
		for h := range gates[i].F32s() {
			gates[i].F32s()[h] = 1
		}
	}
	args := s.dense.args
	args.Out, args.LSE = tensor.New(tensor.F32, 1, selectHeads, selectDim), tensor.View{}
	d, err := newDecoding(s.b, s.keys, attention.Blocks(), s.query, s.key, s.value)
	if err != nil {
		return nil, err
	}
	return &contender{
		choose: func() error { return nil },
		run:    func() error { return a.Run(s.b, s.in, &args, meanKey, meanValue, gates) },
		args:   &d.args,
		finish: func() error {
			d.step.Blocks = a.Selected
			if err := d.attention.Plan(d.step); err != nil {
				return err
			}
			return d.attention.Run(&d.args)
		},
		close: func() error {
			if err := d.attention.Close(); err != nil {
				return err
			}
			return a.Close()
		},
	}, nil
}
