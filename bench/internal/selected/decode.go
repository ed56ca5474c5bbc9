package selected

import (
	"cmp"
	"errors"
	"math"
	"slices"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Selector is a selector of package attention by name.
type Selector struct {
	Name    string
	Prefill bool // chooses for blocks of queries; otherwise for each query of its own

	attend func(l *layer) (*choice, error)
}

// Keys that selectors see whatever they score, of this small model.
const (
	sinks  = 1
	recent = 4
)

// decodeSelectors are those that choose for single queries.
func decodeSelectors() []Selector {
	of := func(name string, choose func(l *layer) (*attention.Keys, error)) Selector {
		return Selector{Name: name, attend: func(l *layer) (*choice, error) {
			keys, err := choose(l)
			if err != nil {
				return nil, err
			}
			return l.singles(keys)
		}}
	}
	blocks := func(name string, choose func(l *layer, in *attention.Selection) (kernel.BlockSparse, error)) Selector {
		return of(name, func(l *layer) (*attention.Keys, error) {
			in := l.selection(l.queries, len(l.table))
			b, err := choose(l, in)
			if err != nil {
				return nil, err
			}
			return attention.BlockKeys(in, b)
		})
	}
	return []Selector{
		blocks("quest", (*layer).quest), of("sparq", (*layer).sparQ), {Name: "sparq-mean", attend: (*layer).sparQMean},
		of("loki", (*layer).loki), of("doublesparse", (*layer).doubleSparse), blocks("infllm", (*layer).infLLM),
		blocks("longheads", (*layer).longHeads), of("pqcache", (*layer).pqCache), of("reattention", (*layer).reAttention),
		of("squeezedattention", (*layer).squeezed), blocks("nsa", (*layer).nsa),
		{Name: attention.MagicPIG{}.Name(), attend: (*layer).magicPIG}, {Name: attention.RetrievalAttention{}.Name(), attend: (*layer).retrieval},
	}
}

// budget is how many keys a query head sees.
func (l *layer) budget() int { return max(int(l.Share*float64(l.tokens)), sinks+recent+1) }

// pageBudget is how many pages.
func (l *layer) pageBudget() int { return max(int(math.Ceil(l.Share*float64(len(l.table)))), 3) }

// singles is attention to lists of keys.
func (l *layer) singles(keys *attention.Keys) (*choice, error) {
	c := l.config(attention.Mask{})
	k, err := attention.NewKeyAttention(l.Backend, c, false)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	if err := k.Plan(l.selection(l.queries, 1), keys, l.pages); err != nil {
		return nil, err
	}
	args := l.args(l.queries)
	return &choice{args.Out, args.LSE, len(keys.Indices)}, k.Run(args)
}

func (l *layer) means() tensor.View {
	return tensor.New(tensor.F32, int64(len(l.table)), int64(l.kvHeads), int64(l.dim))
}

func (l *layer) quest(in *attention.Selection) (kernel.BlockSparse, error) {
	least, most := l.means(), l.means()
	q := attention.Quest{Pages: l.pageBudget(), Sinks: 1, Recent: 1}
	if err := q.Bounds(l.Backend, l.pages, least, most, l.table, l.rows); err != nil {
		return kernel.BlockSparse{}, err
	}
	return q.Select(l.Backend, in, least, most)
}

func (l *layer) sparQModule() attention.SparQ {
	return attention.SparQ{Rank: max(l.dim/4, 1), Keys: l.budget(), Sinks: sinks, Recent: recent}
}

// slots are the keys with the slots of a page side by side, as SparQ reads them.
func (l *layer) slots() tensor.View {
	out := tensor.New(tensor.F32, int64(len(l.table)), int64(l.kvHeads), int64(l.dim), int64(l.Page)).Swap(1, 3).Swap(2, 3)
	for p := range out.Shape[0] {
		for s := range out.Shape[1] {
			for g := range out.Shape[2] {
				for d := range out.Shape[3] {
					out.Set(l.pages.At(p, s, g, d), p, s, g, d)
				}
			}
		}
	}
	return out
}

func (l *layer) sparQ() (*attention.Keys, error) {
	return l.sparQModule().Select(l.Backend, l.selection(l.queries, l.tokens), l.slots())
}

// sparQMean adds the mean of the values, which attention with no query gives.
func (l *layer) sparQMean() (*choice, error) {
	q := l.sparQModule()
	keys, alpha, err := q.SelectWithMean(l.Backend, l.selection(l.queries, l.tokens), l.slots())
	if err != nil {
		return nil, err
	}
	mean, err := l.all(tensor.New(tensor.F32, int64(l.judged), int64(l.heads), int64(l.dim)), attention.Causal(), nil)
	if err != nil {
		return nil, err
	}
	c, err := l.singles(keys)
	if err != nil {
		return nil, err
	}
	return c, q.Correct(l.Backend, c.out, mean.Out, alpha)
}

// loki has the basis of the keys themselves.
func (l *layer) loki() (*attention.Keys, error) {
	r := int64(max(l.dim/4, 1))
	basis := tensor.New(tensor.F32, 1, r, int64(l.kvHeads), int64(l.dim))
	for g := range l.kvHeads {
		for c, row := range principal(l.key, g, int(r)) {
			for d, x := range row {
				basis.Set(float32(x), 0, int64(c), int64(g), int64(d))
			}
		}
	}
	m := attention.Loki{Keys: l.budget(), Sinks: sinks, Recent: recent}
	query := tensor.New(tensor.F32, int64(l.judged), int64(l.heads), r)
	reduced := tensor.New(tensor.F32, int64(l.tokens), int64(l.kvHeads), r)
	if err := errors.Join(m.Project(l.Backend, l.queries, basis, query), m.Project(l.Backend, l.key, basis, reduced)); err != nil {
		return nil, err
	}
	return m.Select(l.Backend, l.selection(query, l.tokens), l.paged(reduced))
}

// principal are the first r principal directions of the keys of a head, by orthogonal
// iteration.
func principal(key tensor.View, head, r int) [][]float64 {
	dim := int(key.Shape[2])
	second := make([][]float64, dim)
	for i := range second {
		second[i] = make([]float64, dim)
	}
	for t := range key.Shape[0] {
		for i := range second {
			for j := range second[i] {
				second[i][j] += float64(key.At(t, int64(head), int64(i))) * float64(key.At(t, int64(head), int64(j)))
			}
		}
	}
	dot := func(a, b []float64) (sum float64) {
		for i, x := range a {
			sum += x * b[i]
		}
		return sum
	}
	out := make([][]float64, r)
	for c := range out {
		out[c] = make([]float64, dim)
		out[c][c] = 1
	}
	for range 30 {
		for c, row := range out {
			next := make([]float64, dim)
			for i := range next {
				next[i] = dot(second[i], row)
			}
			for _, b := range out[:c] {
				along := dot(next, b)
				for i := range next {
					next[i] -= along * b[i]
				}
			}
			if norm := math.Sqrt(dot(next, next)); norm > 0 {
				for i := range next {
					next[i] /= norm
				}
				out[c] = next
			}
		}
	}
	return out
}

// doubleSparse has the channels of the largest products of mean absolute values.
func (l *layer) doubleSparse() (*attention.Keys, error) {
	m := attention.DoubleSparse{Keys: l.budget(), Sinks: sinks, Recent: recent}
	r := max(l.dim/8, 1)
	group := int64(l.heads / l.kvHeads)
	for g := range int64(l.kvHeads) {
		weight, order := make([]float64, l.dim), make([]int32, l.dim)
		for d := range int64(l.dim) {
			q, k := 0.0, 0.0
			for t := range int64(l.tokens) {
				k += math.Abs(float64(l.key.At(t, g, d)))
				for h := g * group; h < (g+1)*group; h++ {
					q += math.Abs(float64(l.query.At(t, h, d)))
				}
			}
			weight[d], order[d] = q*k, int32(d)
		}
		slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(weight[b], weight[a]) })
		list := slices.Clone(order[:r])
		slices.Sort(list)
		m.Channels = append(m.Channels, list)
	}
	labels := tensor.New(tensor.F32, int64(len(l.table)), int64(l.Page), int64(l.kvHeads), int64(r))
	if err := m.Label(l.pages, labels, l.table, l.rows); err != nil {
		return nil, err
	}
	return m.Select(l.Backend, l.selection(l.queries, l.tokens), labels)
}

// infLLM chooses by keys that are not rotated and queries turned to the end of the
// local window, as the paper does, so that all blocks are at one distance. Its
// representatives are the keys that got most attention.
func (l *layer) infLLM(in *attention.Selection) (none kernel.BlockSparse, err error) {
	local := l.pageBudget() / 2 // as the paper has it, more than one page
	m := attention.InfLLM{Blocks: l.pageBudget() - 1 - local, Init: 1, Local: local, Representatives: 4}
	weights, err := l.weights(attention.Absolute{})
	if err != nil {
		return none, err
	}
	means := l.means()
	if err := m.Represent(l.plainPages, weights, means, l.table, l.tokens); err != nil {
		return none, err
	}
	in.Query = clone(l.plain)
	if err := l.turn(in.Query, local*l.Page); err != nil {
		return none, err
	}
	return m.Select(l.Backend, in, means)
}

func (l *layer) longHeads(in *attention.Selection) (kernel.BlockSparse, error) {
	m, means := attention.LongHeads{Chunks: l.pageBudget()}, l.means()
	if err := m.Represent(l.Backend, l.query, l.pages, l.valuePages, means, l.table, l.rows); err != nil {
		return kernel.BlockSparse{}, err
	}
	return m.Select(l.Backend, in, means)
}

func (l *layer) pqCache() (*attention.Keys, error) {
	m := attention.PQCache{Keys: l.budget(), Sinks: sinks, Recent: recent, Parts: 2 - l.dim%2, Codes: 32}
	for m.Codes > l.tokens {
		m.Codes /= 2
	}
	centroids, err := m.Train(l.Backend, l.pages, l.table, l.rows, 3)
	if err != nil {
		return nil, err
	}
	codes := tensor.New(tensor.U8, int64(len(l.table)), int64(l.Page), int64(l.kvHeads), int64(m.Parts))
	if err := m.Encode(l.Backend, l.pages, centroids, codes, l.table, l.rows); err != nil {
		return nil, err
	}
	return m.Select(l.Backend, l.selection(l.queries, l.tokens), centroids, codes)
}

// reAttention searches by rows that are not rotated. A half of its keys are the last
// ones; all heads see what any found.
func (l *layer) reAttention() (*attention.Keys, error) {
	const span = 8
	m := attention.ReAttention{Span: span, Global: sinks, Local: max(l.budget()/2, 1)}
	if m.Top = max((l.budget()-m.Local)/(span*l.heads), 1); l.Share == 1 {
		m.Local = l.tokens
	}
	return m.Select(l.Backend, l.selection(l.plain, l.tokens), l.plainPages)
}

// squeezed has clusters of 4 keys of the prompt in the mean, and the threshold at which
// KV heads read about as many keys as a query head of the others.
func (l *layer) squeezed() (*attention.Keys, error) {
	var m attention.SqueezedAttention
	in, fixed := l.selection(l.queries, l.tokens), l.tokens-l.judged
	if l.Share == 1 {
		return attention.BlockKeys(in, l.everything())
	}
	if fixed < 1 {
		return nil, errors.New("no key before the queries, want some to make clusters of")
	}
	prefix, err := m.Cluster(l.Backend, l.pages, l.table, fixed, max(fixed/4, 1), 3)
	if err != nil {
		return nil, err
	}
	lo, hi := math.Log(1e-9), math.Log(0.5)
	for range 10 {
		m.Threshold = math.Exp((lo + hi) / 2)
		keys, err := m.Select(l.Backend, in, prefix)
		if err != nil {
			return nil, err
		}
		if len(keys.Indices) > (l.budget()+l.judged/2)*l.kvHeads*l.judged { // it sees all judged ones
			lo = (lo + hi) / 2
		} else {
			hi = (lo + hi) / 2
		}
	}
	m.Threshold = math.Exp(hi)
	return m.Select(l.Backend, in, prefix)
}

// everything lists all pages.
func (l *layer) everything() kernel.BlockSparse {
	out := kernel.BlockSparse{QueryBlock: 1, KeyBlock: int32(l.Page), RowStart: []int32{0}, Indptr: []int32{0}}
	for t := l.tokens - l.judged; t < l.tokens; t++ {
		out.Indices = append(out.Indices, l.table[:t/l.Page+1]...)
		out.Indptr = append(out.Indptr, int32(len(out.Indices)))
	}
	return out
}

// nsa is its selected blocks alone: the compressed keys want a model trained so.
func (l *layer) nsa(in *attention.Selection) (none kernel.BlockSparse, err error) {
	pages := l.pageBudget()
	m := attention.NSA{Blocks: pages, Sinks: 1, Recent: min(2, pages-1), Window: l.Page}
	c := l.config(attention.Mask{})
	a, err := m.New(l.Backend, c)
	if err != nil {
		return none, err
	}
	defer a.Close()
	meanKey, meanValue := l.means(), l.means()
	if err := m.Compress(l.pages, l.valuePages, meanKey, meanValue, l.table[:l.tokens/l.Page]); err != nil {
		return none, err
	}
	var gates [3]tensor.View
	for i := range gates {
		gates[i] = tensor.New(tensor.F32, int64(l.judged), int64(l.heads))
	}
	args := l.args(l.queries)
	args.LSE = tensor.View{}
	err = a.Run(l.Backend, in, args, meanKey, meanValue, gates)
	return a.Selected, err
}
