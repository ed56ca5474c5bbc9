package kerneltest

import (
	"fmt"
	"slices"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// answer is what a backend gave for a Problem, in logical order.
type answer struct {
	out, lse             words
	dquery, dkey, dvalue words
	stats                words
}

// fields are the tensors of an answer that are there.
func (a *answer) fields() []named {
	all := []named{{"Out", &a.out}, {"LSE", &a.lse}, {"DQuery", &a.dquery}, {"DKey", &a.dkey}, {"DValue", &a.dvalue}, {"ColumnStats", &a.stats}}
	return slices.DeleteFunc(all, func(n named) bool { return n.words.dtype == 0 })
}

type named struct {
	name  string
	words *words
}

// solver is a kernel chosen for one Config.
type solver struct {
	backend kernel.Backend
	kernel  *attention.Attention
}

func newSolver(b kernel.Backend, c attention.Config, policy kernel.Policy) (*solver, error) {
	c.Policy = policy
	a, err := attention.New(b, c)
	if err != nil {
		return nil, err
	}
	return &solver{b, a}, nil
}

func (s *solver) close() error { return s.kernel.Close() }

// solve plans and runs one Problem of the solver's Config.
func (s *solver) solve(p *Problem, in *inputs, l Layout) (*answer, error) {
	m := &memory{backend: s.backend}
	defer m.free()
	c := &placed{memory: m, problem: p, layout: l}
	if err := c.place(in); err != nil {
		return nil, err
	}
	if err := s.kernel.Plan(c.step); err != nil {
		return nil, err
	}
	if err := s.kernel.Run(&c.args); err != nil {
		return nil, err
	}
	if err := m.take(); err != nil {
		return nil, err
	}
	a := &answer{out: c.out.words()}
	if c.lse != nil {
		a.lse = c.lse.words()
	}
	if p.Config.Backward {
		if err := c.backward(s.kernel, in, a); err != nil {
			return nil, err
		}
	}
	if p.Config.ColumnStats {
		return a, c.columnStats(s.kernel, a)
	}
	return a, nil
}

// solve is newSolver and solve, for one run.
func solve(b kernel.Backend, p *Problem, in *inputs, l Layout, policy kernel.Policy) (a *answer, name string, err error) {
	s, err := newSolver(b, p.Config, policy)
	if err != nil {
		return nil, "", err
	}
	a, err = s.solve(p, in, l)
	name = s.kernel.KernelName()
	if e := s.close(); err == nil && e != nil {
		err = fmt.Errorf("Close: %w", e)
	}
	return a, name, err
}

// placed is a Problem in memory.
type placed struct {
	*memory
	problem *Problem
	layout  Layout
	step    attention.Step
	args    kernel.Args
	starts  []int // row of the first key of each sequence, contiguous
	rows    int
	out     *block
	lse     *block
}

func (c *placed) place(in *inputs) error {
	p, cfg := c.problem, &c.problem.Config
	t, h := int64(p.tokens()), int64(cfg.Heads)
	query, err := c.put("Query", cfg.DType, c.layout, false, true, t, h, int64(cfg.HeadDim))
	if err != nil {
		return err
	}
	query.fill(in.query)
	if c.args.Query, err = c.hand(query); err != nil {
		return err
	}
	c.step = p.Step
	if in.keyScale != nil {
		if c.args.KeyScale, err = c.table("KeyScale", tensor.F32, in.keyScale, int64(cfg.KVHeads)); err != nil {
			return err
		}
		if c.args.ValueScale, err = c.table("ValueScale", tensor.F32, in.valueScale, int64(cfg.KVHeads)); err != nil {
			return err
		}
	}
	if cfg.PageSize > 0 {
		err = c.placePages(in)
	} else {
		err = c.placeRows(in)
	}
	if err != nil {
		return err
	}
	if c.out, err = c.put("Out", cfg.DType, c.layout, true, true, t, h, int64(cfg.ValueDim)); err != nil {
		return err
	}
	if c.args.Out, err = c.hand(c.out); err != nil {
		return err
	}
	if !p.WithoutLSE {
		if c.lse, err = c.put("LSE", tensor.F32, c.layout, true, true, t, h); err != nil {
			return err
		}
		if c.args.LSE, err = c.hand(c.lse); err != nil {
			return err
		}
	}
	return c.placeScores(in)
}

// table makes a filled input tensor.
func (c *placed) table(name string, dtype tensor.DType, x []float32, shape ...int64) (tensor.View, error) {
	b, err := c.put(name, dtype, c.layout, false, true, shape...)
	if err != nil {
		return tensor.View{}, err
	}
	b.fill(x)
	return c.hand(b)
}

func (c *placed) placeScores(in *inputs) (err error) {
	h := int64(c.problem.Config.Heads)
	a := &c.args.ScoreArgs
	if in.slopes != nil {
		if a.Slopes, err = c.table("Slopes", tensor.F32, in.slopes, h); err != nil {
			return err
		}
	}
	if in.relBias != nil {
		if a.RelBias, err = c.table("RelBias", tensor.F32, in.relBias, h, int64(c.problem.RelBias)); err != nil {
			return err
		}
	}
	if in.prefixBias != nil {
		if a.PrefixBias, err = c.table("PrefixBias", tensor.F32, in.prefixBias, int64(c.problem.keys()), h); err != nil {
			return err
		}
	}
	if in.sinkLogit != nil {
		a.SinkLogit, err = c.table("SinkLogit", tensor.F32, in.sinkLogit, h)
	}
	return err
}

// placeRows lays contiguous keys out, with poison between sequences. Without a
// gap it leaves KeyStarts nil where the Step did.
func (c *placed) placeRows(in *inputs) error {
	p, cfg := c.problem, &c.problem.Config
	row := c.layout.Gap
	for _, n := range p.Step.KeyLens {
		c.starts = append(c.starts, row)
		row += n + c.layout.Gap
	}
	c.rows = row
	if c.layout.Gap > 0 {
		c.step.KeyStarts = c.starts
	}
	for _, x := range []struct {
		name         string
		data, stored []float32
		dim          int
		view         *tensor.View
	}{{"Key", in.key, in.storedKey, cfg.HeadDim, &c.args.Key}, {"Value", in.value, in.storedValue, cfg.ValueDim, &c.args.Value}} {
		if x.stored != nil {
			x.data = x.stored
		}
		b, err := c.put(x.name, cfg.KVDType, c.layout, false, false, int64(c.rows), int64(cfg.KVHeads), int64(x.dim))
		if err != nil {
			return err
		}
		c.eachKey(func(key, row, head int) {
			b.row(x.data[(key*cfg.KVHeads+head)*x.dim:][:x.dim], int64(row), int64(head))
		})
		if *x.view, err = c.hand(b); err != nil {
			return err
		}
	}
	return nil
}

// eachKey calls f for every key and KV head with the key's ordinal in inputs
// and its row.
func (c *placed) eachKey(f func(key, row, head int)) {
	key := 0
	for s, n := range c.problem.Step.KeyLens {
		for j := range n {
			for head := range c.problem.Config.KVHeads {
				f(key, c.starts[s]+j, head)
			}
			key++
		}
	}
}

// placePages lays paged keys out: pages in no order, some spare, some with
// nothing yet, all poison where no key lies. Coded pages are in tensors of
// their own.
func (c *placed) placePages(in *inputs) error {
	p, cfg := c.problem, &c.problem.Config
	src := &pages{storage: cfg.KeyStorage, size: cfg.PageSize, table: kernel.BlockTable{Indptr: []int32{0}}, positions: p.Step.KeyPos}
	need := 0
	for s, n := range p.Step.KeyLens {
		src.lens = append(src.lens, int32(n))
		used := (n + cfg.PageSize - 1) / cfg.PageSize
		need += used + s%2
		src.table.Indptr = append(src.table.Indptr, int32(need))
		for page := range used + s%2 {
			src.table.Coded = append(src.table.Coded, page < used && p.isCoded(s, page))
		}
	}
	total := need + 2
	plain, coded := newRandom(p.Seed, 100).permutation(total)[:need], newRandom(p.Seed, 101).permutation(total)[:need]
	for i, page := range plain {
		if src.table.Coded[i] {
			page = coded[i]
		}
		src.table.Indices = append(src.table.Indices, int32(page))
	}
	if cfg.Coding.IsZero() {
		src.table.Coded = nil
	}
	c.step.KV, c.step.KeyLens, c.step.KeyPos = src, nil, nil
	if err := c.placePlain(in, &src.table, total); err != nil {
		return err
	}
	if cfg.Coding.IsZero() {
		return nil
	}
	if err := c.placeCoded("Key", in.codedKey, cfg.Coding.Key, &src.table, total, cfg.HeadDim, &c.args.CodedKey); err != nil {
		return err
	}
	return c.placeCoded("Value", in.codedValue, cfg.Coding.Value, &src.table, total, cfg.ValueDim, &c.args.CodedValue)
}

// eachPagedKey calls f for every key with its ordinal in inputs, the entry of
// the block table and the slot in its page.
func (c *placed) eachPagedKey(t *kernel.BlockTable, f func(key, entry int, slot int64)) {
	key, size := 0, c.problem.Config.PageSize
	for s, n := range c.problem.Step.KeyLens {
		for j := range n {
			f(key, int(t.Indptr[s])+j/size, int64(j%size))
			key++
		}
	}
}

func (c *placed) placePlain(in *inputs, t *kernel.BlockTable, total int) error {
	cfg := &c.problem.Config
	for _, x := range []struct {
		name         string
		data, stored []float32
		dim          int
		view         *tensor.View
	}{{"Key", in.key, in.storedKey, cfg.HeadDim, &c.args.Key}, {"Value", in.value, in.storedValue, cfg.ValueDim, &c.args.Value}} {
		b, err := c.put(x.name, cfg.KVDType, c.layout, false, true, int64(total), int64(cfg.PageSize), int64(cfg.KVHeads), int64(x.dim))
		if err != nil {
			return err
		}
		if x.stored != nil {
			x.data = x.stored
		}
		c.eachPagedKey(t, func(key, entry int, slot int64) {
			for head := range cfg.KVHeads {
				if !t.IsCoded(entry) {
					b.row(x.data[(key*cfg.KVHeads+head)*x.dim:][:x.dim], int64(t.Indices[entry]), slot, int64(head))
				}
			}
		})
		if *x.view, err = c.hand(b); err != nil {
			return err
		}
	}
	return nil
}

// pages is an attention.KVSource.
type pages struct {
	storage   kernel.KeyStorage
	size      int
	lens      []int32
	table     kernel.BlockTable
	positions []int32
}

func (p *pages) KeyStorage() kernel.KeyStorage { return p.storage }
func (p *pages) PageSize() int                 { return p.size }

func (p *pages) LowerKV(dst *kernel.Batch) error {
	dst.SeqLens = append(dst.SeqLens[:0], p.lens...)
	dst.Pages.Indptr = append(dst.Pages.Indptr[:0], p.table.Indptr...)
	dst.Pages.Indices = append(dst.Pages.Indices[:0], p.table.Indices...)
	dst.Pages.Coded = append(dst.Pages.Coded[:0], p.table.Coded...)
	return nil
}

func (p *pages) KeyPositions(dst []int32) []int32 {
	if p.positions == nil {
		return nil
	}
	return append(dst, p.positions...)
}

// backward runs Backward on the Out and LSE that Run left.
func (c *placed) backward(k *attention.Attention, in *inputs, a *answer) error {
	p, cfg := c.problem, &c.problem.Config
	t, h := int64(p.tokens()), int64(cfg.Heads)
	c.out.output, c.lse.output = false, false
	b := kernel.BackwardArgs{Query: c.args.Query, Key: c.args.Key, Value: c.args.Value, ScoreArgs: c.args.ScoreArgs}
	var err error
	if b.Out, err = c.hand(c.out); err != nil {
		return err
	}
	if b.LSE, err = c.hand(c.lse); err != nil {
		return err
	}
	if b.DOut, err = c.table("DOut", p.doutType(), in.dout, t, h, int64(cfg.ValueDim)); err != nil {
		return err
	}
	if in.dlse != nil {
		if b.DLSE, err = c.table("DLSE", tensor.F32, in.dlse, t, h); err != nil {
			return err
		}
	}
	var grads [3]*block
	for i, g := range []struct {
		name  string
		view  *tensor.View
		shape [3]int64
	}{
		{"DQuery", &b.DQuery, [3]int64{t, h, int64(cfg.HeadDim)}},
		{"DKey", &b.DKey, [3]int64{int64(c.rows), int64(cfg.KVHeads), int64(cfg.HeadDim)}},
		{"DValue", &b.DValue, [3]int64{int64(c.rows), int64(cfg.KVHeads), int64(cfg.ValueDim)}},
	} {
		if grads[i], err = c.put(g.name, tensor.F32, c.layout, true, true, g.shape[:]...); err != nil {
			return err
		}
		if *g.view, err = c.hand(grads[i]); err != nil {
			return err
		}
	}
	if err := k.Backward(&b); err != nil {
		return fmt.Errorf("Backward: %w", err)
	}
	if err := c.take(); err != nil {
		return err
	}
	a.dquery, a.dkey, a.dvalue = grads[0].words(), c.keyRows(grads[1]), c.keyRows(grads[2])
	return nil
}

// keyRows are the elements of a tensor of key rows in the order of inputs.
func (c *placed) keyRows(b *block) words {
	w := words{dtype: b.view.DType}
	c.eachKey(func(_, row, head int) {
		for d := range b.view.Shape[2] {
			w.bits = append(w.bits, b.bitsAt(b.index(int64(row), int64(head), d)))
		}
	})
	return w
}
