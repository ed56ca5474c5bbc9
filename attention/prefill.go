package attention

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// prefill is what the prefill selectors share: blocks of queries and of keys of
// one size, counted from the start of a sequence.
type prefill struct {
	b                 kernel.Backend
	in                *Selection
	key               tensor.View
	block             int
	heads, group, dim int
}

func newPrefill(name string, b kernel.Backend, in *Selection, key tensor.View, block int) (*prefill, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	q := &in.Query
	switch {
	case block < in.PageSize || block%in.PageSize != 0 || block > kernel.MaxScores:
		return nil, fmt.Errorf("attention: %s: blocks of %d keys, want a multiple of the %d of a page, at most %d", name, block, in.PageSize, kernel.MaxScores)
	case key.Rank != 4 || key.Shape[1] != int64(in.PageSize) || key.Shape[2] != int64(in.KVHeads) || key.Shape[3] != q.Shape[2]:
		return nil, fmt.Errorf("attention: %s: Key is %v, want [pages, %d, %d, %d]", name, &key, in.PageSize, in.KVHeads, q.Shape[2])
	case in.QueryStart[0] != 0 || int64(in.QueryStart[len(in.SeqLens)]) != q.Shape[0]:
		return nil, fmt.Errorf("attention: %s: QueryStart goes from %d to %d, want 0 to the %d tokens of Query", name, in.QueryStart[0], in.QueryStart[len(in.SeqLens)], q.Shape[0])
	case !(in.Scale > 0 && in.Scale <= math.MaxFloat32):
		return nil, fmt.Errorf("attention: %s: Selection.Scale is %v, want positive and finite", name, in.Scale)
	case in.Pages.Indptr[0] < 0 || int(in.Pages.Indptr[len(in.SeqLens)]) > len(in.Pages.Indices):
		return nil, fmt.Errorf("attention: %s: Pages.Indptr ends at %d, want at most the %d of Indices", name, in.Pages.Indptr[len(in.SeqLens)], len(in.Pages.Indices))
	}
	for _, v := range []*tensor.View{q, &key} {
		if v.DType != tensor.F32 && v.DType != tensor.F16 && v.DType != tensor.BF16 {
			return nil, fmt.Errorf("attention: %s: %v, want f32, f16 or bf16", name, v)
		}
		if err := v.Check(); err != nil {
			return nil, fmt.Errorf("attention: %s: %w", name, err)
		}
	}
	for i, p := range in.Pages.Indices {
		if p < 0 || int64(p) >= key.Shape[0] || in.Pages.IsCoded(i) {
			return nil, fmt.Errorf("attention: %s: Pages.Indices[%d] is %d, want a plain page below %d", name, i, p, key.Shape[0])
		}
	}
	heads := int(q.Shape[1])
	return &prefill{b, in, key, block, heads, heads / in.KVHeads, int(q.Shape[2])}, nil
}

// queries is the number of query tokens of a sequence, and the index of the first.
func (p *prefill) queries(s int) (n, first int) {
	n = int(p.in.QueryStart[s+1] - p.in.QueryStart[s])
	return n, int(p.in.SeqLens[s]) - n
}

// queryBlocks are the blocks lo … hi−1 that hold the query tokens of a sequence.
func (p *prefill) queryBlocks(s int) (lo, hi int) {
	n, first := p.queries(s)
	if n == 0 {
		return 0, 0
	}
	return first / p.block, (first+n-1)/p.block + 1
}

// span are the query indices of a block that are there.
func (p *prefill) span(s, block int) (lo, hi int) {
	_, first := p.queries(s)
	return max(block*p.block, first), min((block+1)*p.block, int(p.in.SeqLens[s]))
}

// marker marks the key blocks that the queries of a block see, of those up to it.
type marker func(block int, see []bool)

// lists makes the rows of a BlockSparse of what the marker of each query head of a
// group marks, and the own block.
func (p *prefill) lists(group groupMarkers) (kernel.BlockSparse, error) {
	out := kernel.BlockSparse{QueryBlock: int32(p.block), KeyBlock: int32(p.block), PerHead: true, Indptr: []int32{0}}
	for s := range p.in.SeqLens {
		out.RowStart = append(out.RowStart, int32(len(out.Indptr)-1))
		lo, hi := p.queryBlocks(s)
		if lo == hi {
			continue
		}
		marks, err := p.markers(s, group)
		if err != nil {
			return kernel.BlockSparse{}, err
		}
		for g := range p.in.KVHeads {
			for block := lo; block < hi; block++ {
				see := make([]bool, block+1)
				for _, mark := range marks[g*p.group:][:p.group] {
					mark(block, see)
				}
				see[block] = true
				for i, seen := range see {
					if seen {
						out.Indices = append(out.Indices, int32(i))
					}
				}
				if len(out.Indices) > math.MaxInt32 {
					return kernel.BlockSparse{}, fmt.Errorf("attention: lists of %d blocks, want at most 2³¹−1", len(out.Indices))
				}
				out.Indptr = append(out.Indptr, int32(len(out.Indices)))
			}
		}
	}
	return out, nil
}

// groupMarkers prepares what the query heads of KV head g share, and returns what
// makes the marker of each, of several at once.
type groupMarkers func(s, g int) (headMarker, error)

type headMarker func(h int) (marker, error)

// alone are the markers of heads that share nothing.
func alone(head func(s, h int) (marker, error)) groupMarkers {
	return func(s, _ int) (headMarker, error) { return func(h int) (marker, error) { return head(s, h) }, nil }
}

// markers are those of the query heads of a sequence, made side by side.
func (p *prefill) markers(s int, group groupMarkers) ([]marker, error) {
	marks, errs := make([]marker, p.heads), make([]error, p.heads)
	shared, users := make([]func() (headMarker, error), p.in.KVHeads), make([]atomic.Int64, p.in.KVHeads)
	for g := range shared {
		shared[g] = sync.OnceValues(func() (headMarker, error) { return group(s, g) })
		users[g].Store(int64(p.group))
	}
	var next atomic.Int64
	var done sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), p.heads) {
		done.Go(func() {
			for h := int(next.Add(1) - 1); h < p.heads; h = int(next.Add(1) - 1) {
				g := h / p.group
				head, err := shared[g]()
				if err == nil {
					marks[h], err = head(h)
				}
				if users[g].Add(-1) == 0 {
					shared[g] = nil // and the memory with it
				}
				if errs[h] = err; err != nil {
					next.Store(int64(p.heads))
				}
			}
		})
	}
	done.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return marks, nil
}

// uniform attends with queries of zeros, so that each result is the mean of the
// rows of its sequence: [sequences, heads, dim].
func uniform(b kernel.Backend, rows tensor.View, size int, batch *kernel.Batch) (tensor.View, error) {
	n, heads, dim := int64(len(batch.SeqLens)), rows.Shape[rows.Rank-2], rows.Shape[rows.Rank-1]
	var views [2]tensor.View
	for i := range views {
		buf, err := b.Alloc(max(4*n*heads*dim, 4))
		if err != nil {
			return views[0], err
		}
		views[i] = tensor.Of(buf, tensor.F32, n, heads, dim)
	}
	a, err := b.Attention(kernel.Spec{Heads: int(heads), KVHeads: int(heads), HeadDim: int(dim), ValueDim: int(dim),
		DType: tensor.F32, KVDType: rows.DType, PageSize: size, Terms: 1, Scale: 1})
	if err != nil {
		return views[0], err
	}
	defer a.Close()
	batch.QueryStart, batch.Terms = make([]int32, n+1), []kernel.Term{{Region: kernel.Everywhere}}
	batch.ScoreScale = make([]float32, n)
	for i := range n {
		batch.QueryStart[i+1], batch.ScoreScale[i] = int32(i+1), 1
	}
	if err := a.Plan(batch); err != nil {
		return views[0], err
	}
	return views[1], a.Run(&kernel.Args{Query: views[0], Key: rows, Value: rows, Out: views[1]})
}

// keyMeans are the means of the listed blocks of a sequence, in their order.
func (p *prefill) keyMeans(of func(s int) (lo, hi int)) (means tensor.View, start []int32, err error) {
	var batch kernel.Batch
	batch.Pages.Indptr, start = []int32{0}, []int32{0}
	each := p.block / p.in.PageSize
	for s, keys := range p.in.SeqLens {
		pages := p.in.Pages.Indices[p.in.Pages.Indptr[s]:p.in.Pages.Indptr[s+1]]
		lo, hi := of(s)
		for c := lo; c < hi; c++ {
			batch.SeqLens = append(batch.SeqLens, min(int32(p.block), keys-int32(c*p.block)))
			batch.Pages.Indices = append(batch.Pages.Indices, pages[c*each:min((c+1)*each, len(pages))]...)
			batch.Pages.Indptr = append(batch.Pages.Indptr, int32(len(batch.Pages.Indices)))
		}
		start = append(start, int32(len(batch.SeqLens)))
	}
	means, err = uniform(p.b, p.key, p.in.PageSize, &batch)
	return means, start, err
}

// keyBlocks are all blocks of a sequence.
func (p *prefill) keyBlocks(s int) (lo, hi int) {
	return 0, (int(p.in.SeqLens[s]) + p.block - 1) / p.block
}

// queryMeans are the means of the blocks of queries.
func (p *prefill) queryMeans() (means tensor.View, start []int32, err error) {
	var batch kernel.Batch
	start = []int32{0}
	for s := range p.in.SeqLens {
		_, first := p.queries(s)
		lo, hi := p.queryBlocks(s)
		for c := lo; c < hi; c++ {
			from, to := p.span(s, c)
			batch.KeyStart = append(batch.KeyStart, p.in.QueryStart[s]+int32(from-first))
			batch.SeqLens = append(batch.SeqLens, int32(to-from))
		}
		start = append(start, int32(len(batch.SeqLens)))
	}
	means, err = uniform(p.b, p.in.Query, 0, &batch)
	return means, start, err
}

// pooled are the scores of the means of blocks of queries with those of keys.
type pooled struct {
	scores tensor.View // [query blocks, Heads, most key blocks]
	start  []int32     // of a sequence's query blocks
}

func (p *prefill) pool() (out pooled, err error) {
	k, ks, err := p.keyMeans(p.keyBlocks)
	if err != nil {
		return out, err
	}
	q, qs, err := p.queryMeans()
	if err != nil {
		return out, err
	}
	m, all := int64(0), make([]int32, k.Shape[0])
	for s := range p.in.SeqLens {
		m = max(m, int64(ks[s+1]-ks[s]))
	}
	for i := range all {
		all[i] = int32(i)
	}
	out.start = qs
	out.scores, err = p.scores(q, k, qs, kernel.BlockTable{Indptr: ks, Indices: all}, m)
	return out, err
}

// scores are Scale·q·k of the rows of a table: a bound that is both the least and
// the largest is a dot product.
func (p *prefill) scores(q, k tensor.View, start []int32, table kernel.BlockTable, m int64) (tensor.View, error) {
	n := q.Shape[0] * q.Shape[1] * m
	buf, err := p.b.Alloc(max(4*n, 4))
	if err != nil {
		return tensor.View{}, err
	}
	out := tensor.Of(buf, tensor.F32, q.Shape[0], q.Shape[1], m)
	if n > 0 && out.Bytes() == nil {
		return out, fmt.Errorf("scores are on %s, want host memory", buf.Device())
	}
	return out, p.b.PageScores(&kernel.PageScoresArgs{Query: q, Min: k, Max: k, QueryStart: start, Pages: table, Scale: p.in.Scale, Policy: p.in.Policy, Out: out})
}

// row is the softmax over the blocks up to a query block, itself included.
func (x *pooled) row(p *prefill, s, h, block int) []float32 {
	lo, _ := p.queryBlocks(s)
	m := int(x.scores.Shape[2])
	at := ((int(x.start[s])+block-lo)*p.heads + h) * m
	out := slices.Clone(x.scores.F32s()[at : at+block+1])
	softmax(out, 1)
	return out
}

// softmax makes scores weights of sum 1. −Inf gives 0; NaN counts as −Inf.
func softmax(x []float32, scale float32) {
	most := float32(math.Inf(-1))
	for _, v := range x {
		if v > most {
			most = v
		}
	}
	sum := 0.0
	for i, v := range x {
		e := exp2((float64(v) - float64(most)) * float64(scale) * math.Log2E)
		x[i] = float32(e)
		sum += e
	}
	if sum == 0 {
		return
	}
	inverse := 1 / sum
	for i, e := range x {
		x[i] = float32(float64(e) * inverse)
	}
}

// exp2 is kernel.Exp2 without its roundings: weights that only choose need not be
// those of a kernel, but the same on each machine. 0 for NaN.
func exp2(x float64) float64 {
	if !(x >= -125) {
		return 0
	}
	const shift = 3 << 51 // adding it rounds to an integer
	z := x + shift
	r := x - (z - shift)
	q := float64(kernel.Exp2Coef[0])
	for _, c := range kernel.Exp2Coef[1:] {
		q = float64(q*r) + float64(c) // not fused
	}
	return q * math.Float64frombits((math.Float64bits(z)+1023)<<52)
}

// sampled are the weights of n queries of a head, the last of them the last of the
// sequence and each step after the one before: [n][keys], 0 of later keys.
func (p *prefill) sampled(s, h, n, step int) ([]float32, error) {
	keys, g := p.in.SeqLens[s], int64(h/p.group)
	buf, err := p.b.Alloc(4 * int64(n) * int64(keys))
	if err != nil {
		return nil, err
	}
	end := int64(p.in.QueryStart[s+1])
	q := p.in.Query.Slice(0, end-1-int64((n-1)*step), end).Slice(1, int64(h), int64(h)+1)
	q.Shape[0], q.Stride[0] = int64(n), q.Stride[0]*int64(step)
	a := kernel.RowScoresArgs{Query: q, Key: p.key.Slice(2, g, g+1), Scale: p.in.Scale, Policy: p.in.Policy, Out: tensor.Of(buf, tensor.F32, int64(n), 1, int64(keys))}
	a.QueryStart, a.SeqLens = []int32{0, int32(n)}, []int32{keys}
	a.Pages = kernel.BlockTable{Indptr: []int32{0, p.in.Pages.Indptr[s+1] - p.in.Pages.Indptr[s]}, Indices: p.in.Pages.Indices[p.in.Pages.Indptr[s]:p.in.Pages.Indptr[s+1]]}
	if err := p.b.RowScores(&a); err != nil {
		return nil, err
	}
	x := a.Out.F32s()
	for r := range n {
		row := x[r*int(keys):][:keys]
		seen := int(keys) - (n-1-r)*step
		clear(row[seen:])
		softmax(row[:seen], 1)
	}
	return x, nil
}

// columns are the weights that the keys of a sequence have, added over queries.
func columns(weights []float32, keys int) []float32 {
	out := make([]float32, keys)
	for ; len(weights) > 0; weights = weights[keys:] {
		for j, w := range weights[:keys] {
			out[j] += w
		}
	}
	return out
}

// diagonals are the weights at each distance from the query, of the last queries.
func diagonals(weights []float32, keys int) []float32 {
	out := make([]float32, keys)
	n := len(weights) / max(keys, 1)
	for r := range n {
		row := weights[r*keys:][:keys-n+r+1]
		for j, w := range row {
			out[len(row)-1-j] += w
		}
	}
	return out
}

// largest lists indices by weight, the largest first, of equal ones the lower.
// Weights are not negative.
func largest(x []float32) []int {
	keys := make([]uint64, len(x))
	for i, v := range x {
		keys[i] = uint64(^math.Float32bits(v+0))<<32 | uint64(i)
	}
	slices.Sort(keys)
	out := make([]int, len(x))
	for i, k := range keys {
		out[i] = int(uint32(k))
	}
	return out
}

// smallest lists the fewest indices whose weights make a share of the sum. A share
// of 1 is all.
func smallest(x []float32, share float64) []int {
	order := largest(x)
	if share >= 1 {
		return order
	}
	total, sum := 0.0, 0.0
	for _, v := range x {
		total += float64(v)
	}
	for n, i := range order {
		if sum >= share*total && n > 0 {
			return order[:n]
		}
		sum += float64(x[i])
	}
	return order
}

// lines marks the blocks that hold a key of the vertical lines, or a pair of the
// slash lines with a query of the block. Slash o has the pairs i − j = o.
func (p *prefill) lines(s int, verticals, slashes []int) marker {
	_, last := p.queryBlocks(s)
	columns, offsets := make([]bool, last), make([]bool, last+1)
	for _, j := range verticals {
		columns[j/p.block] = true
	}
	whole := make([][]int, last+1) // slashes by o/block
	for _, o := range slashes {
		offsets[o/p.block] = true
		whole[o/p.block] = append(whole[o/p.block], o)
	}
	return func(block int, see []bool) {
		for c := range see {
			see[c] = see[c] || columns[c]
		}
		lo, hi := p.span(s, block)
		for d := 0; d <= block; d++ {
			if !offsets[d] {
				continue
			}
			for _, o := range whole[d] {
				if c := block - d; see[c] && see[max(c-1, 0)] {
					break // such slashes cross no other block
				}
				for c := max(lo-o, 0) / p.block; c <= (hi-1-o)/p.block && hi-1 >= o; c++ {
					see[c] = true
				}
			}
		}
	}
}

func shareOf(name string, x float64) error {
	if !(x > 0 && x <= 1) {
		return fmt.Errorf("attention: %s: a share of %v, want above 0, at most 1", name, x)
	}
	return nil
}

func prefillSelectors() []SelectorInfo {
	return []SelectorInfo{MoBA{}.Info(), MInference{}.Info(), FlexPrefill{}.Info(), XAttention{}.Info(), SpargeAttn{}.Info(), SampleAttention{}.Info()}
}

// newPrefillSelectors make prefill selectors with their papers' settings, or near them.
var newPrefillSelectors = map[string]func(ModelSizes) any{
	"moba": func(ModelSizes) any { return MoBA{Chunk: 512, Chunks: 3} },
	"minference": func(ModelSizes) any {
		return MInference{Block: 64, Last: 64, Heads: []MInferenceHead{{VerticalSlash, 1000, 1024}}}
	},
	"flexprefill":     func(ModelSizes) any { return FlexPrefill{Block: 128, Share: 0.9, Divergence: 0.1, MinBlocks: 1} },
	"xattention":      func(ModelSizes) any { return XAttention{Block: 128, Stride: 16, Threshold: 0.9} },
	"spargeattn":      func(ModelSizes) any { return SpargeAttn{Block: 64, Alike: 0.1, Share: 0.9} },
	"sampleattention": func(ModelSizes) any { return SampleAttention{Block: 64, Rows: 64, Share: 0.95, Window: 1024} },
}
