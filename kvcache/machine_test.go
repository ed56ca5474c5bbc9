package kvcache_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// token is what the oracle knows of a key.
type token struct {
	value    int // gives the rows in all layers, by element
	position int32
}

type oracleSequence struct {
	tokens []token
	next   int32 // default position of the next token
}

// element is feature d of head h of a token's row. It is a small integer, exact
// in every element type; that two tokens agree in all of a row is unlikely.
func element(value, layer int, isValue bool, h, d int64) float32 {
	x := uint64(value)*4 + uint64(layer)*2
	if isValue {
		x++
	}
	x = x*64 + uint64(h*8+d)
	x = (x + 1) * 0x9e3779b97f4a7c15
	return float32(x >> 56)
}

// rowsOf are the rows of some tokens as a model would hand them to Append.
func rowsOf(c kvcache.Config, layer int, tokens []token) (key, value tensor.View) {
	fill := func(dim int, isValue bool) tensor.View {
		v := tensor.New(tensor.F32, int64(len(tokens)), int64(c.KVHeads), int64(dim))
		for i, t := range tokens {
			for h := range v.Shape[1] {
				for d := range v.Shape[2] {
					v.Set(element(t.value, layer, isValue, h, d), int64(i), h, d)
				}
			}
			if c.Coded() && !isValue && t.value%23 == 0 && t.value/23%c.Layers == layer {
				v.Set(huge, int64(i), 0, 0)
			}
		}
		return v
	}
	return fill(c.HeadDim, false), fill(c.ValueDim, true)
}

// bytesReader gives choices; at its end it gives 0.
type bytesReader struct{ b []byte }

func (r *bytesReader) below(n int) int {
	if len(r.b) == 0 || n <= 1 {
		return 0
	}
	x := int(r.b[0])
	r.b = r.b[1:]
	return x % n
}

// machine drives a cache and an oracle by a string of bytes.
type machine struct {
	t       testing.TB
	in      *bytesReader
	backend *hostBackend
	config  kvcache.Config
	cache   *kvcache.Cache
	oracle  map[kvcache.ID]*oracleSequence
	live    []kvcache.ID // the keys of oracle, in order of birth
	freed   []kvcache.ID
	tokens  int // the values given so far

	fulls, faults, copies   int
	coded, cut, failedCodes int // pages coded, Truncates refused, faults of EncodePages
	refused                 int // pages that cannot be coded
	applied, failedApplies  int // keys dropped by Apply, faults of GatherRows
}

func newMachine(t testing.TB, input []byte) *machine {
	in := &bytesReader{input}
	m := &machine{t: t, in: in, backend: &hostBackend{}, oracle: map[kvcache.ID]*oracleSequence{}}
	m.config = kvcache.Config{
		PageSize: 1 + in.below(17), Pages: 1 + in.below(24), Layers: 1 + in.below(2), KVHeads: 1 + in.below(2),
		HeadDim: 3, ValueDim: 2, DType: tensor.F32 + tensor.DType(in.below(3)), KeyStorage: kernel.KeyStorage(in.below(2)),
	}
	m.chooseFormat()
	var err error
	if m.cache, err = kvcache.New(m.backend, m.config); err != nil {
		t.Fatal(err)
	}
	m.check("New")
	return m
}

func (m *machine) run() {
	for range 400 {
		if len(m.in.b) == 0 {
			return
		}
		m.check(m.step())
	}
}

func (m *machine) step() string {
	if len(m.live) == 0 {
		m.add(m.cache.NewSequence(), &oracleSequence{})
		return "NewSequence"
	}
	switch op := m.in.below(19); op {
	case 0:
		if len(m.live) < 8 {
			m.add(m.cache.NewSequence(), &oracleSequence{})
		}
		return "NewSequence"
	case 1, 2:
		return m.fork()
	case 3, 4:
		return m.truncate()
	case 5, 6:
		return m.drop()
	case 7:
		return m.free()
	case 8:
		return m.misuse()
	case 9, 10, 11:
		return m.apply()
	default:
		return m.extend()
	}
}

func (m *machine) add(id kvcache.ID, s *oracleSequence) {
	if m.oracle[id] != nil || slices.Contains(m.freed, id) {
		m.t.Fatalf("ID %d was given twice", id)
	}
	m.oracle[id], m.live = s, append(m.live, id)
}

func (m *machine) pick() (kvcache.ID, *oracleSequence) {
	id := m.live[m.in.below(len(m.live))]
	return id, m.oracle[id]
}

func (m *machine) ok(what string, err error) string {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
	return what
}

func (m *machine) fork() string {
	id, s := m.pick()
	if len(m.live) >= 8 {
		return "no Fork"
	}
	other, err := m.cache.Fork(id)
	what := m.ok(fmt.Sprintf("Fork(%d)", id), err)
	m.add(other, &oracleSequence{slices.Clone(s.tokens), s.next})
	return what
}

func (m *machine) truncate() string {
	id, s := m.pick()
	n := len(s.tokens) - m.in.below(len(s.tokens)+1)
	what := fmt.Sprintf("Truncate(%d, %d)", id, n)
	if m.refusesCut(what, id, n) {
		return what
	}
	m.ok(what, m.cache.Truncate(id, n))
	if n < len(s.tokens) {
		s.next = s.tokens[n].position
		if n > 0 {
			s.next = max(s.next, s.tokens[n-1].position+1)
		}
	}
	s.tokens = s.tokens[:n]
	return what
}

// drop tries any range, aligned as often as not.
func (m *machine) drop() string {
	id, s := m.pick()
	n := len(s.tokens)
	from, to := m.in.below(n+1), m.in.below(n+1)
	if m.in.below(8) > 0 {
		from, to = from/m.config.PageSize*m.config.PageSize, to/m.config.PageSize*m.config.PageSize
	}
	if m.in.below(4) == 0 {
		to = n
	}
	what := fmt.Sprintf("Drop(%d, %d, %d) of %d", id, from, to, n)
	aligned := from == to || from%m.config.PageSize == 0 && (to%m.config.PageSize == 0 || to == n)
	before := m.snapshot()
	err := m.cache.Drop(id, from, to)
	if from > to || !aligned {
		var value *kvcache.ValueError
		if !errors.As(err, &value) {
			m.t.Fatalf("%s: error %v, want a ValueError", what, err)
		}
		m.unchanged(what, before)
		return what
	}
	m.ok(what, err)
	s.tokens = append(slices.Clone(s.tokens[:from]), s.tokens[to:]...)
	return what
}

func (m *machine) free() string {
	id, _ := m.pick()
	what := m.ok(fmt.Sprintf("Free(%d)", id), m.cache.Free(id))
	delete(m.oracle, id)
	m.live = slices.DeleteFunc(m.live, func(x kvcache.ID) bool { return x == id })
	m.freed = append(m.freed, id)
	return what
}

// extend is a step of a model on a ragged batch, with a fault now and then.
func (m *machine) extend() string {
	var ids []kvcache.ID
	var counts []int
	var positions []int32
	explicit := m.in.below(4) == 0
	for _, id := range m.live {
		if m.in.below(2) == 0 {
			continue
		}
		n := m.in.below(2*m.config.PageSize + 2)
		if m.in.below(2) == 0 {
			n = min(n, 1)
		}
		ids, counts = append(ids, id), append(counts, n)
		for range n {
			positions = append(positions, int32(m.in.below(100)))
		}
	}
	if !explicit {
		positions = nil
	} else if positions == nil {
		positions = []int32{}
	}
	if m.in.below(6) == 0 {
		m.backend.failCopy.Store(1 + int64(m.in.below(2*m.config.Layers)))
	}
	if m.config.Coded() && m.in.below(8) == 0 {
		m.backend.failEncode.Store(1 + int64(m.in.below(m.config.Layers)))
	}
	what := fmt.Sprintf("Extend(%v, %v, %v)", ids, counts, positions)
	before, copied := m.snapshot(), m.backend.copied.Load()
	slots, err := m.cache.ExtendAt(ids, counts, positions, []int32{-7})
	m.backend.failCopy.Store(0)
	m.backend.failEncode.Store(0)
	if len(slots) < 1 || slots[0] != -7 {
		m.t.Fatalf("%s: the caller's slots were lost: %v", what, slots)
	}
	var full *kvcache.OutOfPagesError
	if m.judgeCoding(what, before, ids, err) {
		return what
	}
	need, copies, free := m.need(before, ids, counts)
	if err != nil && m.config.Coded() {
		before = m.snapshot() // what was coded stays so; judgeCoding has seen to the rest
	}
	switch {
	case need > free:
		if !errors.As(err, &full) || full.Need != int64(need) || full.Free != free {
			m.t.Fatalf("%s: error %v, want OutOfPages{%d, %d}", what, err, need, free)
		}
		m.fulls++
	case errors.Is(err, errInjected) && copies > 0:
		m.faults++
	default:
		m.ok(what, err)
		if got := m.backend.copied.Load() - copied; got != int64(copies*2*m.config.Layers) {
			m.t.Fatalf("%s: %d copies of pages, want %d", what, got, copies*2*m.config.Layers)
		}
		m.copies += copies
		m.store(what, ids, counts, positions, slots[1:])
		return what
	}
	if len(slots) != 1 {
		m.t.Fatalf("%s: %d slots beside an error", what, len(slots)-1)
	}
	m.unchanged(what, before)
	return what
}

// need is the number of pages that an extension takes, in closed form: of the
// k sequences that are going to write in a page of r tables, all must copy it
// if r > k, all but one otherwise. It starts from the tables before the
// extension, without the pages that it has coded; free is what is free then.
func (m *machine) need(before snapshot, ids []kvcache.ID, counts []int) (pages, copies, free int) {
	size := m.config.PageSize
	refs, writers, had := map[int32]int{}, map[int32]int{}, map[int32]bool{}
	for i, id := range m.live {
		was, is := table(before.batch, i), m.lower(id).Pages
		for k, page := range was.Indices {
			if !was.IsCoded(k) {
				had[page] = true
				if !is.IsCoded(k) {
					refs[page]++
				}
			}
		}
		i := slices.Index(ids, id)
		if i < 0 || counts[i] == 0 {
			continue
		}
		n := int(before.batch.SeqLens[slices.Index(m.live, id)])
		pages += (n+counts[i]+size-1)/size - (n+size-1)/size
		if n%size > 0 {
			writers[was.Indices[len(was.Indices)-1]]++
		}
	}
	for page, k := range writers {
		if refs[page] > k {
			copies += k
		} else {
			copies += k - 1
		}
	}
	return pages + copies, copies, before.stats.Free + len(had) - len(refs)
}

// store appends new tokens to the oracle and to all layers. A failed Append is
// tried again.
func (m *machine) store(what string, ids []kvcache.ID, counts []int, positions, slots []int32) {
	var batch []token
	for i, id := range ids {
		s := m.oracle[id]
		for range counts[i] {
			if len(positions) > 0 {
				s.next, positions = positions[0], positions[1:]
			}
			m.tokens++
			tok := token{m.tokens, s.next}
			s.next++
			s.tokens, batch = append(s.tokens, tok), append(batch, tok)
		}
	}
	for layer := range m.config.Layers {
		key, value := rowsOf(m.config, layer, batch)
		if m.in.below(8) == 0 {
			m.backend.failAppend.Store(1)
			if err := m.cache.Append(layer, slots, key, value); !errors.Is(err, errInjected) {
				m.t.Fatalf("%s: Append lost the backend's error: %v", what, err)
			}
		}
		m.ok(what, m.cache.Append(layer, slots, key, value))
	}
}

// misuse does what must be refused.
func (m *machine) misuse() string {
	id, s := m.pick()
	gone := kvcache.ID(0)
	if len(m.freed) > 0 {
		gone = m.freed[m.in.below(len(m.freed))]
	}
	unknown, value, long := new(*kvcache.UnknownSequenceError), new(*kvcache.ValueError), new(*kvcache.TooLongError)
	tooMany := any(long)
	if len(s.tokens) == 0 && s.next == 0 && math.MaxInt == math.MaxInt32 { // the longest that a sequence can be
		tooMany = new(*kvcache.OutOfPagesError)
	}
	extend := func(seqs []kvcache.ID, counts []int, positions []int32) error {
		_, err := m.cache.ExtendAt(seqs, counts, positions, nil)
		return err
	}
	fork := func(id kvcache.ID) error { _, err := m.cache.Fork(id); return err }
	cases := []struct {
		what   string
		call   func() error
		target any
	}{
		{"Extend freed", func() error { return extend([]kvcache.ID{id, gone}, []int{1, 1}, nil) }, unknown},
		{"Extend twice", func() error { return extend([]kvcache.ID{id, id}, []int{1, 1}, nil) }, value},
		{"Extend by −1", func() error { return extend([]kvcache.ID{id}, []int{-1}, nil) }, value},
		{"Extend by the largest int", func() error { return extend([]kvcache.ID{id}, []int{math.MaxInt}, nil) }, tooMany},
		{"Extend without counts", func() error { return extend([]kvcache.ID{id}, nil, nil) }, value},
		{"Extend with few positions", func() error { return extend([]kvcache.ID{id}, []int{2}, []int32{1}) }, value},
		{"Extend at −1", func() error { return extend([]kvcache.ID{id}, []int{1}, []int32{-1}) }, value},
		{"Fork freed", func() error { return fork(gone) }, unknown},
		{"Free freed", func() error { return m.cache.Free(gone) }, unknown},
		{"Truncate freed", func() error { return m.cache.Truncate(gone, 0) }, unknown},
		{"Truncate to more", func() error { return m.cache.Truncate(id, len(s.tokens)+1) }, value},
		{"Truncate to −1", func() error { return m.cache.Truncate(id, -1) }, value},
		{"Drop freed", func() error { return m.cache.Drop(gone, 0, 0) }, unknown},
		{"Drop past the end", func() error { return m.cache.Drop(id, 0, len(s.tokens)+1) }, value},
		{"Drop before the start", func() error { return m.cache.Drop(id, -1, 0) }, value},
		{"Lower freed", func() error { return m.cache.Sequences(id, gone).LowerKV(&kernel.Batch{}) }, unknown},
		{"Lower to nil", func() error { return m.cache.Sequences(id).LowerKV(nil) }, value},
	}
	before := m.snapshot()
	c := cases[m.in.below(len(cases))]
	if err := c.call(); !errors.As(err, c.target) {
		m.t.Fatalf("%s: error %v, want a %v", c.what, err, reflect.TypeOf(c.target).Elem())
	}
	m.unchanged(c.what, before)
	return c.what
}

func (m *machine) lower(ids ...kvcache.ID) *kernel.Batch {
	var batch kernel.Batch
	m.ok("LowerKV", m.cache.Sequences(ids...).LowerKV(&batch))
	return &batch
}

// snapshot is all that the cache shows of itself but the rows, which check
// compares with the oracle.
type snapshot struct {
	stats     kvcache.Stats
	batch     *kernel.Batch
	positions [][]int32
}

func (m *machine) snapshot() snapshot {
	s := snapshot{stats: m.cache.Stats(), batch: m.lower(m.live...)}
	for _, id := range m.live {
		p, err := m.cache.Positions(id, nil)
		m.ok("Positions", err)
		s.positions = append(s.positions, p)
	}
	return s
}

func (m *machine) unchanged(what string, before snapshot) {
	m.t.Helper()
	if after := m.snapshot(); !reflect.DeepEqual(after, before) {
		m.t.Fatalf("%s was refused and changed\n%+v to\n%+v", what, before, after)
	}
}

// check compares the cache with the oracle, and fills every row that no
// sequence can see with NaN: what reads one of them later shows it.
func (m *machine) check(what string) {
	m.t.Helper()
	m.ok("after "+what, m.cache.CheckIntegrity())
	visible, codedVisible := make([]bool, m.config.Pages*m.config.PageSize), make([]bool, m.config.CodedPages)
	tokens := int64(0)
	for _, id := range m.live {
		m.checkSequence(what, id, visible, codedVisible)
		tokens += int64(len(m.oracle[id].tokens))
	}
	if s := m.cache.Stats(); s.Tokens != tokens || s.Sequences != len(m.live) || s.Free+s.Used+s.Cached != m.config.Pages {
		m.t.Fatalf("after %s: %+v, want %d tokens of %d sequences", what, s, tokens, len(m.live))
	}
	m.checkPositions(what)
	for slot, seen := range visible {
		if !seen {
			poison(m.cache, int64(slot))
		}
	}
	for page, seen := range codedVisible {
		if !seen {
			poisonCoded(m.cache, int64(page))
		}
	}
}

func (m *machine) checkSequence(what string, id kvcache.ID, visible, codedVisible []bool) {
	m.t.Helper()
	want, batch, size := m.oracle[id].tokens, m.lower(id), m.config.PageSize
	if n, err := m.cache.Len(id); err != nil || n != len(want) || batch.SeqLens[0] != int32(n) {
		m.t.Fatalf("after %s: sequence %d has %d keys (%v), %d lowered, want %d", what, id, n, err, batch.SeqLens[0], len(want))
	}
	positions, err := m.cache.Positions(id, nil)
	m.ok("Positions", err)
	for k, page := range batch.Pages.Indices {
		if batch.Pages.IsCoded(k) {
			codedVisible[page] = true
		}
	}
	for layer := range m.config.Layers {
		key, value, err := m.cache.Gather(layer, id)
		m.ok("Gather", err)
		wantKey, wantValue := m.storedRows(layer, want, batch)
		cacheKey, cacheValue := m.cache.KeyView(layer), m.cache.ValueView(layer)
		for j, tok := range want {
			slot := int(batch.Pages.Indices[j/size])*size + j%size
			if batch.Pages.IsCoded(j / size) {
				slot = -1
			} else {
				visible[slot] = true
			}
			if positions[j] != tok.position {
				m.t.Fatalf("after %s: sequence %d key %d has position %d, want %d", what, id, j, positions[j], tok.position)
			}
			if !sameRow(&wantKey, j, &key, &cacheKey, slot) || !sameRow(&wantValue, j, &value, &cacheValue, slot) {
				m.t.Fatalf("after %s: layer %d sequence %d key %d in slot %d is not token %d", what, layer, id, j, slot, tok.value)
			}
		}
	}
}

// sameRow compares row j of want with that of dense and, if it is in one, with
// the slot of cache.
func sameRow(want *tensor.View, j int, dense, cache *tensor.View, slot int) bool {
	size := cache.Shape[1]
	for h := range want.Shape[1] {
		for d := range want.Shape[2] {
			x := want.At(int64(j), h, d)
			if dense.At(int64(j), h, d) != x || slot >= 0 && cache.At(int64(slot)/size, int64(slot)%size, h, d) != x {
				return false
			}
		}
	}
	return true
}

func (m *machine) checkPositions(what string) {
	m.t.Helper()
	identity, want := true, []int32{-7}
	for _, id := range m.live {
		for j, tok := range m.oracle[id].tokens {
			identity = identity && tok.position == int32(j)
			want = append(want, tok.position)
		}
	}
	if identity {
		want = nil
	}
	if got := m.cache.Sequences(m.live...).KeyPositions([]int32{-7}); !slices.Equal(got, want) || identity != (got == nil) {
		m.t.Fatalf("after %s: KeyPositions %v, want %v", what, got, want)
	}
}

func poison(c *kvcache.Cache, slot int64) {
	for layer := range c.Config().Layers {
		for _, v := range []tensor.View{c.KeyView(layer), c.ValueView(layer)} {
			for h := range v.Shape[2] {
				for d := range v.Shape[3] {
					v.Set(float32(math.NaN()), slot/v.Shape[1], slot%v.Shape[1], h, d)
				}
			}
		}
	}
}

// TestOracle: after any operations a cache holds what a map of token lists
// holds, and what is refused changes nothing.
func TestOracle(t *testing.T) {
	runs := 150
	if testing.Short() {
		runs = 30
	}
	var fulls, faults, copies, coded, cut, failedCodes, refused, applied, failedApplies int
	for seed := range uint64(runs) {
		rng := rand.New(rand.NewPCG(seed, 1))
		input := make([]byte, 3000)
		for i := range input {
			input[i] = byte(rng.Uint32())
		}
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			m := newMachine(t, input)
			m.run()
			fulls, faults, copies = fulls+m.fulls, faults+m.faults, copies+m.copies
			applied, failedApplies = applied+m.applied, failedApplies+m.failedApplies
			coded, cut, failedCodes, refused = coded+m.coded, cut+m.cut, failedCodes+m.failedCodes, refused+m.refused
		})
	}
	if fulls < runs || faults < runs/10 || copies < runs {
		t.Errorf("the runs met %d full caches, %d faults and %d copies: too few to mean anything", fulls, faults, copies)
	}
	if applied < 40*runs || failedApplies < runs/2 {
		t.Errorf("the runs met %d keys that Apply dropped and %d faults of it: too few to mean anything", applied, failedApplies)
	}
	if coded < 5*runs || cut < runs/2 || failedCodes < runs/10 || refused < runs {
		t.Errorf("the runs met %d coded pages, %d that cannot be, %d Truncates into one and %d faults of coding: too few to mean anything", coded, refused, cut, failedCodes)
	}
}

// FuzzCache is TestOracle with the operations of the fuzzer.
func FuzzCache(f *testing.F) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 2))
		input := make([]byte, 50*(seed+1))
		for i := range input {
			input[i] = byte(rng.Uint32())
		}
		f.Add(input)
	}
	f.Fuzz(func(t *testing.T, input []byte) { newMachine(t, input).run() })
}
