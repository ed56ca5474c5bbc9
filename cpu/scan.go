package cpu

import (
	"sync"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
)

// A scan goes through a sequence in chunks of a tile. Within a chunk it is
// attention with decaying weights, between chunks a state: both are products of
// matrices. An item is some heads of one sequence that share queries and keys;
// nothing but speed depends on how many.

// scanning computes a Scan.
type scanning struct {
	args  *kernel.ScanArgs
	state scanStates
	out   reader
	scan
}

// scan is what a Scan and its gradient have in common.
type scan struct {
	in               *kernel.ScanInput
	q, k, v          reader
	gate             reader  // of channels
	gates, beta      scalars // of heads
	bonus            scalars
	keyDim, valueDim int
	gateRows         int // 0: no gate; 1: of a head; keyDim: of each channel
	channels         bool
	shift            int // 1: a token is read before it is stored, with Bonus
	keyHeads, group  int // heads of a key head
	parts, each      int // of a group, and heads in each part
	memory           *sync.Pool
	scratch          []*scanScratch // by slot
}

// scanStates is a tensor of states.
type scanStates struct {
	x               []float32
	offset          int64
	slot, head, row int64
}

func (s *scanStates) at(slot int32, head int) vec.Matrix {
	return vec.Matrix{X: s.x[s.offset+int64(slot)*s.slot+int64(head)*s.head:], Row: int(s.row), Col: 1}
}

// Scan runs tokens of sequences through their states.
func (b *Backend) Scan(a *kernel.ScanArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Query, &a.Key, &a.Value, &a.Gate, &a.Beta, &a.Bonus, &a.State, &a.Out); err != nil {
		return err
	}
	t := &scanning{args: a, out: read(&a.Out)}
	t.prepare(b, &a.ScanInput, true)
	if !a.State.IsZero() {
		t.state = readStates(&a.State)
	}
	b.share(t, int64(a.Sequences()*t.keyHeads*t.parts), a.Query.Len()*int64(t.group*t.valueDim))
	t.release()
	return nil
}

// share computes items, by all workers where there is much to do.
func (b *Backend) share(w worker, items, cost int64) {
	if b.pool.workers > 1 && items > 1 && cost >= opShare {
		b.pool.do(&job{}, w, items)
		return
	}
	for i := range items {
		w.item(0, i)
	}
}

func (t *scan) prepare(b *Backend, in *kernel.ScanInput, split bool) {
	t.in, t.q, t.k, t.v = in, read(&in.Query), read(&in.Key), read(&in.Value)
	t.keyDim, t.valueDim, t.keyHeads = t.q.n, t.v.n, int(in.Query.Shape[1])
	t.group = int(in.Value.Shape[1]) / t.keyHeads
	switch {
	case in.ChannelGates():
		t.gate, t.gateRows, t.channels = read(&in.Gate), t.keyDim, true
	case !in.Gate.IsZero():
		t.gates, t.gateRows = readScalars(&in.Gate), 1
	}
	if !in.Beta.IsZero() {
		t.beta = readScalars(&in.Beta)
	}
	if !in.Bonus.IsZero() {
		t.bonus, t.shift = readScalars(&in.Bonus), 1
	}
	t.parts = 1
	if have := in.Sequences() * t.keyHeads; split && have > 0 {
		t.parts = min(t.group, (4*b.pool.workers+have-1)/have)
	}
	t.each = (t.group + t.parts - 1) / t.parts
	t.parts = (t.group + t.each - 1) / t.each
	t.memory, t.scratch = &b.scans, make([]*scanScratch, b.pool.workers)
}

// take is the scratch memory of a worker.
func (t *scan) take(slot int) *scanScratch {
	if t.scratch[slot] == nil {
		t.scratch[slot] = t.memory.Get().(*scanScratch)
		t.scratch[slot].grow(t)
	}
	return t.scratch[slot]
}

func (t *scan) release() {
	for _, s := range t.scratch {
		if s != nil {
			t.memory.Put(s)
		}
	}
}

// span is the tokens and heads of an item.
func (t *scan) span(item int64) (seq, keyHead, lo, hi int) {
	i := int(item)
	part := i % t.parts
	i /= t.parts
	keyHead, seq = i%t.keyHeads, i/t.keyHeads
	lo = keyHead*t.group + part*t.each
	return seq, keyHead, lo, min(lo+t.each, (keyHead+1)*t.group)
}

func (t *scanning) item(slot int, item int64) {
	s := t.take(slot)
	seq, keyHead, lo, hi := t.span(item)
	states := s.states[:0]
	for h := lo; h < hi; h++ {
		states = append(states, t.first(s, seq, h, h-lo))
	}
	s.states = states
	first, end := int64(t.in.QueryStart[seq]), int64(t.in.QueryStart[seq+1])
	for t0 := first; t0 < end; t0 += tile {
		s.load(&t.scan, keyHead, t0, int(min(tile, end-t0)))
		for h := lo; h < hi; h++ {
			s.head(&t.scan, h)
			s.forward(&t.scan, states[h-lo])
			for r := range s.n {
				t.out.storeRow(s.o[r*s.ld:], t0+int64(r), h)
			}
			s.advance(&t.scan, states[h-lo])
		}
	}
}

// first is the state of a head before the first token, where the last will be.
func (t *scanning) first(s *scanScratch, seq, head, i int) vec.Matrix {
	from, to := int32(-1), int32(-1)
	if t.args.From != nil {
		from = t.args.From[seq]
	}
	if t.args.To != nil {
		to = t.args.To[seq]
	}
	m := vec.Matrix{Row: s.ld, Col: 1}
	if to >= 0 {
		m = t.state.at(to, head)
	} else {
		n := t.keyDim * s.ld
		if s.state == nil {
			s.state = make([]float32, t.each*n)
		}
		m.X = s.state[i*n:][:n]
	}
	if from < 0 || from != to {
		t.state.copyTo(m, from, head, t.keyDim, t.valueDim)
	}
	return m
}

// copyTo sets m to a state, or to 0 where slot is negative.
func (s *scanStates) copyTo(m vec.Matrix, slot int32, head, keyDim, valueDim int) {
	for d := range keyDim {
		row := m.X[d*m.Row:][:valueDim]
		if slot < 0 {
			clear(row)
		} else {
			from := s.at(slot, head)
			copy(row, from.X[d*from.Row:])
		}
	}
}
