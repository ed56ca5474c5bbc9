package kerneltest

import (
	"fmt"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// fewBits are Problems whose keys and values are FP8, coded, or some of each.
func fewBits() []Problem {
	s := step([]int{40, 0, 1, 5}, []int{530, 9, 130, 66})
	rerope := []func(*attention.Config){rotated(rope(32)), masked(attention.WindowSinks(70, 4)), positioned(reRoPE(20))}
	out := []Problem{
		{Config: config(4, 2, 32, append(rerope, kvType(tensor.F8E4M3), paged(16))...), Scaled: true},
		{Config: config(4, 2, 16, kvType(tensor.F8E5M2))},
		{Config: config(4, 2, 32, append(rerope, coded(kernel.Int8, 16, 0), kvType(tensor.F16))...), Coded: codedOdd},
		{Config: config(4, 1, 32, append(rerope, coded(kernel.Int4, 100, 8), kvType(tensor.F8E4M3))...), Coded: codedOdd, Scaled: true},
		{Config: config(4, 2, 64, coded(kernel.Int4, 64, 32), scored(attention.Score{SoftCap: 5, Slopes: true})), Coded: codedAll},
	}
	for i := range out {
		out[i].Step, out[i].Seed = s, seedOf(fmt.Sprint("few bits", i))
		out[i] = *out[i].normal()
	}
	return out
}

// codedIdentities: what holds for a cache of few bits holds for any Coding.
func (t *builder) codedIdentities() {
	for _, q := range codings(64) {
		p := *(Problem{Config: config(4, 2, 64, quantized(16, q.Key, q.Value)), Coded: codedOdd, Step: ragged(), Seed: seedOf(fmt.Sprint(q))}).normal()
		t.identity(fmt.Sprintf("coding=%v/decoded", q), func(t *trial) { p := p; t.decoded(&p) })
		t.identity(fmt.Sprintf("coding=%v/alone", q), func(t *trial) { p := p; t.sequencesAlone(&p) })
	}
	for i, c := range []kernel.Codec{kernel.Int8, kernel.Int4, kernel.Int2, kernel.Int1} {
		key, value := kernel.Quantizer{Codec: c, Levels: true}, kernel.Quantizer{Codec: c, Levels: true, Group: 16, Outliers: 3 * i}
		p := *(Problem{Config: config(4, 2, 64, quantized(16, key, value)), Coded: codedOdd, Step: ragged(), Seed: seedOf(fmt.Sprint("straight", i))}).normal()
		t.identity(fmt.Sprintf("coding=%v/straight-levels", c), func(t *trial) { p := p; t.straightLevels(&p) })
	}
}

// decoded: keys and values of few bits are what a float32 cache of the values
// they stand for is, paged as they are or not paged at all.
func (t *trial) decoded(p *Problem) {
	in := p.makeInputs()
	got := t.answer(p, in, Layout{})
	q, qin := p.plain(in)
	t.agree("decoded", t.answer(q, qin, Layout{}), got)
	q.Config.PageSize = 0
	t.agree("decoded and contiguous", t.answer(q, qin, Layout{}), got)
}

// straightLevels: levels that are the codes are as none.
func (t *trial) straightLevels(p *Problem) {
	p.Straight = true
	with := t.answer(p, p.makeInputs(), Layout{})
	p.Config.Coding.Key.Levels, p.Config.Coding.Value.Levels = false, false
	t.agree("levels that are the codes", with, t.answer(p, p.makeInputs(), Layout{}))
}

// sequencesAlone: which pages of other sequences are coded does not matter.
func (t *trial) sequencesAlone(p *Problem) {
	in := p.makeInputs()
	whole := t.answer(p, in, Layout{})
	if whole == nil {
		return
	}
	q, qin := p.plain(in)
	at := 0
	for s, n := range p.Step.QueryLens {
		one, oin := q.part(qin, s, 0, n, p.Step.KeyLens[s])
		t.agree(fmt.Sprintf("sequence %d alone", s), t.answer(one, oin, Layout{}), whole.rows(p, at, at+n))
		at += n
	}
}
