package kerneltest

import (
	"fmt"
	"slices"
	"sync"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// What must not matter: the same question asked in two ways has one answer, bit
// for bit.

// identity adds a case that holds under Exact.
func (t *builder) identity(name string, check func(*trial)) {
	t.operation("identity", name, check, kernel.Exact)
}

// usual are Problems that between them use most of what there is, all causal.
func usual() []Problem {
	s := step([]int{40, 0, 1, 5}, []int{530, 9, 130, 66})
	full := attention.Score{SoftCap: 5, LogN: 20, Slopes: true, RelBias: true, SinkLogit: true, PrefixBias: true}
	out := []Problem{
		{Config: config(4, 2, 16), Step: s},
		{Config: config(4, 2, 32, valueDim(24), types(tensor.F32, tensor.BF16), rotated(rope(32)), masked(attention.WindowSinks(70, 4)), positioned(reRoPE(20))), Step: s},
		{Config: config(4, 1, 16, types(tensor.BF16, tensor.F16), rotated(rope(8, interleaved, xpos)), positioned(dualChunk(50, 70)), scored(full)), Step: s, RelBias: 90},
	}
	for i := range out {
		out[i].Seed = seedOf(fmt.Sprint("identity", i))
		out[i] = *out[i].normal()
	}
	return out
}

// answer solves a Problem, or records the error and returns nil.
func (t *trial) answer(p *Problem, in *inputs, l Layout) *answer {
	a, name, err := solve(t.backend, p, in, l, t.policy)
	if t.result.Kernel = name; err != nil {
		t.fail(err)
		return nil
	}
	return a
}

// agree compares two answers.
func (t *trial) agree(what string, got, want *answer) {
	if got == nil || want == nil {
		return
	}
	have := got.fields()
	for i, f := range want.fields() {
		bad, detail := differ(what+": "+f.name, have[i].words, f.words)
		t.differ(bad, detail)
	}
}

// rows are the query tokens lo <= t < hi of an answer.
func (a *answer) rows(p *Problem, lo, hi int) *answer {
	c := &p.Config
	return &answer{
		out: a.out.slice(lo*c.Heads*c.ValueDim, hi*c.Heads*c.ValueDim),
		lse: a.lse.slice(lo*c.Heads, hi*c.Heads),
	}
}

func (t *builder) identities() {
	for i, p := range usual() {
		each := func(name string, check func(*trial, *Problem)) {
			t.identity(fmt.Sprintf("%s/%d", name, i), func(t *trial) { p := p; check(t, &p) })
		}
		each("page-size", (*trial).pageSizes)
		each("layout", (*trial).sameLayouts)
		each("row-alone", (*trial).rowAlone)
		each("chunked-prefill", (*trial).chunkedPrefill)
		each("repeated-kv-heads", (*trial).repeatedHeads)
		each("wide-masks", (*trial).wideMasks)
		each("lse-not-asked", (*trial).withoutLSE)
		each("equal-terms", (*trial).equalTerms)
		t.operation("identity", fmt.Sprintf("run-to-run/%d", i), func(t *trial) { p := p; t.runToRun(&p) })
		t.operation("identity", fmt.Sprintf("at-once/%d", i), func(t *trial) { p := p; t.atOnce(&p) })
	}
	for i, p := range fewBits() {
		t.identity(fmt.Sprintf("decoded/%d", i), func(t *trial) { p := p; t.decoded(&p) })
		t.identity(fmt.Sprintf("plain-or-coded-alone/%d", i), func(t *trial) { p := p; t.sequencesAlone(&p) })
		t.operation("identity", fmt.Sprintf("few-bits/run-to-run/%d", i), func(t *trial) { p := p; t.runToRun(&p) })
	}
	t.codedIdentities()
	t.identity("key-storage", (*trial).keyStorage)
	t.identity("backward/layout", func(t *trial) { p := withGradient(usual()[1]); t.sameLayouts(p) })
	t.identity("backward/sequence-alone", (*trial).gradientAlone)
	t.operation("identity", "backward/run-to-run", func(t *trial) { t.runToRun(withGradient(usual()[2])) })
}

func withGradient(p Problem) *Problem {
	p.Config.Backward, p.WithDLSE = true, true
	p.Step = step([]int{20, 0, 1, 5}, []int{80, 9, 130, 66})
	return &p
}

// pageSizes: where pages are cut cannot change what is attended, and whether
// there are pages neither.
func (t *trial) pageSizes(p *Problem) {
	in := p.makeInputs()
	want := t.answer(p, in, Layout{})
	for _, n := range []int{1, 3, 16, 17, 64, 512, 1000} {
		q := *p
		q.Config.PageSize = n
		t.agree(fmt.Sprintf("pages of %d", n), t.answer(&q, in, Layout{}), want)
	}
}

func (t *trial) sameLayouts(p *Problem) {
	in := p.makeInputs()
	want := t.answer(p, in, Layout{})
	for _, l := range append(layouts, Layout{Spread: 2}, Layout{Gap: 7, Pad: 3}) {
		t.agree(fmt.Sprintf("%+v", l), t.answer(p, in, l), want)
	}
}

// rowAlone: a query's result depends on no other query.
func (t *trial) rowAlone(p *Problem) {
	in := p.makeInputs()
	whole := t.answer(p, in, Layout{})
	if whole == nil {
		return
	}
	at := 0
	for s, n := range p.Step.QueryLens {
		q, qin := p.part(in, s, 0, n, p.Step.KeyLens[s])
		t.agree(fmt.Sprintf("sequence %d alone", s), t.answer(q, qin, Layout{}), whole.rows(p, at, at+n))
		for _, r := range []int{0, n / 2, n - 1} {
			if n > 0 {
				q, qin := p.part(in, s, r, r+1, p.Step.KeyLens[s]-(n-1-r))
				t.agree(fmt.Sprintf("query %d of sequence %d alone", r, s), t.answer(q, qin, Layout{}), whole.rows(p, at+r, at+r+1))
			}
		}
		at += n
	}
}

// chunkedPrefill: a prefill in parts, or token by token, is the prefill.
func (t *trial) chunkedPrefill(p *Problem) {
	q := *p
	q.Step = prefill(150)
	in := q.makeInputs()
	whole := t.answer(&q, in, Layout{})
	if whole == nil {
		return
	}
	solver, err := newSolver(t.backend, q.Config, t.policy)
	if err != nil {
		t.fail(err)
		return
	}
	defer solver.close()
	for _, size := range []int{1, 17, 64, 100} {
		for lo := 0; lo < 150; lo += size {
			hi := min(lo+size, 150)
			part, pin := q.part(in, 0, lo, hi, hi)
			a, err := solver.solve(part, pin, Layout{})
			if err != nil {
				t.fail(err)
				return
			}
			t.agree(fmt.Sprintf("tokens %d to %d of chunks of %d", lo, hi, size), a, whole.rows(&q, lo, hi))
		}
	}
}

// repeatedHeads: sharing a KV head is having copies of it.
func (t *trial) repeatedHeads(p *Problem) {
	in := p.makeInputs()
	want := t.answer(p, in, Layout{})
	q, qin := *p, *in
	c := &q.Config
	group := c.Heads / c.KVHeads
	repeat := func(x []float32, dim int) []float32 {
		var out []float32
		for ; len(x) > 0; x = x[dim:] {
			for range group {
				out = append(out, x[:dim]...)
			}
		}
		return out
	}
	qin.key, qin.value = repeat(in.key, c.HeadDim), repeat(in.value, c.ValueDim)
	c.KVHeads = c.Heads
	t.agree("KV heads repeated", t.answer(&q, &qin, Layout{}), want)
}

// wideMasks: a mask that hides nothing more is no mask.
func (t *trial) wideMasks(p *Problem) {
	in := p.makeInputs()
	longest := slices.Max(p.Step.KeyLens)
	causal := *p
	causal.Config.Mask = attention.Causal()
	want := t.answer(&causal, in, Layout{})
	try := func(name string, m attention.Mask, edit func(*attention.Step)) {
		q := causal
		q.Config.Mask = m
		edit(&q.Step)
		t.agree(name, t.answer(&q, in, Layout{}), want)
	}
	nothing := func(*attention.Step) {}
	try("a window of all", attention.Window(longest), nothing)
	try("a window and more", attention.Window(longest+1000), nothing)
	try("a chunk of all", attention.Chunked(longest), nothing)
	try("window and sinks that are all", attention.WindowSinks(longest-100, 100), nothing)
	try("no prefix", attention.PrefixLM(), func(s *attention.Step) { s.PrefixLens = make([]int, len(s.QueryLens)) })
	try("one document", both(attention.Documents(), attention.Causal()), func(s *attention.Step) { s.Documents = make([]int32, sum(s.KeyLens)) })
	try("a tree that is a chain", attention.Tree(), func(s *attention.Step) { s.Tree = chain(s.QueryLens) })
	try("all blocks", both(attention.Blocks(), attention.Causal()), func(s *attention.Step) {
		s.Blocks = kernel.BlockSparse{QueryBlock: 1 << 20, KeyBlock: 16, Indptr: []int32{0}}
		for i := range s.QueryLens {
			s.Blocks.RowStart = append(s.Blocks.RowStart, int32(i))
			for k := range (s.KeyLens[i] + 15) / 16 {
				s.Blocks.Indices = append(s.Blocks.Indices, int32(k))
			}
			s.Blocks.Indptr = append(s.Blocks.Indptr, int32(len(s.Blocks.Indices)))
		}
	})
}

// chain is the tree in which each query's parent is the one before.
func chain(queryLens []int) kernel.TreeMask {
	var t kernel.TreeMask
	for _, n := range queryLens {
		t.Start = append(t.Start, int32(len(t.Bits)))
		words := (n + 63) / 64
		for q := range n {
			row := make([]uint64, words)
			for k := range q + 1 {
				row[k/64] |= 1 << (k % 64)
			}
			t.Bits = append(t.Bits, row...)
		}
	}
	return t
}

func (t *trial) withoutLSE(p *Problem) {
	in := p.makeInputs()
	want := t.answer(p, in, Layout{})
	q := *p
	q.WithoutLSE = true
	if got := t.answer(&q, in, Layout{}); got != nil && want != nil {
		t.differ(differ("Out without LSE", &got.out, &want.out))
	}
}

// equalTerms: a partition of the pairs into Terms that rotate alike is one
// Term.
func (t *trial) equalTerms(p *Problem) {
	in := p.makeInputs()
	one, three := *p, *p
	one.Config.Position = attention.Absolute{}
	var terms []attention.Term
	for _, r := range []kernel.Region{diff(kernel.MinBound, 7), diff(7, 100), diff(100, kernel.MaxBound)} {
		terms = append(terms, attention.Term{Region: r, PosQ: attention.Identity, PosK: attention.Identity})
	}
	three.Config.Position = positions{"three-alike", terms}
	t.agree("three Terms", t.answer(&three, in, Layout{}), t.answer(&one, in, Layout{}))
}

// runToRun: the same call gives the same bits, whatever was planned between.
func (t *trial) runToRun(p *Problem) {
	s, err := newSolver(t.backend, p.Config, t.policy)
	if err != nil {
		t.fail(err)
		return
	}
	defer s.close()
	other := *p
	other.Step = step([]int{3, 70}, []int{200, 70})
	in, otherIn := p.makeInputs(), other.makeInputs()
	var first *answer
	for i := range 3 {
		a, err := s.solve(p, in, Layout{})
		if err == nil && i == 1 {
			_, err = s.solve(&other, otherIn, Layout{Gap: 1})
		}
		if err != nil {
			t.fail(err)
			return
		}
		if first == nil {
			first = a
		}
		t.agree(fmt.Sprintf("run %d", i), a, first)
	}
}

// atOnce: kernels of one backend may run at the same time.
func (t *trial) atOnce(p *Problem) {
	in := p.makeInputs()
	want := t.answer(p, in, Layout{})
	var group sync.WaitGroup
	var answers [4]*answer
	var errs [4]error
	for i := range answers {
		group.Go(func() {
			errs[i] = guard(func() (err error) {
				answers[i], _, err = solve(t.backend, p, in, Layout{}, t.policy)
				return err
			})
		})
	}
	group.Wait()
	for i := range answers {
		if errs[i] != nil {
			t.fail(errs[i])
		}
		t.agree("one of four at once", answers[i], want)
	}
}

// keyStorage: keys rotated by Rotate before they are stored are keys rotated
// as they are read.
func (t *trial) keyStorage() {
	p := usual()[0]
	p.Config.Rotary = rope(16)
	in := p.makeInputs()
	want := t.answer(&p, in, Layout{})
	t.with(func(m *memory) error {
		keys := int64(p.keys())
		b, err := m.put("Key", tensor.F32, Layout{}, true, true, keys, int64(p.Config.KVHeads), int64(p.Config.HeadDim))
		if err != nil {
			return err
		}
		b.fill(in.key)
		longest, r := slices.Max(p.Step.KeyLens), kernel.Rotation(rope(16))
		a := kernel.RotateArgs{Dim: 16, Policy: t.policy, Table: kernel.RotaryTable{Cos: make([]float32, longest*8), Sin: make([]float32, longest*8)}}
		for i := range longest {
			r.Fill(a.Table.Cos[i*8:][:8], a.Table.Sin[i*8:][:8], [3]float64{float64(i)}, kernel.KeySide)
		}
		for _, n := range p.Step.KeyLens {
			for j := range n {
				a.Rows = append(a.Rows, int32(j))
			}
		}
		if a.X, err = m.hand(b); err != nil {
			return err
		}
		if err := t.backend.Rotate(&a); err != nil {
			return err
		}
		if err := m.take(); err != nil {
			return err
		}
		q, qin, x := p, *in, b.words()
		q.Config.KeyStorage = kernel.PostRoPE
		qin.key = make([]float32, len(in.key))
		for i := range qin.key {
			qin.key[i] = float32(x.value(i))
		}
		t.agree("keys stored rotated", t.answer(&q, &qin, Layout{}), want)
		return nil
	})
}

// gradientAlone: a sequence's gradients depend on no other sequence.
func (t *trial) gradientAlone() {
	p := withGradient(usual()[2])
	in, c := p.makeInputs(), &p.Config
	whole := t.answer(p, in, Layout{})
	if whole == nil {
		return
	}
	q0, k0 := 0, 0
	for s, n := range p.Step.QueryLens {
		keys := p.Step.KeyLens[s]
		q, qin := p.part(in, s, 0, n, keys)
		want := whole.rows(p, q0, q0+n)
		want.dquery = whole.dquery.slice(q0*c.Heads*c.HeadDim, (q0+n)*c.Heads*c.HeadDim)
		want.dkey = whole.dkey.slice(k0*c.KVHeads*c.HeadDim, (k0+keys)*c.KVHeads*c.HeadDim)
		want.dvalue = whole.dvalue.slice(k0*c.KVHeads*c.ValueDim, (k0+keys)*c.KVHeads*c.ValueDim)
		t.agree(fmt.Sprintf("sequence %d alone", s), t.answer(q, qin, Layout{}), want)
		q0, k0 = q0+n, k0+keys
	}
}

// Same computes a case of op attention, backward or columnstats with several backends, for
// example of different numbers of workers, and reports bits that differ from
// those of the first.
func Same(c Case, policy kernel.Policy, backends ...kernel.Backend) Result {
	r := Result{Case: c.String(), Policy: policy}
	if c.Problem == nil || len(backends) == 0 {
		return r
	}
	t := &trial{policy: policy, result: &r}
	p := c.Problem.normal()
	in := p.makeInputs()
	var first *answer
	for _, b := range backends {
		t.backend = b
		var a *answer
		if err := guard(func() error { a = t.answer(p, in, p.Layout); return nil }); err != nil {
			t.fail(err)
		}
		if first == nil {
			first = a
		}
		t.agree(b.Name(), a, first)
	}
	if first != nil {
		r.Hash = first.hash()
	}
	return r
}
