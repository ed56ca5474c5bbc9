package attention

import (
	"errors"
	"fmt"
	"sync"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Found lists the keys that a search chose, for each query token and head: row
// token·Heads + head has Indices[Indptr[row]:Indptr[row+1]], indices of keys in
// their sequence, ascending.
type Found struct {
	Indptr    []int32 // [tokens·Heads+1], or nil before the first search
	Indices   []int32
	LogWeight []float32 // of each of Indices, added to its score; nil: 0
}

// Reset makes f empty and keeps its memory.
func (f *Found) Reset() {
	f.Indptr, f.Indices, f.LogWeight = f.Indptr[:0], f.Indices[:0], f.LogWeight[:0]
}

// addRows adds n rows, those of a KV head by calls one after another and those of
// different ones side by side.
func (f *Found) addRows(n, heads, kvHeads int, search func(kvHead, row int, found *Found)) {
	if len(f.Indptr) == 0 {
		f.Indptr = append(f.Indptr, 0)
	}
	parts := make([]Found, kvHeads)
	eachHead(kvHeads, func(g int) {
		for r := range n {
			if r%heads*kvHeads/heads == g {
				search(g, r, &parts[g])
				parts[g].Indptr = append(parts[g].Indptr, int32(len(parts[g].Indices)))
			}
		}
	})
	at := make([]int, kvHeads) // rows taken from a part
	for r := range n {
		g := r % heads * kvHeads / heads
		p, lo := &parts[g], int32(0)
		if at[g] > 0 {
			lo = p.Indptr[at[g]-1]
		}
		hi := p.Indptr[at[g]]
		f.Indices = append(f.Indices, p.Indices[lo:hi]...)
		if len(p.LogWeight) > 0 {
			f.LogWeight = append(f.LogWeight, p.LogWeight[lo:hi]...)
		}
		f.Indptr = append(f.Indptr, int32(len(f.Indices)))
		at[g]++
	}
}

// eachHead runs f for each KV head, side by side.
func eachHead(n int, f func(g int)) {
	var done sync.WaitGroup
	for g := 1; g < n; g++ {
		done.Go(func() { f(g) })
	}
	f(0)
	done.Wait()
}

// static is the part of the keys that is seen without a search: the first and
// the last. Query index i is searched keys Sinks <= j <= i−Window for.
type static struct{ sinks, window int }

func (s static) check() error {
	if err := parameter("Sinks", s.sinks, 0); err != nil {
		return err
	}
	return parameter("Window", s.window, 1)
}

// SearchedAttention is attention to the first and the last keys and to keys that
// a search found, two passes joined by LSE. It serves one goroutine at a time.
type SearchedAttention struct {
	backend      kernel.Backend
	static       static
	dense, found *Attention
	rows         foundRows
	ones         []int
	units        [3]int64    // strides of pages, slots and KV heads of Key, in pages of one key
	bias         tensor.View // of each key of a row and one more: minus the log weight
	buffers      [3]tensor.Buffer
	tokens, room int
	biasRoom     int
	planned      bool
}

// foundRows are sequences of one query and the keys found for it, each a page of
// one key. One more key, not seen, stands where the query's own would.
type foundRows struct {
	lens  []int32
	pages kernel.BlockTable
}

func (*foundRows) KeyStorage() kernel.KeyStorage { return kernel.PostRoPE }
func (*foundRows) PageSize() int                 { return 1 }
func (*foundRows) KeyPositions([]int32) []int32  { return nil }
func (r *foundRows) LowerKV(dst *kernel.Batch) error {
	dst.SeqLens = append(dst.SeqLens[:0], r.lens...)
	dst.Pages.Indptr = append(dst.Pages.Indptr[:0], r.pages.Indptr...)
	dst.Pages.Indices = append(dst.Pages.Indices[:0], r.pages.Indices...)
	return nil
}

// newSearched makes both kernels. c has no Mask, and nothing that the place of a
// key in its sequence decides.
func newSearched(b kernel.Backend, c Config, s static) (*SearchedAttention, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if c.Mask.Regions != nil || c.Mask.Kinds != 0 || c.Position != nil || c.Rotary != nil || c.Score != (Score{SoftCap: c.Score.SoftCap}) ||
		!c.Coding.IsZero() || c.KVDType.Float8() || c.Backward || c.ColumnStats {
		return nil, errors.New("Config has a Mask, Position, Rotary, Coding, FP8 keys, Backward, ColumnStats or a Score other than SoftCap, want none (queries and keys come turned)")
	}
	c.KeyStorage, c.Mask = kernel.PostRoPE, WindowSinks(s.window, s.sinks)
	a := &SearchedAttention{backend: b, static: s}
	var err error
	if a.dense, err = New(b, c); err != nil {
		return nil, err
	}
	c.setDefaults()
	c.Heads, c.KVHeads, c.PageSize, c.Score.PrefixBias = 1, 1, 1, true
	c.Mask = intervals(kernel.Region{Diff: between(1, kernel.MaxBound), Key: kernel.All})
	if a.found, err = New(b, c); err != nil {
		return nil, errors.Join(err, a.dense.Close())
	}
	return a, nil
}

// Close frees what the kernels hold.
func (a *SearchedAttention) Close() error { return errors.Join(a.dense.Close(), a.found.Close()) }

// Plan prepares a step. The keys found for its tokens come with each Run, since
// they differ from layer to layer.
func (a *SearchedAttention) Plan(step Step) error {
	a.planned = false
	if err := a.dense.Plan(step); err != nil {
		return err
	}
	b, s := a.dense.Batch(), &a.dense.spec
	for i := range b.SeqLens {
		if b.QueryLen(i) > int(b.SeqLens[i]) {
			return fmt.Errorf("attention: sequence %d has %d queries, want at most its %d keys", i, b.QueryLen(i), b.SeqLens[i])
		}
	}
	a.tokens = b.Tokens()
	if a.tokens > a.room {
		rows := int64(a.tokens) * int64(s.Heads)
		var err error
		for i, bytes := range [2]int64{rows * int64(s.ValueDim) * s.DType.Size(), 2 * rows * tensor.F32.Size()} {
			if a.buffers[i], err = a.backend.Alloc(bytes); err != nil {
				return err
			}
		}
		a.room = a.tokens
	}
	a.planned = true
	return nil
}

// Run computes one layer of the step, with keys found for each token and head.
// LSE is that of all keys, each with its weight.
func (a *SearchedAttention) Run(args *kernel.Args, found *Found) error {
	if !a.planned {
		return fmt.Errorf("attention: %w", kernel.ErrNoPlan)
	}
	if args == nil || found == nil {
		return errors.New("attention: Run without arguments or keys found, want both")
	}
	s, tokens := &a.dense.spec, int64(a.tokens)
	heads := int64(s.Heads)
	near := *args
	if near.LSE.IsZero() {
		near.LSE = tensor.Of(a.buffers[1], tensor.F32, tokens, heads)
		near.LSE.Offset = tokens * heads
	}
	if err := a.dense.Run(&near); err != nil || tokens == 0 {
		return err
	}
	far, err := a.farArgs(args)
	if err != nil {
		return err
	}
	if err := a.planFound(args, found); err != nil {
		return err
	}
	far.PrefixBias = a.bias
	if err := a.found.Run(&far); err != nil {
		return err
	}
	out, lse := tensor.Of(a.buffers[0], s.DType, tokens, heads, int64(s.ValueDim)), tensor.Of(a.buffers[1], tensor.F32, tokens, heads)
	if err := a.backend.Merge(&kernel.MergeArgs{
		OutA: near.Out, LSEA: near.LSE, OutB: out, LSEB: lse, Out: near.Out, LSE: near.LSE, Policy: s.Policy,
	}); err != nil {
		return fmt.Errorf("attention: %w", err)
	}
	return nil
}

// farArgs views each query head as a token and each row of a KV head as a page.
func (a *SearchedAttention) farArgs(args *kernel.Args) (kernel.Args, error) {
	s := &a.dense.spec
	rows := int64(a.tokens) * int64(s.Heads)
	out := kernel.Args{
		Out: tensor.Of(a.buffers[0], s.DType, rows, 1, int64(s.ValueDim)), LSE: tensor.Of(a.buffers[1], tensor.F32, rows, 1),
	}
	q := args.Query
	if q.Stride[0] != q.Stride[1]*q.Shape[1] && q.Shape[0] > 1 {
		return out, fmt.Errorf("attention: Query is %v, want the rows of a token to follow those of the one before", &q)
	}
	q.Shape[0], q.Shape[1], q.Stride[0] = rows, 1, q.Stride[1]
	out.Query = q
	var err error
	var units [3]int64
	if out.Key, a.units, err = rowsAsPages(&args.Key); err == nil {
		out.Value, units, err = rowsAsPages(&args.Value)
	}
	if err == nil && units != a.units {
		err = fmt.Errorf("attention: Key is %v and Value %v, want rows that lie alike", &args.Key, &args.Value)
	}
	return out, err
}

// rowsAsPages views [pages, slots, KVHeads, dim] or [rows, KVHeads, dim] as
// [n, 1, 1, dim], and gives the strides of pages, slots and KV heads in it, those
// of one row being 0. Heads may lie before slots.
func rowsAsPages(v *tensor.View) (out tensor.View, units [3]int64, err error) {
	step := int64(0) // what all strides are multiples of
	for d := range v.Rank - 1 {
		if v.Shape[d] > 1 {
			step = divisor(step, v.Stride[d])
		}
	}
	n := int64(1)
	for d := range v.Rank - 1 {
		if v.Shape[d] <= 1 {
			continue
		}
		if v.Stride[d] <= 0 {
			return out, units, fmt.Errorf("attention: %v, want positive strides", v)
		}
		u := v.Stride[d] / step
		n += (v.Shape[d] - 1) * u
		if units[d] = u; v.Rank == 3 && d == 1 {
			units[1], units[2] = 0, u
		}
	}
	out = *v
	out.Rank = 4
	out.Shape = [tensor.MaxRank]int64{n, 1, 1, v.Shape[v.Rank-1]}
	out.Stride = [tensor.MaxRank]int64{step, step, step, v.Stride[v.Rank-1]}
	return out, units, nil
}

// divisor is the greatest one that a and b share.
func divisor(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// planFound makes a sequence of each row of found.
func (a *SearchedAttention) planFound(args *kernel.Args, found *Found) error {
	b, heads := a.dense.Batch(), a.dense.spec.Heads
	if n := a.tokens*heads + 1; len(found.Indptr) != n || found.Indptr[0] != 0 || int(found.Indptr[n-1]) != len(found.Indices) {
		return fmt.Errorf("attention: Found has %d Indptr for %d Indices, want %d from 0 to the number of Indices", len(found.Indptr), len(found.Indices), n)
	}
	if n := len(found.LogWeight); n != 0 && n != len(found.Indices) {
		return fmt.Errorf("attention: Found has %d LogWeight, want 0 or %d", n, len(found.Indices))
	}
	for i := 1; i < len(found.Indptr); i++ {
		if found.Indptr[i] < found.Indptr[i-1] {
			return fmt.Errorf("attention: Found.Indptr[%d] is %d, want at least %d", i, found.Indptr[i], found.Indptr[i-1])
		}
	}
	if err := a.growBias(len(found.Indices) + a.tokens*heads); err != nil {
		return err
	}
	r := &a.rows
	r.lens, r.pages.Indptr, r.pages.Indices = r.lens[:0], append(r.pages.Indptr[:0], 0), r.pages.Indices[:0]
	for s := range b.SeqLens {
		for t := range b.QueryLen(s) {
			for h := range heads {
				if err := a.addRow(&args.Key, found, s, t, h); err != nil {
					return err
				}
			}
		}
	}
	for len(a.ones) < a.tokens*heads {
		a.ones = append(a.ones, 1)
	}
	return a.found.Plan(Step{QueryLens: a.ones[:a.tokens*heads], KV: r})
}

// growBias makes a.bias a table of n rows.
func (a *SearchedAttention) growBias(n int) (err error) {
	if n > a.biasRoom {
		if a.buffers[2], err = a.backend.Alloc(int64(n) * 5 / 4 * tensor.F32.Size()); err != nil {
			return err
		}
		a.biasRoom = n * 5 / 4
	}
	a.bias = tensor.Of(a.buffers[2], tensor.F32, int64(n), 1)
	if len(a.bias.F32s()) < n {
		return fmt.Errorf("attention: weights of keys are made on the host, and backend %s has its own memory; want cpu", a.backend.Name())
	}
	return nil
}

// addRow adds the keys found for head h of token t of sequence s.
func (a *SearchedAttention) addRow(key *tensor.View, found *Found, s, t, h int) error {
	b, r := a.dense.Batch(), &a.rows
	row := (int(b.QueryStart[s])+t)*a.dense.spec.Heads + h
	head := int64(h / a.dense.spec.Group())
	lo, hi := found.Indptr[row], found.Indptr[row+1]
	least, most := int32(a.static.sinks), b.QueryIndex(s)+int64(t-a.static.window)
	bias := a.bias.F32s()[len(r.pages.Indices):]
	for k, j := range found.Indices[lo:hi] {
		if j < least || int64(j) > most {
			return fmt.Errorf("attention: Found row %d has key %d, want ascending, %d to %d: not the first and last keys, seen already", row, j, a.static.sinks, most)
		}
		least = j + 1
		at := int64(j)
		if size := int64(a.dense.spec.PageSize); size > 0 {
			at = int64(b.Pages.Indices[int64(b.Pages.Indptr[s])+at/size])*a.units[0] + at%size*a.units[1]
		} else {
			at = (int64(b.KeyStart[s]) + at) * a.units[0]
		}
		if at += head * a.units[2]; at >= kernel.MaxBound {
			return fmt.Errorf("attention: Key is %v, want fewer than 2³¹−1 rows", key)
		}
		r.pages.Indices = append(r.pages.Indices, int32(at))
		bias[k] = 0
		if len(found.LogWeight) > 0 {
			bias[k] = -found.LogWeight[int(lo)+k]
		}
	}
	bias[hi-lo] = 0
	r.pages.Indices = append(r.pages.Indices, 0)
	r.pages.Indptr = append(r.pages.Indptr, int32(len(r.pages.Indices)))
	r.lens = append(r.lens, hi-lo+1)
	return nil
}
