package cpu

import (
	"fmt"
	"sync/atomic"

	"github.com/longctx/longctx/kernel"
)

// blockRows is how many rows a block has at most, unless one token's heads are
// more: enough that loading and rotating a key tile is small beside its use.
const blockRows = 64

// attention is the kernel for a Spec.
type attention struct {
	pool    *pool
	spec    kernel.Spec
	batch   *kernel.Batch // of the last Plan
	blocks  []block
	offsets []int64              // keys of the sequences before each
	variant [kernel.MaxTerms]int // the first Term that rotates both sides alike
	score   scoring
	split   bool // too few blocks for the workers: share out chunks instead

	args    runArgs
	grads   gradArgs
	scratch []*scratch // one a worker
	parts   []state    // states of the chunks of a wave
	job     job
	mode    mode
	current int   // block whose chunks are being computed
	first   int64 // first chunk of the wave
	busy    atomic.Bool
	closed  bool
}

// block is tokens t0 … t0+n−1 of a sequence with the query heads of a KV head.
type block struct {
	seq, kvHead, t0, n int32
}

// mode says what an item of the job is.
type mode uint8

const (
	wholeBlocks mode = iota
	chunksOfBlock
	queryGradients
	keyGradients
)

func newAttention(p *pool, s kernel.Spec) *attention {
	a := &attention{pool: p, spec: s}
	for range p.workers {
		a.scratch = append(a.scratch, newScratch(&a.spec, a.rows()))
	}
	return a
}

// rows is the largest number of rows of a block.
func (a *attention) rows() int { return max(blockRows/a.spec.Group(), 1) * a.spec.Group() }

// Name tells policy, types and dimensions.
func (a *attention) Name() string {
	s := &a.spec
	return fmt.Sprintf("cpu/generic/%v/%v-%v/d%d-%d", s.Policy, s.DType, s.KVDType, s.HeadDim, s.ValueDim)
}

// Plan lists the blocks. The Batch is kept, not copied: it must not change
// until the next Plan.
func (a *attention) Plan(b *kernel.Batch) error {
	if !a.busy.CompareAndSwap(false, true) {
		return kernel.ErrBusy
	}
	defer a.busy.Store(false)
	if a.closed {
		return kernel.ErrClosed
	}
	a.batch = nil
	if err := b.Validate(&a.spec); err != nil {
		return err
	}
	for i := range b.Terms {
		a.variant[i] = i
		for k := range i {
			if a.spec.RotaryDim == 0 || b.Terms[k].RowQ == b.Terms[i].RowQ && b.Terms[k].RowK == b.Terms[i].RowK {
				a.variant[i] = k
				break
			}
		}
	}
	a.offsets = a.offsets[:0]
	total, longest := int64(0), int64(0)
	for _, n := range b.SeqLens {
		a.offsets = append(a.offsets, total)
		total += int64(n)
		longest = max(longest, int64(n))
	}
	a.blocks = a.blocks[:0]
	tokens := a.rows() / a.spec.Group()
	for s := range b.SeqLens {
		// the last tokens see the most keys under a causal mask: they go first
		for t1 := b.QueryLen(s); t1 > 0; t1 -= tokens {
			t0 := max(t1-tokens, 0)
			for g := range a.spec.KVHeads {
				a.blocks = append(a.blocks, block{int32(s), int32(g), int32(t0), int32(t1 - t0)})
			}
		}
	}
	a.split = len(a.blocks) < 2*a.pool.workers && a.pool.workers > 1 && longest > kernel.ChunkSize
	if want := 4 * a.pool.workers; a.split && len(a.parts) < want {
		for len(a.parts) < want {
			a.parts = append(a.parts, newState(a.rows(), a.spec.ValueDim))
		}
	}
	a.batch = b
	return nil
}

// Run computes all blocks.
func (a *attention) Run(args *kernel.Args) error {
	if err := a.begin(); err != nil {
		return err
	}
	defer a.busy.Store(false)
	if err := args.Validate(&a.spec, a.batch); err != nil {
		return err
	}
	if err := onHost(&args.Query, &args.Key, &args.Value, &args.Out, &args.LSE, &args.KeyScale, &args.ValueScale,
		&args.CodedKey.Codes, &args.CodedKey.Scale, &args.CodedKey.Zero, &args.CodedValue.Codes, &args.CodedValue.Scale, &args.CodedValue.Zero,
		&args.Slopes, &args.RelBias, &args.PrefixBias, &args.SinkLogit); err != nil {
		return err
	}
	a.args.set(args)
	a.score.set(&a.spec, &args.ScoreArgs)
	for _, sc := range a.scratch {
		sc.block = -1
	}
	if !a.split {
		a.mode = wholeBlocks
		a.pool.do(&a.job, a, int64(len(a.blocks)))
		return nil
	}
	for i := range a.blocks {
		a.runSplit(i)
	}
	return nil
}

// begin takes the kernel for one call.
func (a *attention) begin() error {
	if !a.busy.CompareAndSwap(false, true) {
		return kernel.ErrBusy
	}
	var err error
	switch {
	case a.closed:
		err = kernel.ErrClosed
	case a.batch == nil:
		err = kernel.ErrNoPlan
	}
	if err != nil {
		a.busy.Store(false)
	}
	return err
}

// Close forgets the plan. It may be called twice.
func (a *attention) Close() error {
	if !a.busy.CompareAndSwap(false, true) {
		return kernel.ErrBusy
	}
	defer a.busy.Store(false)
	a.closed, a.batch, a.scratch, a.parts = true, nil, nil, nil
	return nil
}

// item is what the pool calls.
func (a *attention) item(slot int, i int64) {
	sc := a.scratch[slot]
	switch a.mode {
	case wholeBlocks:
		sc.prepare(a, int(i))
		sc.total.reset()
		for c := sc.chunk0; c < sc.chunk1; c++ {
			sc.chunk(a, c, &sc.part)
			sc.total.merge(&sc.part, a.spec.Policy)
		}
		sc.finish(a)
	case chunksOfBlock:
		sc.prepare(a, a.current)
		sc.chunk(a, a.first+i, &a.parts[i])
	case queryGradients:
		sc.queryGradients(a, int(i))
	case keyGradients:
		sc.keyGradients(a, i)
	}
}

// runSplit computes the chunks of one block side by side, a wave at a time,
// and merges them in order.
func (a *attention) runSplit(i int) {
	sc := a.scratch[0]
	sc.prepare(a, i)
	sc.total.reset()
	a.mode, a.current = chunksOfBlock, i
	for a.first = sc.chunk0; a.first < sc.chunk1; a.first += int64(len(a.parts)) {
		n := min(int64(len(a.parts)), sc.chunk1-a.first)
		a.pool.do(&a.job, a, n)
		for k := range n {
			sc.total.merge(&a.parts[k], a.spec.Policy)
		}
	}
	sc.finish(a)
}
