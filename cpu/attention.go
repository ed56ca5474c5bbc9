package cpu

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/cpu/internal/vec/bf16"
	"github.com/longctx/longctx/kernel"
)

// attention is the kernel for a Spec.
type attention struct {
	pool     *pool
	spec     kernel.Spec
	batch    *kernel.Batch // of the last Plan
	blocks   []block
	offsets  []int64              // keys of the sequences before each
	variant  [kernel.MaxTerms]int // the first Term that rotates both sides alike
	score    scoring
	matrices matrices
	split    bool // too few blocks for the workers: share out chunks instead

	args    runArgs
	heads   headBlocks
	grads   gradArgs
	stats   statsArgs
	scratch []*scratch // one a worker
	parts   []state    // states of the chunks of a wave
	job     job
	mode    mode
	current int   // block whose chunks are being computed
	first   int64 // first chunk of the wave
	busy    atomic.Bool
	closed  bool
}

// block is tokens t0 … t0+n−1 of a sequence with query heads of one KV head,
// side by side.
type block struct {
	seq, kvHead int32
	head, heads int32
	t0, n       int32
	cost        int64 // about how many pairs it has
}

// mode says what an item of the job is.
type mode uint8

const (
	wholeBlocks mode = iota
	chunksOfBlock
	startGradients
	spanGradients
	columnStats
)

func newAttention(p *pool, s kernel.Spec) *attention {
	a := &attention{pool: p, spec: s, matrices: chooseMatrices(&s)}
	for range p.workers {
		a.scratch = append(a.scratch, newScratch(&a.spec))
	}
	return a
}

// Name tells the leaf loops, policy, types and dimensions.
func (a *attention) Name() string {
	s, leaves := &a.spec, vec.Active().String()
	if a.matrices.use {
		leaves += "+" + bf16.Active().String()
	}
	return fmt.Sprintf("cpu/%v/%v/%v-%v/d%d-%d", leaves, s.Policy, s.DType, s.KVDType, s.HeadDim, s.ValueDim)
}

// Sizes of a block in rows (tokens × query heads of the group). Large blocks
// load and convert a tile of keys for more rows; the queries, sums and outputs
// of a block should stay in the second-level cache.
const (
	maxBlockRows  = 1024
	minBlockRows  = 64
	blockMemory   = 1536 << 10 // bytes of queries and sums
	waveMemory    = 2 << 20    // bytes of the states of chunks computed side by side
	blocksAWorker = 8          // wanted, so that the last ones end together
)

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
	rows := a.listBlocks(b)
	for _, sc := range a.scratch {
		sc.grow(&a.spec, a.matrices, rows)
	}
	a.split = rows > 0 && len(a.blocks) < 2*a.pool.workers && a.pool.workers > 1 && longest > kernel.ChunkSize
	if a.split {
		// long waves, so that the workers seldom wait for one another
		perWave := min(max(waveMemory/4/(rows*vec.Pad(a.spec.ValueDim)), 4*a.pool.workers), 64*a.pool.workers)
		for len(a.parts) < perWave {
			a.parts = append(a.parts, state{})
		}
		for i := range a.parts {
			a.parts[i].grow(rows, a.spec.ValueDim)
		}
	}
	if headRows(&a.spec) > 0 {
		a.heads.list(&a.spec, b, a.pool.workers)
	}
	if a.spec.Backward {
		a.grads.grow(&a.spec, b, a.heads.items(&a.spec))
	}
	a.batch = b
	return nil
}

// listBlocks makes the blocks, the most costly first, and returns the rows of
// the largest.
func (a *attention) listBlocks(b *kernel.Batch) int {
	group := a.spec.Group()
	limit := min(maxBlockRows, max(blockMemory/4/(a.spec.HeadDim+2*a.spec.ValueDim), minBlockRows))
	tokens := max(limit/group, 1)
	for tokens*group > minBlockRows && tokens > 1 && a.countBlocks(b, tokens) < blocksAWorker*a.pool.workers {
		tokens = (tokens + 1) / 2
	}
	a.blocks = a.blocks[:0]
	var seq sequence
	rows := 0
	for s := range b.SeqLens {
		seq.set(b, &a.spec, s, a.offsets[s])
		for t1 := b.QueryLen(s); t1 > 0; t1 -= tokens {
			t0 := max(t1-tokens, 0)
			rows = max(rows, (t1-t0)*group)
			cost := int64(0)
			for term := range b.Terms {
				k := seq.keyRange(seq.i0+int64(t1)-1, term)
				cost += (k.hi - k.lo) * int64(t1-t0)
			}
			for g := range a.spec.KVHeads {
				a.blocks = append(a.blocks, block{
					seq: int32(s), kvHead: int32(g), head: int32(g * group), heads: int32(group), t0: int32(t0), n: int32(t1 - t0), cost: cost,
				})
			}
		}
	}
	slices.SortStableFunc(a.blocks, func(x, y block) int { return cmp.Compare(y.cost, x.cost) })
	return rows
}

func (a *attention) countBlocks(b *kernel.Batch, tokens int) int {
	n := 0
	for s := range b.SeqLens {
		n += (b.QueryLen(s) + tokens - 1) / tokens
	}
	return n * a.spec.KVHeads
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
		&args.Slopes, &args.RelBias, &args.PrefixBias, &args.SinkLogit); err != nil {
		return err
	}
	if err := codedOnHost(&args.CodedKey, &args.CodedValue); err != nil {
		return err
	}
	a.args.set(&a.spec, args)
	a.score.set(&a.spec, &args.ScoreArgs)
	for _, sc := range a.scratch {
		sc.blk = nil
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
		sc.prepare(a, &a.blocks[i])
		sc.total.reset(sc.rows, sc.wide)
		for c := sc.chunk0; c < sc.chunk1; c++ {
			sc.chunk(a, c, &sc.part)
			sc.total.merge(&sc.part, a.spec.Policy)
		}
		sc.finish(a)
	case chunksOfBlock:
		sc.prepare(a, &a.blocks[a.current])
		sc.chunk(a, a.first+i, &a.parts[i])
	case startGradients:
		sc.startGradients(a, &a.heads.blocks[i])
	case spanGradients:
		sc.spanGradients(a, i)
	case columnStats:
		sc.columnStats(a, i)
	}
}

// runSplit computes the chunks of one block side by side, a wave at a time,
// and merges them in order.
func (a *attention) runSplit(i int) {
	sc := a.scratch[0]
	sc.prepare(a, &a.blocks[i])
	sc.total.reset(sc.rows, sc.wide)
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
