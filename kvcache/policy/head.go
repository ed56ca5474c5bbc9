package policy

import (
	"slices"

	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// Needs says what a policy must be told of each head, as a set.
type Needs uint16

const (
	Sums         Needs = 1 << iota // Observation.Sum of all queries
	Squares                        // Observation.Square of all queries
	Recent                         // Observation.Recent, of the last queries
	Each                           // Observations of one query each
	Maxima                         // Observation.Max
	Keys                           // Head.Key, on the host
	Values                         // Head.Value, on the host
	QueryMoments                   // Head.Moments
	Projected                      // Head.Projected
	External                       // Head.External
	Tags                           // Head.Tags
)

var needNames = []string{"sums", "squares", "recent", "each", "maxima", "keys", "values", "query moments", "projected", "external", "tags"}

// String lists the needs: "sums, values"; "nothing" if there are none.
func (n Needs) String() string {
	out := ""
	for i, name := range needNames {
		if n&(1<<i) != 0 {
			if out != "" {
				out += ", "
			}
			out += name
		}
	}
	if out == "" {
		return "nothing"
	}
	return out
}

// Tag says what kind of token a key is of, for FastGen.
type Tag uint8

const (
	Plain Tag = iota
	Special
	Punctuation
)

// Head is what is known of the n keys that one KV head of a layer holds, in their
// order. Columns of n are nil until something is known; what nobody tells counts
// 0.
type Head struct {
	Positions []int32 // of the keys, ascending
	Tokens    int     // of the sequence so far, evicted ones included
	Prompt    int     // of these, tokens of the prompt; set it for SCOPE

	Sum     []float32 // [n] Σ weights over all observed queries
	Square  []float32 // [n] Σ weights²
	Queries []float32 // [n] observed queries that saw the key
	Low     []float32 // [n] of single queries since the last plan: those that gave it less than an even share
	Max     []float32 // [n] largest weight
	Recent  []float32 // [n] Σ weights over the last RecentQueries queries
	Count   []float32 // [n] tokens that a key stands for, where they were averaged; nil: 1 each

	RecentQueries int

	// Told by the caller before Plan, if needed; a plan that was applied takes
	// Tags and External along and forgets Key, Value and Projected.
	Key, Value tensor.View // [n, dim] in host memory, of any stored type
	Projected  []float32   // [n] ‖Wₒ·v‖₁, mean over the query heads of the group
	External   []float32   // [n] scores from elsewhere
	Tags       []Tag       // [n]
	Moments    []Moments   // one for each query head of the group; stays

	threshold float32 // D2O: of similarity, NaN-free; 0 before the first plan
	pending   pending
}

// pending is what becomes of a Head if the plan made last is applied.
type pending struct {
	count     []float32
	external  []float32
	threshold float32
}

// Observation is what some of the last queries of a sequence gave to the n keys
// of a head, their own included.
type Observation struct {
	Queries int       // that Sum, Square and Max are of
	Sum     []float32 // [n]
	Square  []float32 // [n], optional
	Max     []float32 // [n], optional

	RecentQueries int
	Recent        []float32 // [n], optional: sums over the last RecentQueries
}

// Len is the number of keys.
func (h *Head) Len() int { return len(h.Positions) }

// Extend adds the next tokens.
func (h *Head) Extend(tokens int) {
	h.tidy()
	for range tokens {
		h.Positions = append(h.Positions, int32(h.Tokens))
		h.Tokens++
	}
	n := h.Len()
	for _, c := range h.columns() {
		if *c != nil {
			*c = append(*c, make([]float32, n-len(*c))...)
		}
	}
	if h.Count != nil {
		for len(h.Count) < n {
			h.Count = append(h.Count, 1)
		}
	}
	if h.Tags != nil {
		h.Tags = append(h.Tags, make([]Tag, n-len(h.Tags))...)
	}
	h.forget()
}

// columns are those that new keys have zeros in.
func (h *Head) columns() []*[]float32 {
	return []*[]float32{&h.Sum, &h.Square, &h.Queries, &h.Low, &h.Max, &h.Recent, &h.External}
}

// tidy forgets columns that are not of n.
func (h *Head) tidy() {
	n := h.Len()
	for _, c := range append(h.columns(), &h.Count, &h.Projected, &h.pending.count, &h.pending.external) {
		if len(*c) != n {
			*c = nil
		}
	}
	if len(h.Tags) != n {
		h.Tags = nil
	}
	for _, v := range []*tensor.View{&h.Key, &h.Value} {
		if !rows(v, n) {
			*v = tensor.View{}
		}
	}
}

// forget drops what is known of rows that are no longer those of the cache.
func (h *Head) forget() {
	h.Key, h.Value, h.Projected, h.pending = tensor.View{}, tensor.View{}, nil, pending{threshold: h.threshold}
}

// Observe adds an observation.
func (h *Head) Observe(o Observation) error {
	n := h.Len()
	for _, c := range []struct {
		name string
		x    []float32
	}{{"Observation.Sum", o.Sum}, {"Observation.Square", o.Square}, {"Observation.Max", o.Max}, {"Observation.Recent", o.Recent}} {
		if c.x != nil && len(c.x) != n {
			return valueError(c.name, len(c.x), "one for each of the %d keys", n)
		}
	}
	if o.Queries < 0 || o.RecentQueries < 0 || o.Sum != nil && o.Queries == 0 || o.Recent != nil && o.RecentQueries == 0 {
		return valueError("Observation.Queries", o.Queries, "the number of queries summed")
	}
	if o.Sum != nil {
		add(&h.Sum, o.Sum)
		h.Queries = sized(h.Queries, n)
		for j := range h.Queries {
			h.Queries[j] += float32(min(o.Queries, n-j))
		}
		if o.Queries == 1 {
			h.Low = sized(h.Low, n)
			for j, w := range o.Sum {
				if w < 1/float32(n) {
					h.Low[j]++
				}
			}
		}
	}
	if o.Square != nil {
		add(&h.Square, o.Square)
	}
	if o.Max != nil {
		h.Max = sized(h.Max, n)
		for j, w := range o.Max {
			h.Max[j] = max(h.Max[j], w)
		}
	}
	if o.Recent != nil {
		h.Recent, h.RecentQueries = slices.Clone(o.Recent), o.RecentQueries
	}
	return nil
}

func sized(x []float32, n int) []float32 {
	if x == nil {
		return make([]float32, n)
	}
	return x
}

func add(dst *[]float32, x []float32) {
	*dst = sized(*dst, len(x))
	for j, w := range x {
		(*dst)[j] += w
	}
}

// applied compacts h as a cache does.
func (h *Head) applied(keep []int32) {
	h.tidy()
	if h.pending.count != nil {
		h.Count = h.pending.count
	}
	if h.pending.external != nil {
		h.External = h.pending.external
	}
	h.threshold = h.pending.threshold
	pick := func(x []float32) []float32 {
		if x == nil {
			return nil
		}
		out := make([]float32, len(keep))
		for i, j := range keep {
			out[i] = x[j]
		}
		return out
	}
	positions := make([]int32, len(keep))
	for i, j := range keep {
		positions[i] = h.Positions[j]
	}
	h.Positions = positions
	for _, c := range append(h.columns(), &h.Count) {
		*c = pick(*c)
	}
	if h.Tags != nil {
		tags := make([]Tag, len(keep))
		for i, j := range keep {
			tags[i] = h.Tags[j]
		}
		h.Tags = tags
	}
	clear(h.Low) // a new history begins
	h.forget()
}

// truncate forgets the tokens from position n on. What their queries gave to the
// keys before stays counted.
func (h *Head) truncate(n int) {
	h.tidy()
	m, _ := slices.BinarySearch(h.Positions, int32(n))
	h.Positions, h.Tokens, h.Prompt = h.Positions[:m], n, min(h.Prompt, n)
	for _, c := range append(h.columns(), &h.Count) {
		if *c != nil {
			*c = (*c)[:m]
		}
	}
	if h.Tags != nil {
		h.Tags = h.Tags[:m]
	}
	h.forget()
}

// part is the keys lo <= j < hi alone.
func (h *Head) part(lo, hi int) *Head {
	p := *h
	p.tidy()
	p.Positions = h.Positions[lo:hi]
	for _, c := range append(p.columns(), &p.Count, &p.Projected) {
		if *c != nil {
			*c = (*c)[lo:hi]
		}
	}
	if p.Tags != nil {
		p.Tags = p.Tags[lo:hi]
	}
	for _, v := range []*tensor.View{&p.Key, &p.Value} {
		if !v.IsZero() {
			*v = v.Slice(0, int64(lo), int64(hi))
		}
	}
	return &p
}

func (h *Head) clone() *Head {
	c := *h
	c.Positions, c.Tags = slices.Clone(h.Positions), slices.Clone(h.Tags)
	for _, x := range append(c.columns(), &c.Count, &c.Projected, &c.pending.count, &c.pending.external) {
		*x = slices.Clone(*x)
	}
	return &c
}

// missing is what of needs was not told, for keys that there are.
func (h *Head) missing(needs Needs) Needs {
	if h.Len() == 0 {
		return 0
	}
	n := h.Len()
	for _, c := range []struct {
		need Needs
		have bool
	}{
		{Sums, len(h.Sum) == n}, {Squares, len(h.Square) == n}, {Recent, len(h.Recent) == n}, {Each, len(h.Low) == n}, {Maxima, len(h.Max) == n},
		{Keys, rows(&h.Key, n)}, {Values, rows(&h.Value, n)}, {QueryMoments, len(h.Moments) > 0},
		{Projected, len(h.Projected) == n}, {External, len(h.External) == n}, {Tags, len(h.Tags) == n},
	} {
		if c.have {
			needs &^= c.need
		}
	}
	return needs
}

func rows(v *tensor.View, n int) bool {
	return !v.IsZero() && v.Rank == 2 && v.Shape[0] == int64(n) && v.Bytes() != nil && v.Check() == nil
}

// Sequence is the heads of a sequence, in the order of the plans of
// kvcache.HeadCache.Apply.
type Sequence struct {
	Layers, KVHeads int
	Heads           []*Head // [Layers·KVHeads]
}

// NewSequence has no keys yet.
func NewSequence(layers, kvHeads int) *Sequence {
	s := &Sequence{Layers: layers, KVHeads: kvHeads}
	for range layers * kvHeads {
		s.Heads = append(s.Heads, new(Head))
	}
	return s
}

// Head is a KV head of a layer.
func (s *Sequence) Head(layer, head int) *Head { return s.Heads[layer*s.KVHeads+head] }

// Extend adds the next tokens to all heads.
func (s *Sequence) Extend(tokens int) {
	for _, h := range s.Heads {
		h.Extend(tokens)
	}
}

// Load copies the keys and values of sequence id, as attention reads them, to all
// heads, from a cache in host memory.
func (s *Sequence) Load(c *kvcache.HeadCache, id kvcache.ID) error {
	for i, h := range s.Heads {
		key, value, err := c.Gather(id, i/s.KVHeads, i%s.KVHeads)
		if err != nil {
			return err
		}
		h.Key, h.Value = flat(key), flat(value)
	}
	return nil
}

// flat is [n, dim] of [n, 1, dim].
func flat(v tensor.View) tensor.View {
	v.Rank, v.Shape[1], v.Stride[1], v.Shape[2], v.Stride[2] = 2, v.Shape[2], v.Stride[2], 0, 0
	return v
}

// Applied changes s as the cache was changed, by plans that were applied: those
// that the last Plan gave.
func (s *Sequence) Applied(plans []kvcache.Plan) error {
	if len(plans) != len(s.Heads) {
		return valueError("Applied: number of plans", len(plans), "%d, one for each head", len(s.Heads))
	}
	for i, p := range plans {
		if k := len(p.Keep); k > 0 && int(p.Keep[k-1]) >= s.Heads[i].Len() {
			return valueError("Applied: ordinal", p.Keep[k-1], "below the %d keys of head %d", s.Heads[i].Len(), i)
		}
	}
	for i, p := range plans {
		s.Heads[i].applied(p.Keep)
	}
	return nil
}

// Truncate forgets all tokens but the first n, as kvcache.HeadCache.Truncate.
func (s *Sequence) Truncate(n int) {
	for _, h := range s.Heads {
		h.truncate(n)
	}
}

// Clone is for a fork.
func (s *Sequence) Clone() *Sequence {
	c := &Sequence{Layers: s.Layers, KVHeads: s.KVHeads}
	for _, h := range s.Heads {
		c.Heads = append(c.Heads, h.clone())
	}
	return c
}

// Weights is the mean over the query heads [lo, hi) of rows [first, first+n) of
// what ColumnStats gave, [Σ SeqLens, Heads] in host memory: an Observation of one
// KV head.
func Weights(stats tensor.View, first, n, lo, hi int) ([]float32, error) {
	if stats.Rank != 2 || first < 0 || n < 0 || lo < 0 || hi <= lo || int64(first)+int64(n) > stats.Shape[0] || int64(hi) > stats.Shape[1] || stats.Bytes() == nil {
		return nil, valueError("Weights: stats", &stats, "host memory with rows %d to %d and heads %d to %d", first, first+n, lo, hi)
	}
	out := make([]float32, n)
	for j := range out {
		for g := lo; g < hi; g++ {
			out[j] += stats.At(int64(first+j), int64(g))
		}
		out[j] /= float32(hi - lo)
	}
	return out, nil
}
