// Di Liu et al., "RetrievalAttention: Accelerating Long-Context LLM Inference via Vector Retrieval", 2024, https://arxiv.org/abs/2409.10516

package attention

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// RetrievalAttention attends to the keys of the largest scores, found by a walk
// over a graph of the keys, and to the first Sinks and last Window keys.
//
// Queries and keys are distributed differently, so a graph of keys near one
// another leads queries astray. Learn therefore takes queries of the same
// sequence, those of prefill, finds the Neighbours keys that score highest with
// each, and links the first of them with the others. A search starts from the
// keys that most often came first, keeps the Beam best keys met, and walks on
// from the best not yet walked from until there is none; the TopK best are taken.
// Append links a further key with keys near it, up to Degree, none of which is
// nearer to another of them than to it.
//
// Claim: close to dense where few keys hold nearly all the weight, reading 1 to 3
// hundredths of the keys.
//
// Cost: Learn computes all scores of its queries. Append and Search compute a few
// times Beam·(Degree + Neighbours) dot products a KV head. An index has a copy of
// the keys in float32 and up to 4·(2·Degree + 2·Neighbours) bytes of links a key
// and KV head.
//
// Limits: for decode on the CPU. Which keys are found is approximate, and what is
// not found is left out of the softmax. Queries and keys come turned.
type RetrievalAttention struct {
	TopK       int // keys that a query head takes, at least 1
	Beam       int // best keys that a walk keeps, at least TopK
	Degree     int // links of a key with others near it, 1 to 256
	Neighbours int // keys linked by a query that is learned, 2 to 1024
	Sinks      int // first keys seen without search, at least 0
	Window     int // last keys seen without search, the query's own included, at least 1
}

// Info describes the selector.
func (RetrievalAttention) Info() SelectorInfo {
	return SelectorInfo{"retrieval", "arXiv:2409.10516", "decode", "a graph of the keys, in host memory, and queries of prefill"}
}

// Name returns "retrieval".
func (RetrievalAttention) Name() string { return "retrieval" }

func (m RetrievalAttention) static() static { return static{m.Sinks, m.Window} }

func (m RetrievalAttention) check() error {
	switch {
	case m.TopK < 1 || m.Beam < m.TopK || m.Beam >= kernel.MaxBound:
		return fmt.Errorf("attention: retrieval: TopK is %d and Beam %d, want at least 1, and Beam at least TopK", m.TopK, m.Beam)
	case m.Degree < 1 || m.Degree > 256 || m.Neighbours < 2 || m.Neighbours > 1024:
		return fmt.Errorf("attention: retrieval: Degree is %d and Neighbours %d, want 1 to 256 and 2 to 1024", m.Degree, m.Neighbours)
	}
	if err := m.static().check(); err != nil {
		return fmt.Errorf("attention: retrieval: %w", err)
	}
	return nil
}

// New makes an Attention that takes the keys of an index. Its Config has no Mask,
// Position, Rotary or Score but SoftCap.
func (m RetrievalAttention) New(b kernel.Backend, c Config) (*SearchedAttention, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	a, err := newSearched(b, c, m.static())
	if err != nil {
		return nil, fmt.Errorf("attention: retrieval: %w", err)
	}
	return a, nil
}

// KeyGraph is the index of RetrievalAttention over the keys of one sequence and
// layer. It serves one goroutine at a time.
type KeyGraph struct {
	module RetrievalAttention
	keys   keyRows
	heads  []keyGraph
}

// NewIndex makes an index without keys.
func (m RetrievalAttention) NewIndex(kvHeads, headDim int) (*KeyGraph, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	if err := checkKeyRows(kvHeads, headDim); err != nil {
		return nil, fmt.Errorf("attention: retrieval: %w", err)
	}
	x := &KeyGraph{module: m, keys: keyRows{kvHeads: kvHeads, dim: headDim}, heads: make([]keyGraph, kvHeads)}
	for g := range x.heads {
		x.heads[g] = keyGraph{keys: &x.keys, head: g}
	}
	return x, nil
}

// Keys is the number of keys in the index.
func (x *KeyGraph) Keys() int { return x.keys.n }

// Append adds further keys [n, KVHeads, HeadDim], in order.
func (x *KeyGraph) Append(key tensor.View) error {
	first, err := x.keys.append(&key)
	if err != nil {
		return fmt.Errorf("attention: retrieval: %w", err)
	}
	eachHead(x.keys.kvHeads, func(g int) {
		for j := first; j < x.keys.n; j++ {
			x.heads[g].insert(int32(j), x.module.Degree)
		}
	})
	return nil
}

// Learn links the keys that score highest with each of queries [tokens, Heads,
// HeadDim], of all keys of the index, by PageScores and TopK of a backend that
// reads host memory.
func (x *KeyGraph) Learn(ops kernel.Ops, query tensor.View) error {
	rows, err := x.keys.queries(&query, int(query.Shape[0]), static{window: int(query.Shape[0])})
	if err != nil {
		return fmt.Errorf("attention: retrieval: %w", err)
	}
	heads, dim, n := int(query.Shape[1]), x.keys.dim, x.keys.n
	if n == 0 || len(rows) == 0 {
		return nil
	}
	if n > kernel.MaxScores {
		return fmt.Errorf("attention: retrieval: %d keys, want at most %d to learn from", n, kernel.MaxScores)
	}
	all := make([]int32, n)
	for j := range all {
		all[j] = int32(j)
	}
	const most = 1 << 24 // scores at a time
	k, tokens := min(x.module.Neighbours, n), len(rows)/dim/heads
	part := min(max(most/(n*heads), 1), tokens)
	scores, top := tensor.New(tensor.F32, int64(part), int64(heads), int64(n)), make([]int32, part*heads*k)
	keys := tensor.FromF32(x.keys.x, int64(n), int64(x.keys.kvHeads), int64(dim))
	for t0 := 0; t0 < tokens; t0 += part {
		m := min(part, tokens-t0)
		s := scores.Slice(0, 0, int64(m))
		if err := errors.Join(ops.PageScores(&kernel.PageScoresArgs{
			Query: tensor.FromF32(rows[t0*heads*dim:][:m*heads*dim], int64(m), int64(heads), int64(dim)), Min: keys, Max: keys,
			QueryStart: []int32{0, int32(m)}, Pages: kernel.BlockTable{Indptr: []int32{0, int32(n)}, Indices: all}, Scale: 1, Out: s,
		}), ops.TopK(&kernel.TopKArgs{Scores: s, K: k, Out: top[:m*heads*k]})); err != nil {
			return fmt.Errorf("attention: retrieval: %w", err)
		}
		eachHead(x.keys.kvHeads, func(g int) {
			for r := range m * heads {
				if r%heads*x.keys.kvHeads/heads == g {
					x.heads[g].learn(top[r*k:][:k], scores.F32s()[r*n:][:n], x.module.Neighbours)
				}
			}
		})
	}
	for g := range x.heads {
		x.heads[g].setEntries()
	}
	return nil
}

// Search adds to found the keys found for queries [tokens, Heads, HeadDim], the
// last tokens of the sequence when it had so many keys. The index has to have all
// but the last Window keys of them.
func (x *KeyGraph) Search(query tensor.View, keys int, found *Found) error {
	if found == nil {
		return errors.New("attention: retrieval: Search into no Found, want one")
	}
	rows, err := x.keys.queries(&query, keys, x.module.static())
	if err != nil {
		return fmt.Errorf("attention: retrieval: %w", err)
	}
	heads, tokens, dim := int(query.Shape[1]), int(query.Shape[0]), x.keys.dim
	found.addRows(tokens*heads, heads, x.keys.kvHeads, func(g, r int, found *Found) {
		end := keys - tokens + r/heads + 1 - x.module.Window
		found.Indices = x.heads[g].search(rows[r*dim:][:dim], &x.module, end, found.Indices)
	})
	return nil
}

// keyGraph is the graph of one KV head. A key is linked with the ones before and
// after it in the sequence too, so that every key can be reached.
type keyGraph struct {
	keys    *keyRows
	head    int
	half    []float32 // of each key, |k|²/2
	near    [][]int32 // of each key, links with keys near it, up to twice Degree
	learned [][]int32 // of each key, links by queries, up to twice Neighbours
	first   []int32   // of each key, queries that it scored highest with
	entries []int32

	seen []uint32 // of each key, the last walk that met it
	walk uint32
	beam []met
}

// met is a key met on a walk.
type met struct {
	score  float32
	key    int32
	walked bool
}

// before orders by score, of equal ones by index.
func (a met) before(b met) bool { return a.score > b.score || a.score == b.score && a.key < b.key }

func (g *keyGraph) row(j int32) []float32 { return g.keys.row(int(j), g.head) }

// score is q·k, or with near what orders keys by their distance from q.
func (g *keyGraph) score(q []float32, j int32, near bool) float32 {
	s := dot(q, g.row(j))
	if near {
		s -= g.half[j]
	}
	return s
}

// find walks the graph and leaves the best keys met in g.beam, best first.
func (g *keyGraph) find(q []float32, near bool, beam int) {
	g.beam = g.beam[:0]
	if g.walk++; g.walk == 0 {
		clear(g.seen)
		g.walk = 1
	}
	n, next := int32(len(g.half)), 0 // all before next are walked
	meet := func(j int32) {
		if j < 0 || j >= n || g.seen[j] == g.walk {
			return
		}
		g.seen[j] = g.walk
		m := met{score: g.score(q, j, near), key: j}
		if len(g.beam) == beam {
			if !m.before(g.beam[beam-1]) {
				return
			}
			g.beam = g.beam[:beam-1]
		}
		at, _ := slices.BinarySearchFunc(g.beam, m, func(a, b met) int {
			if a.before(b) {
				return -1
			}
			return 1
		})
		g.beam = slices.Insert(g.beam, at, m)
		next = min(next, at)
	}
	meet(0)
	for _, j := range g.entries {
		meet(j)
	}
	for next < len(g.beam) {
		if g.beam[next].walked {
			next++
			continue
		}
		g.beam[next].walked = true
		j := g.beam[next].key
		meet(j - 1)
		meet(j + 1)
		for _, k := range g.learned[j] {
			meet(k)
		}
		for _, k := range g.near[j] {
			meet(k)
		}
	}
}

// search appends the best keys for q between the first and last ones, ascending.
func (g *keyGraph) search(q []float32, m *RetrievalAttention, end int, out []int32) []int32 {
	if end <= m.Sinks {
		return out
	}
	g.find(q, false, m.Beam)
	first := len(out)
	for _, k := range g.beam {
		if int(k.key) >= m.Sinks && int(k.key) < end && len(out) < first+m.TopK {
			out = append(out, k.key)
		}
	}
	slices.Sort(out[first:])
	return out
}

// insert adds key j, the next one.
func (g *keyGraph) insert(j int32, degree int) {
	k := g.row(j)
	g.find(k, true, 2*degree)
	g.half = append(g.half, dot(k, k)/2)
	g.near, g.learned, g.first, g.seen = append(g.near, nil), append(g.learned, nil), append(g.first, 0), append(g.seen, 0)
	links := make([]int32, 0, 2*degree)
	for _, m := range g.beam {
		links = append(links, m.key)
	}
	g.near[j] = g.prune(j, links, degree)
	for _, k := range g.near[j] {
		g.near[k] = g.link(k, g.near[k], j, degree)
	}
}

// link adds key k to the links of key j, of which half are dropped when there
// are twice limit.
func (g *keyGraph) link(j int32, links []int32, k int32, limit int) []int32 {
	if j == k || slices.Contains(links, k) {
		return links
	}
	if links = append(links, k); len(links) > 2*limit {
		links = g.prune(j, links, limit)
	}
	return links
}

// prune keeps limit links of key j: the nearest first, those that are nearer to
// one kept than to j only where there is room left.
func (g *keyGraph) prune(j int32, links []int32, limit int) []int32 {
	order := make([]met, len(links))
	for i, k := range links {
		order[i] = met{score: g.score(g.row(j), k, true), key: k}
	}
	slices.SortFunc(order, func(a, b met) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.key, b.key))
	})
	kept := links[:0]
	var rest []int32
	for _, m := range order {
		if len(kept) == limit {
			break
		}
		// |k − s|² < |k − j|² in scores: k·s − |s|²/2 > k·j − |j|²/2
		k := g.row(m.key)
		own := m.score + g.half[m.key] - g.half[j]
		if slices.ContainsFunc(kept, func(s int32) bool { return g.score(k, s, true) > own }) {
			rest = append(rest, m.key)
			continue
		}
		kept = append(kept, m.key)
	}
	return append(kept, rest[:min(len(rest), limit-len(kept))]...)
}

// learn links the keys that score highest with a query, given ascending.
func (g *keyGraph) learn(top []int32, scores []float32, limit int) {
	best := top[0]
	for _, k := range top {
		if k >= 0 && scores[k] > scores[best] {
			best = k
		}
	}
	if best < 0 {
		return // all of them NaN
	}
	g.first[best]++
	for _, k := range top {
		if k >= 0 {
			g.learned[best] = g.link(best, g.learned[best], k, limit)
			g.learned[k] = g.link(k, g.learned[k], best, limit)
		}
	}
}

// setEntries starts walks from the keys that came first for the most queries.
func (g *keyGraph) setEntries() {
	const most = 64
	g.entries = g.entries[:0]
	for j, n := range g.first {
		if n > 0 {
			g.entries = append(g.entries, int32(j))
		}
	}
	slices.SortStableFunc(g.entries, func(a, b int32) int { return cmp.Compare(g.first[b], g.first[a]) })
	g.entries = g.entries[:min(len(g.entries), most)]
}
