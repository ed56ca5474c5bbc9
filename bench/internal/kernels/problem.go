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
	query, out   tensor.View
	keys, values []tensor.View  // contiguous, one a layer
	cache        *kvcache.Cache // paged
	layers       int
	id           kvcache.ID
	grad         gradients // backward
	want         []row

	device Device   // nil: all is in the host's memory
	host   *problem // with device: the same in the host's
}

// gradients are the tensors that backward has besides.
type gradients struct{ lse, out, query, key, value tensor.View }

func newGradients(c Case, b kernel.Backend) (g gradients, err error) {
	n, h, kv, d := int64(c.Length), int64(c.Heads), int64(c.KVHeads), int64(c.HeadDim)
	for _, t := range []struct {
		view  *tensor.View
		shape []int64
	}{{&g.lse, []int64{n, h}}, {&g.out, []int64{n, h, d}}, {&g.query, []int64{n, h, d}}, {&g.key, []int64{n, kv, d}}, {&g.value, []int64{n, kv, d}}} {
		bytes := int64(4)
		for _, x := range t.shape {
			bytes *= x
		}
		buffer, err := b.Alloc(bytes)
		if err != nil {
			return g, err
		}
		*t.view = tensor.Of(buffer, tensor.F32, t.shape...)
	}
	fill(g.out.Bytes(), tensor.F32)
	return g, nil
}

// newProblem lays a case out in memory lent by a.
func newProblem(c Case, layers int, a *arena, query []byte, b kernel.Backend) (*problem, error) {
	p := &problem{Case: c, layers: layers}
	shape := []int64{int64(c.Queries()), int64(c.Heads), int64(c.HeadDim)}
	size := c.queryBytes()
	p.query = tensor.Of(tensor.HostBytes(query[:size:size]), c.queryType(), shape...)
	p.out = tensor.Of(tensor.HostBytes(query[size:2*size:2*size]), c.queryType(), shape...)
	fill(query[:size], c.queryType())
	dtype := c.KV.DType
	if c.KV.Codec != kernel.NoCodec {
		dtype = tensor.U8
	}
	if err := a.reset(dtype, c.storage(layers)); err != nil {
		return nil, err
	}
	if c.Kind == Backward {
		var err error
		if p.grad, err = newGradients(c, b); err != nil {
			return nil, err
		}
	}
	if c.PageSize > 0 {
		return p, p.paged(lender{b, a})
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
func (p *problem) paged(b kernel.Backend) error {
	config := p.Case.cache(p.layers)
	var err error
	if p.cache, err = kvcache.New(b, config); err != nil {
		return err
	}
	if p.KV.Codec != kernel.NoCodec {
		if err := p.fillCoded(); err != nil {
			return err
		}
	}
	return p.place()
}

// place gives the sequence pages in random order.
func (p *problem) place() error {
	pages := (p.Length + p.PageSize - 1) / p.PageSize
	ids := make([]kvcache.ID, pages)
	for i := range ids {
		ids[i] = p.cache.NewSequence()
		if err := p.grow(ids[i], p.PageSize); err != nil {
			return err
		}
	}
	random := rand.New(rand.NewPCG(3, 4))
	for _, i := range random.Perm(pages) { // a page that is freed last is taken first
		if err := p.cache.Free(ids[i]); err != nil {
			return err
		}
	}
	p.id = p.cache.NewSequence()
	return p.grow(p.id, p.Length)
}

// grow extends a sequence. With a Codec it does so in steps, between which full
// pages are coded.
func (p *problem) grow(id kvcache.ID, n int) error {
	step := n
	if p.KV.Codec != kernel.NoCodec {
		step = plainPages / 2 * p.PageSize
	}
	for ; n > 0; n -= step {
		if _, err := p.cache.Extend([]kvcache.ID{id}, []int{min(step, n)}, nil); err != nil {
			return err
		}
	}
	_, err := p.cache.Extend([]kvcache.ID{id}, []int{0}, nil)
	return err
}

// fillCoded gives codes the scales of values from −2 to 2, and plain pages
// elements: the memory is full of bytes.
func (p *problem) fillCoded() error {
	random := rand.New(rand.NewPCG(5, 6))
	var scales, zeros [251]uint16
	for i := range scales {
		scales[i] = tensor.F32ToF16((0.8 + 0.4*random.Float32()) * 4 / float32(p.KV.Codec.MaxCode()))
		zeros[i] = tensor.F32ToF16(-2 + 0.1*random.Float32())
	}
	for layer := range p.layers {
		var a kernel.Args
		if err := p.cache.Bind(layer, &a); err != nil {
			return err
		}
		for _, v := range []*tensor.View{&a.Key, &a.Value} {
			fill(v.Bytes(), v.DType)
		}
		for _, c := range []*kernel.CodedPages{&a.CodedKey, &a.CodedValue} {
			repeat(c.Scale.Bits(), scales[:])
			repeat(c.Zero.Bits(), zeros[:])
		}
	}
	return nil
}

func repeat(dst, block []uint16) {
	for len(dst) > 0 {
		dst = dst[copy(dst, block):]
	}
}

// attention is the planned kernel of b for the problem.
func (p *problem) attention(b kernel.Backend, policy kernel.Policy) (*attention.Attention, error) {
	mask := attention.Bidirectional()
	if p.Kind == Decode || p.Causal {
		mask = attention.Causal()
	}
	a, err := attention.New(b, attention.Config{
		Heads: p.Heads, KVHeads: p.KVHeads, HeadDim: p.HeadDim, DType: p.queryType(), KVDType: p.KV.DType,
		PageSize: p.PageSize, Coding: p.coding(), Mask: mask, Policy: policy, Backward: p.Kind == Backward,
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

// bind sets the keys and values of args to those of a layer.
func (p *problem) bind(layer int, args *kernel.Args) error {
	if p.cache != nil {
		return p.cache.Bind(layer, args)
	}
	args.Key, args.Value = p.keys[layer], p.values[layer]
	return nil
}

// runner returns what computes the case once, a layer after another from the
// first.
func (p *problem) runner(a *attention.Attention) func() error {
	if p.Kind == Backward {
		args := &kernel.BackwardArgs{
			Query: p.query, Key: p.keys[0], Value: p.values[0], Out: p.out, LSE: p.grad.lse,
			DOut: p.grad.out, DQuery: p.grad.query, DKey: p.grad.key, DValue: p.grad.value,
		}
		return func() error { return a.Backward(args) }
	}
	return p.forward(a)
}

// forward returns what runs attention on the next layer.
func (p *problem) forward(a *attention.Attention) func() error {
	args, layer := &kernel.Args{Query: p.query, Out: p.out, LSE: p.grad.lse}, 0
	return func() error {
		if err := p.bind(layer, args); err != nil {
			return err
		}
		layer = (layer + 1) % p.layers
		return a.Run(args)
	}
}

// row is the output of a head for a query, computed in float64.
type row struct {
	query, head int
	out         []float64
}

// reference computes rows of layer 0 in float64, from the formula: the first,
// the middle and the last query, of the first and the last head.
func (p *problem) reference() error {
	read, err := p.reader()
	if err != nil {
		return err
	}
	n := p.Queries()
	for i, query := range []int{n - 1, n / 2, 0} {
		if i > 0 && query == p.want[len(p.want)-1].query {
			continue // there are fewer queries than that
		}
		keys := p.Length
		if p.Causal && p.Kind != Decode {
			keys = query + 1
		}
		for _, head := range []int{0, p.Heads - 1} {
			p.want = append(p.want, row{query, head, p.attend(query, head, keys, read)})
			if p.Heads == 1 {
				break
			}
		}
	}
	return nil
}

// reader returns what reads the key and the value of index j for a KV head, of
// layer 0.
func (p *problem) reader() (func(k, v []float32, j, head int), error) {
	if p.cache == nil {
		return func(k, v []float32, j, head int) {
			widen(k, &p.keys[0], at(&p.keys[0], j, head))
			widen(v, &p.values[0], at(&p.values[0], j, head))
		}, nil
	}
	var b kernel.Batch
	var a kernel.Args
	if err := p.cache.Sequences(p.id).LowerKV(&b); err != nil {
		return nil, err
	}
	if err := p.cache.Bind(0, &a); err != nil {
		return nil, err
	}
	coding := p.coding()
	return func(k, v []float32, j, head int) {
		page, token := int(b.Pages.Indices[j/p.PageSize]), j%p.PageSize
		if !b.Pages.IsCoded(j / p.PageSize) {
			widen(k, &a.Key, at(&a.Key, page, token, head))
			widen(v, &a.Value, at(&a.Value, page, token, head))
			return
		}
		a.CodedKey.Row(&coding.Key, k, int64(page), int64(token), int64(head))
		a.CodedValue.Row(&coding.Value, v, int64(page), int64(token), int64(head))
	}, nil
}

// at is the first element of a row of v.
func at(v *tensor.View, index ...int) int64 {
	element := v.Offset
	for d, i := range index {
		element += int64(i) * v.Stride[d]
	}
	return element
}

// attend is softmax(q·K/√D)·V over the first keys, with the online softmax in
// float64: nothing in it depends on a tile.
func (p *problem) attend(query, head, keys int, read func(k, v []float32, j, head int)) []float64 {
	dim, group := p.HeadDim, head/(p.Heads/p.KVHeads)
	q, k, v := make([]float32, dim), make([]float32, dim), make([]float32, dim)
	widen(q, &p.query, at(&p.query, query, head))
	out, most, sum := make([]float64, dim), math.Inf(-1), 0.0
	scale := 1 / math.Sqrt(float64(dim))
	for j := range keys {
		read(k, v, j, group)
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
	if p.Kind == Backward {
		return p.queryGradient(query, head, keys, read, q, out, most, sum)
	}
	return out
}

// queryGradient is Σ w·(g·v − g·out)·k/√D over the keys, with the weights w of
// a query and the gradient g of its output.
func (p *problem) queryGradient(query, head, keys int, read func(k, v []float32, j, head int), q []float32, out []float64, most, sum float64) []float64 {
	dim := p.HeadDim
	g, k, v, grad := make([]float32, dim), make([]float32, dim), make([]float32, dim), make([]float64, dim)
	widen(g, &p.grad.out, at(&p.grad.out, query, head))
	scale := 1 / math.Sqrt(float64(dim))
	for j := range keys {
		read(k, v, j, head/(p.Heads/p.KVHeads))
		score, slope := 0.0, 0.0
		for d := range q {
			score += float64(q[d]) * float64(k[d])
			slope += float64(g[d]) * (float64(v[d]) - out[d])
		}
		w := math.Exp(score*scale-most) / sum * slope * scale
		for d := range grad {
			grad[d] += w * float64(k[d])
		}
	}
	return grad
}

// widen reads elements of a view that lie together, from one on.
func widen(dst []float32, v *tensor.View, first int64) {
	if v.DType == tensor.F32 {
		copy(dst, v.F32s()[first:])
		return
	}
	if end := first + int64(len(dst)); v.DType.Float8() {
		v.DType.Widen8(dst, v.Bytes()[first:end])
	} else {
		v.DType.ToF32s(dst, v.Bits()[first:end])
	}
}

// check compares the rows of out with the reference and returns the relative
// L2 error. It is an error if that is more than the policy can explain.
func (p *problem) check(policy kernel.Policy) (float64, error) {
	if p.host != nil {
		if err := p.fetch(); err != nil {
			return math.NaN(), err
		}
		return p.host.check(policy)
	}
	got, wrong, size := make([]float32, p.HeadDim), 0.0, 0.0
	result := &p.out
	if p.Kind == Backward {
		if err := p.checkSums(); err != nil {
			return math.NaN(), err
		}
		result = &p.grad.query
	}
	for _, r := range p.want {
		widen(got, result, at(result, r.query, r.head))
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

// checkSums holds the gradients of keys and values against what they add up to,
// since the weights of a query add up to 1: those of the values to the
// gradients of the outputs, those of the keys to nothing.
func (p *problem) checkSums() error {
	for _, of := range []struct {
		name string
		view *tensor.View
		want *tensor.View
	}{{"values", &p.grad.value, &p.grad.out}, {"keys", &p.grad.key, nil}} {
		sum, size := make([]float64, p.HeadDim), 0.0
		row := make([]float32, p.HeadDim)
		add := func(v *tensor.View, sign float64) {
			for t := range int(v.Shape[0]) {
				for h := range int(v.Shape[1]) {
					widen(row, v, at(v, t, h))
					for d, x := range row {
						sum[d] += sign * float64(x)
						size += float64(x) * float64(x)
					}
				}
			}
		}
		add(of.view, 1)
		if of.want != nil {
			add(of.want, -1)
		}
		for _, x := range sum {
			if !(math.Abs(x) <= 1e-4*math.Sqrt(size)) { // NaN too
				return fmt.Errorf("the gradients of the %s are wrong: they add up to %.3g more than they should", of.name, x)
			}
		}
	}
	return nil
}

// tolerance is far above what rounding does, and far below what one key in the
// wrong place does. Fast may round weights to the type of the keys.
func (p *problem) tolerance(policy kernel.Policy) float64 {
	if policy == kernel.Fast && p.KV.DType != tensor.F32 || p.queryType() != tensor.F32 {
		return 1e-2
	}
	return 2e-5
}

// clear spoils the output, so that what a kernel leaves out is seen.
func (p *problem) clear() error {
	if p.host != nil {
		p.host.clear()
		for i, v := range p.results() {
			if v.IsZero() {
				continue
			}
			if err := p.device.CopyIn(v.Buf, p.host.results()[i].Bytes()); err != nil {
				return err
			}
		}
		return nil
	}
	nan := []byte{0, 0, 0xc0, 0x7f}[4-p.out.DType.Size():] // its upper half is one of BF16
	for _, v := range p.results() {
		if v.IsZero() {
			continue
		}
		for out := v.Bytes(); len(out) > 0; {
			out = out[copy(out, nan):]
		}
	}
	return nil
}
