package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// problem is a case with its tensors.
type problem struct {
	Case
	query, out tensor.View
	keys       []tensor.View // one a layer
	values     []tensor.View
	cache      *kvcache.Cache // paged
	id         kvcache.ID
	want       []row
}

// newProblem lays a case out in memory lent by a.
func newProblem(c Case, layers int, a *arena, query []byte, b kernel.Backend) (*problem, error) {
	p := &problem{Case: c}
	shape := []int64{int64(c.Queries()), int64(c.Heads), int64(c.HeadDim)}
	size := c.queryBytes()
	p.query = tensor.Of(tensor.HostBytes(query[:size:size]), tensor.F32, shape...)
	p.out = tensor.Of(tensor.HostBytes(query[size:2*size:2*size]), tensor.F32, shape...)
	if err := a.reset(c.KV.DType, int64(layers)*(c.kvBytes()+c.tail())); err != nil {
		return nil, err
	}
	if c.PageSize > 0 {
		return p, p.paged(layers, lender{b, a})
	}
	for range layers {
		for _, list := range []*[]tensor.View{&p.keys, &p.values} {
			buffer, err := a.take(c.kvBytes() / 2)
			if err != nil {
				return nil, err
			}
			*list = append(*list, tensor.Of(buffer, c.KV.DType, int64(c.Length), int64(c.KVHeads), int64(c.HeadDim)))
		}
	}
	return p, nil
}

// paged makes a cache and a sequence whose pages lie in random order. Nothing
// is stored: the memory is random already.
func (p *problem) paged(layers int, b kernel.Backend) error {
	pages := (p.Length + p.PageSize - 1) / p.PageSize
	var err error
	p.cache, err = kvcache.New(b, kvcache.Config{
		Layers: layers, Pages: pages, PageSize: p.PageSize, KVHeads: p.KVHeads, HeadDim: p.HeadDim, ValueDim: p.HeadDim, DType: p.KV.DType,
	})
	if err != nil {
		return err
	}
	ids := make([]kvcache.ID, pages)
	counts := make([]int, pages)
	for i := range ids {
		ids[i], counts[i] = p.cache.NewSequence(), 1
	}
	if _, err := p.cache.Extend(ids, counts, nil); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(3, 4))
	for _, i := range random.Perm(pages) { // a page that is freed last is taken first
		if err := p.cache.Free(ids[i]); err != nil {
			return err
		}
	}
	p.id = p.cache.NewSequence()
	if _, err := p.cache.Extend([]kvcache.ID{p.id}, []int{p.Length}, nil); err != nil {
		return err
	}
	for layer := range layers {
		p.keys, p.values = append(p.keys, p.cache.KeyView(layer)), append(p.values, p.cache.ValueView(layer))
	}
	return nil
}

// attention is the planned kernel of b for the problem.
func (p *problem) attention(b kernel.Backend, policy kernel.Policy) (*attention.Attention, error) {
	mask := attention.Bidirectional()
	if p.Kind == Decode || p.Causal {
		mask = attention.Causal()
	}
	a, err := attention.New(b, attention.Config{
		Heads: p.Heads, KVHeads: p.KVHeads, HeadDim: p.HeadDim, DType: tensor.F32, KVDType: p.KV.DType,
		PageSize: p.PageSize, Mask: mask, Policy: policy,
	})
	if err != nil {
		return nil, err
	}
	step := attention.Step{QueryLens: []int{p.Queries()}}
	if p.cache != nil {
		step.KV = p.cache.Sequences(p.id)
	} else {
		step.KeyLens = []int{p.Length}
	}
	if err := a.Plan(step); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// args are the tensors of a layer.
func (p *problem) args(layer int) *kernel.Args {
	return &kernel.Args{Query: p.query, Key: p.keys[layer], Value: p.values[layer], Out: p.out}
}

// row is the output of a head for a query, computed in float64.
type row struct {
	query, head int
	out         []float64
}

// reference computes rows of layer 0 in float64, from the formula: the first,
// the middle and the last query, of the first and the last head.
func (p *problem) reference() error {
	slot, err := p.slots()
	if err != nil {
		return err
	}
	n := p.Queries()
	for i, query := range []int{n - 1, n / 2, 0} {
		if i > 0 && query == p.want[len(p.want)-1].query {
			continue // there are fewer queries than that
		}
		keys := p.Length
		if p.Causal && p.Kind == Prefill {
			keys = query + 1
		}
		for _, head := range []int{0, p.Heads - 1} {
			p.want = append(p.want, row{query, head, p.attend(query, head, keys, slot)})
			if p.Heads == 1 {
				break
			}
		}
	}
	return nil
}

// slots says which row of the keys a key is.
func (p *problem) slots() (func(j int) int64, error) {
	if p.cache == nil {
		return func(j int) int64 { return int64(j) }, nil
	}
	var b kernel.Batch
	if err := p.cache.Sequences(p.id).LowerKV(&b); err != nil {
		return nil, err
	}
	return func(j int) int64 {
		return int64(b.Pages.Indices[j/p.PageSize])*int64(p.PageSize) + int64(j%p.PageSize)
	}, nil
}

// attend is softmax(q·K/√D)·V over the first keys, with the online softmax in
// float64: nothing in it depends on a tile.
func (p *problem) attend(query, head, keys int, slot func(int) int64) []float64 {
	dim, group := p.HeadDim, head/(p.Heads/p.KVHeads)
	q, k, v := make([]float32, dim), make([]float32, dim), make([]float32, dim)
	widen(q, &p.query, int64(query*p.Heads+head)*int64(dim))
	out, most, sum := make([]float64, dim), math.Inf(-1), 0.0
	scale := 1 / math.Sqrt(float64(dim))
	for j := range keys {
		at := (slot(j)*int64(p.KVHeads) + int64(group)) * int64(dim)
		widen(k, &p.keys[0], at)
		widen(v, &p.values[0], at)
		score := 0.0
		for d := range q {
			score += float64(q[d]) * float64(k[d])
		}
		score *= scale
		if score > most {
			shrink := math.Exp(most - score)
			sum *= shrink
			for d := range out {
				out[d] *= shrink
			}
			most = score
		}
		w := math.Exp(score - most)
		sum += w
		for d := range out {
			out[d] += w * float64(v[d])
		}
	}
	for d := range out {
		out[d] /= sum
	}
	return out
}

// widen reads a row of a row-major view.
func widen(dst []float32, v *tensor.View, at int64) {
	if v.DType == tensor.F32 {
		copy(dst, v.F32s()[at:])
		return
	}
	v.DType.ToF32s(dst, v.Bits()[at:at+int64(len(dst))])
}

// check compares the rows of out with the reference and returns the relative
// L2 error. It is an error if that is more than the policy can explain.
func (p *problem) check(policy kernel.Policy) (float64, error) {
	got, wrong, size := make([]float32, p.HeadDim), 0.0, 0.0
	for _, r := range p.want {
		widen(got, &p.out, int64(r.query*p.Heads+r.head)*int64(p.HeadDim))
		for d, want := range r.out {
			diff := float64(got[d]) - want
			wrong, size = wrong+diff*diff, size+want*want
		}
	}
	relative, limit := math.Sqrt(wrong/size), p.tolerance(policy)
	if !(relative <= limit) { // NaN too
		return relative, fmt.Errorf("the result is wrong: relative L2 error %.2g, want at most %.2g", relative, limit)
	}
	return relative, nil
}

// tolerance is far above what rounding does, and far below what one key in the
// wrong place does. Fast may round products to the type of the keys.
func (p *problem) tolerance(policy kernel.Policy) float64 {
	if policy == kernel.Fast && p.KV.DType != tensor.F32 {
		return 1e-2
	}
	return 2e-5
}

// clear spoils the output, so that what a kernel leaves out is seen.
func (p *problem) clear() {
	out := p.out.F32s()
	for i := range out {
		out[i] = float32(math.NaN())
	}
}
