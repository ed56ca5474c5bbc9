//go:build cuda && cgo

package cuda

// #include "kernels/params.h"
import "C"

import (
	"unsafe"

	"github.com/longctx/longctx/kernel"
)

// gradients is what Backward and ColumnStats need beyond Run.
type gradients struct {
	params *C.lc_gradient_params
	grid   int
	shared int
	space  buffer // delta, sums and what is to be turned back
}

// planGradients makes their workspace.
func (a *attention) planGradients() error {
	s, t, g := &a.spec, &a.plan, &a.gradients
	if !s.Backward && !s.ColumnStats {
		return nil
	}
	terms := C.int32_t(len(t.batch.Terms))
	g.shared = int(C.lc_gradient_shared(terms))
	slots := a.b.dev.multiprocessors() * max(1, min(2, a.b.dev.sharedBytes()/g.shared))
	g.grid = min(slots, max(len(t.blocks), len(t.spans)))
	p := g.params
	*p = C.lc_gradient_params{}
	var delta, sums, turned int64
	if s.Backward {
		p.slices = terms*C.lc_gradient_slices(C.int32_t(s.HeadDim)) + C.lc_gradient_slices(C.int32_t(s.ValueDim))
		delta = (4*int64(t.batch.Tokens())*int64(s.Heads) + 15) &^ 15
		sums = 4 * int64(g.grid) * int64(C.lc_gradient_sums(p.slices))
		turned = 4 * int64(g.grid) * int64(C.lc_gradient_turned(terms, C.int32_t(s.HeadDim)))
	}
	if err := g.space.grow(delta + sums + turned); err != nil {
		return err
	}
	p.delta = C.uint64_t(g.space.addr)
	p.sums = p.delta + C.uint64_t(delta)
	p.turned = p.sums + C.uint64_t(sums)
	if len(t.blocks) > 0 {
		p.blocks = C.uint64_t(a.tables.addr + uint64(t.offsets[tableBlocks]))
	}
	if len(t.spans) > 0 {
		p.spans = C.uint64_t(a.tables.addr + uint64(t.offsets[tableSpans]))
	}
	return nil
}

// set takes what the calls have in common.
func (g *gradients) set(a *attention, x *kernel.ScoreArgs) {
	if r := a.b.recording.Load(); r != nil {
		r.uses = append(r.uses, use{a: a, plans: a.plans})
	}
	p := g.params
	p.a = *a.params
	setScores(&p.a, x)
	p.stats, p.power, p.window = 0, 0, 0
}

// launch runs a kernel over n items.
func (a *attention) launch(name string, n, shared int) error {
	if n == 0 {
		return nil
	}
	if err := a.b.dev.launch(name, min(n, a.gradients.grid), blockThreads, shared, unsafe.Pointer(a.gradients.params)); err != nil {
		return a.explain(err)
	}
	return nil
}

// Backward computes delta, then dQuery, then dKey and dValue.
func (a *attention) Backward(args *kernel.BackwardArgs) error {
	if !a.spec.Backward {
		return &kernel.UnsupportedError{Backend: "cuda", Reasons: []string{"Backward of a kernel without Spec.Backward"}}
	}
	if err := a.begin(); err != nil {
		return err
	}
	defer a.busy.Store(false)
	if a.batch == nil {
		return kernel.ErrNoPlan
	}
	if err := args.Validate(&a.spec, a.batch); err != nil {
		return err
	}
	if err := a.b.onDevice(&args.Query, &args.Key, &args.Value, &args.Out, &args.LSE, &args.DOut, &args.DLSE, &args.DQuery, &args.DKey, &args.DValue,
		&args.Slopes, &args.RelBias, &args.PrefixBias, &args.SinkLogit); err != nil {
		return err
	}
	g := &a.gradients
	g.set(a, &args.ScoreArgs)
	p := g.params
	setTensor(&p.a.query, &args.Query)
	setTensor(&p.a.key, &args.Key)
	setTensor(&p.a.value, &args.Value)
	setTensor(&p.a.out, &args.Out)
	setScalars(&p.a.lse, &args.LSE)
	p.a.key_scale, p.a.value_scale = C.lc_scalars{}, C.lc_scalars{}
	setTensor(&p.dout, &args.DOut)
	setTensor(&p.dquery, &args.DQuery)
	setTensor(&p.dkey, &args.DKey)
	setTensor(&p.dvalue, &args.DValue)
	setScalars(&p.dlse, &args.DLSE)
	rows := a.batch.Tokens() * a.spec.Heads
	if err := a.launch("start_gradients_128", (rows+blockThreads-1)/blockThreads, 0); err != nil {
		return err
	}
	if err := a.launch("query_gradients_64", len(a.plan.blocks), g.shared); err != nil {
		return err
	}
	return a.launch("key_gradients_64", len(a.plan.spans), g.shared)
}

// ColumnStats sums the weights of each key.
func (a *attention) ColumnStats(args *kernel.ColumnStatsArgs) error {
	if !a.spec.ColumnStats {
		return &kernel.UnsupportedError{Backend: "cuda", Reasons: []string{"ColumnStats of a kernel without Spec.ColumnStats"}}
	}
	if err := a.begin(); err != nil {
		return err
	}
	defer a.busy.Store(false)
	if a.batch == nil {
		return kernel.ErrNoPlan
	}
	if err := args.Validate(&a.spec, a.batch); err != nil {
		return err
	}
	if err := a.b.onDevice(&args.Query, &args.Key, &args.KeyScale, &args.LSE, &args.Out, &args.CodedKey.Codes, &args.CodedKey.Scale, &args.CodedKey.Zero,
		&args.Slopes, &args.RelBias, &args.PrefixBias, &args.SinkLogit); err != nil {
		return err
	}
	g := &a.gradients
	g.set(a, &args.ScoreArgs)
	p := g.params
	setTensor(&p.a.query, &args.Query)
	setTensor(&p.a.key, &args.Key)
	setCoded(&p.a.coded_key, &args.CodedKey)
	setScalars(&p.a.key_scale, &args.KeyScale)
	setScalars(&p.a.lse, &args.LSE)
	setScalars(&p.out, &args.Out)
	p.stats, p.power, p.window, p.delta = 1, C.int32_t(args.Power), C.int32_t(min(args.Window, 1<<30)), 0
	if p.maximum = 0; args.Maximum {
		p.maximum = 1
	}
	err := a.launch("column_stats_64", len(a.plan.spans), g.shared)
	p.delta = C.uint64_t(g.space.addr)
	return err
}
