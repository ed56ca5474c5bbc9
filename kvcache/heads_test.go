package kvcache_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// headOracle is what the model knows of a sequence of a HeadCache: the values of
// its tokens, and which of them each stream has kept.
type headOracle struct {
	tokens []int
	kept   [][]int32 // [layers·heads] positions
}

func (o *headOracle) clone() *headOracle {
	c := &headOracle{tokens: slices.Clone(o.tokens)}
	for _, k := range o.kept {
		c.kept = append(c.kept, slices.Clone(k))
	}
	return c
}

// headMachine drives a HeadCache and its oracle at random.
type headMachine struct {
	t       *testing.T
	rng     *rand.Rand
	backend *hostBackend
	config  kvcache.Config
	cache   *kvcache.HeadCache
	oracle  map[kvcache.ID]*headOracle
	live    []kvcache.ID
	next    int

	fulls, faults, dropped, cut int
	refused, coded              int // for coded pages; pages that were coded, at each check
}

// TestHeadCacheOracle: after any operations each head of each layer holds the
// keys that it should, and what is refused changes nothing.
func TestHeadCacheOracle(t *testing.T) {
	var fulls, faults, dropped, cut, refused, coded int
	for seed := range uint64(40) {
		m := newHeadMachine(t, seed)
		for range 120 {
			m.check(m.step())
		}
		for _, id := range m.live {
			if err := m.cache.Free(id); err != nil {
				t.Fatal(err)
			}
		}
		if s := m.cache.Stats(); s.Used != 0 || s.CodedUsed != 0 || s.Sequences != 0 {
			t.Fatalf("seed %d: %+v is left", seed, s)
		}
		refused, coded = refused+m.refused, coded+m.coded
		fulls, faults, dropped, cut = fulls+m.fulls, faults+m.faults, dropped+m.dropped, cut+m.cut
	}
	if fulls < 10 || faults < 20 || dropped < 1000 || cut < 20 || refused < 20 || coded < 1000 {
		t.Errorf("the runs met %d full caches, %d faults, %d evicted keys, %d Truncates, %d refusals and %d coded pages: too few to mean anything", fulls, faults, dropped, cut, refused, coded)
	}
}

func newHeadMachine(t *testing.T, seed uint64) *headMachine {
	rng := rand.New(rand.NewPCG(seed, 9))
	m := &headMachine{t: t, rng: rng, backend: &hostBackend{}, oracle: map[kvcache.ID]*headOracle{}}
	m.config = kvcache.Config{
		PageSize: 1 + rng.IntN(5), Layers: 1 + rng.IntN(2), KVHeads: 1 + rng.IntN(3), HeadDim: 8, ValueDim: 8,
		Pages: 30 + rng.IntN(150), DType: tensor.F32, KeyStorage: kernel.PreRoPE,
	}
	if seed%3 == 0 {
		m.config.Coding, m.config.CodedPages = kernel.KIVI(kernel.Int8, 8), 30+rng.IntN(100)
	}
	var err error
	if m.cache, err = kvcache.NewHeads(m.backend, m.config); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *headMachine) step() string {
	op := m.rng.IntN(10)
	if len(m.live) == 0 || op == 0 && len(m.live) < 4 {
		id := m.cache.NewSequence()
		m.oracle[id], m.live = &headOracle{kept: make([][]int32, m.config.Layers*m.config.KVHeads)}, append(m.live, id)
		return "NewSequence"
	}
	id := m.live[m.rng.IntN(len(m.live))]
	o := m.oracle[id]
	switch {
	case op == 1 && len(m.live) < 4:
		other, err := m.cache.Fork(id)
		m.ok("Fork", err)
		m.oracle[other], m.live = o.clone(), append(m.live, other)
		return "Fork"
	case op == 2:
		m.ok("Free", m.cache.Free(id))
		delete(m.oracle, id)
		m.live = slices.DeleteFunc(m.live, func(x kvcache.ID) bool { return x == id })
		return "Free"
	case op == 3:
		n := len(o.tokens) - m.rng.IntN(min(len(o.tokens), 12)+1)
		var cut *kvcache.CodedPageError
		if err := m.cache.Truncate(id, n); errors.As(err, &cut) {
			m.refused++
			return "Truncate into a coded page"
		} else {
			m.ok("Truncate", err)
		}
		if n < len(o.tokens) {
			m.cut++
		}
		o.tokens = o.tokens[:n]
		for i, kept := range o.kept {
			o.kept[i] = slices.DeleteFunc(kept, func(p int32) bool { return int(p) >= n })
		}
		return fmt.Sprintf("Truncate to %d", n)
	case op < 7:
		return m.apply()
	default:
		return m.extend()
	}
}

func (m *headMachine) ok(what string, err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}

// apply drops keys of some sequences, others in each head.
func (m *headMachine) apply() string {
	var ids []kvcache.ID
	var plans []kvcache.Plan
	after := map[kvcache.ID]*headOracle{}
	for _, id := range m.live {
		if m.rng.IntN(2) == 0 {
			continue
		}
		ids, after[id] = append(ids, id), m.oracle[id].clone()
		for i, kept := range after[id].kept {
			var p kvcache.Plan
			var left []int32
			odds, block, stays := m.rng.IntN(4), 1, false
			if m.config.Coded() && m.rng.IntN(4) > 0 {
				block = m.config.PageSize
			}
			for j, position := range kept {
				if j%block == 0 {
					stays = m.rng.IntN(4) < odds || odds == 3
				}
				if stays {
					p.Keep, left = append(p.Keep, int32(j)), append(left, position)
				}
			}
			plans, after[id].kept[i] = append(plans, p), left
		}
	}
	if m.rng.IntN(4) == 0 {
		m.backend.failGather.Store(1 + int64(m.rng.IntN(2)))
	}
	err := m.cache.Apply(ids, plans)
	m.backend.failGather.Store(0)
	var full *kvcache.OutOfPagesError
	var rows *kvcache.CodedRowsError
	switch {
	case errors.As(err, &full):
		m.fulls++
	case errors.Is(err, errGather):
		m.faults++
	case errors.As(err, &rows):
		m.refused++
	default:
		m.ok("Apply", err)
		for id, o := range after {
			for i := range o.kept {
				m.dropped += len(m.oracle[id].kept[i]) - len(o.kept[i])
			}
			m.oracle[id] = o
		}
	}
	return fmt.Sprintf("Apply(%v, %v): %v", ids, plans, err)
}

func (m *headMachine) extend() string {
	var ids []kvcache.ID
	var counts []int
	var batch []token
	for _, id := range m.live {
		if n := m.rng.IntN(9); m.rng.IntN(2) == 0 {
			ids, counts = append(ids, id), append(counts, n)
		}
	}
	if m.rng.IntN(5) == 0 {
		m.backend.failCopy.Store(1)
	}
	slots, err := m.cache.Extend(ids, counts, nil)
	m.backend.failCopy.Store(0)
	what := fmt.Sprintf("Extend(%v, %v): %v", ids, counts, err)
	var full *kvcache.OutOfPagesError
	switch {
	case errors.As(err, &full):
		m.fulls++
		return what
	case errors.Is(err, errInjected):
		m.faults++
		return what
	}
	m.ok(what, err)
	for i, id := range ids {
		o := m.oracle[id]
		for range counts[i] {
			m.next++
			for k := range o.kept {
				o.kept[k] = append(o.kept[k], int32(len(o.tokens)))
			}
			o.tokens, batch = append(o.tokens, m.next), append(batch, token{value: m.next})
		}
	}
	for layer := range m.config.Layers {
		key, value := rowsOf(m.config, layer, batch)
		m.ok("Append", m.cache.Append(layer, slots, key, value))
	}
	return what
}

func (m *headMachine) check(what string) {
	m.t.Helper()
	m.ok("after "+what, m.cache.CheckIntegrity())
	m.coded += m.cache.Stats().CodedUsed
	for _, id := range m.live {
		o := m.oracle[id]
		if n, err := m.cache.Tokens(id); err != nil || n != len(o.tokens) {
			m.t.Fatalf("after %s: %d tokens (%v), want %d", what, n, err, len(o.tokens))
		}
		for i, kept := range o.kept {
			layer, head := i/m.config.KVHeads, i%m.config.KVHeads
			positions, err := m.cache.Positions(id, layer, head, nil)
			if err != nil || !slices.Equal(positions, kept) {
				m.t.Fatalf("after %s: layer %d head %d has positions %v (%v), want %v", what, layer, head, positions, err, kept)
			}
			key, value, err := m.cache.Gather(id, layer, head)
			m.ok("Gather", err)
			for j, p := range kept {
				for d := range int64(m.config.HeadDim) {
					x, y := element(o.tokens[p], layer, false, int64(head), d), element(o.tokens[p], layer, true, int64(head), d)
					if m.config.Coded() && o.tokens[p]%23 == 0 && head == 0 && d == 0 {
						x = key.At(int64(j), 0, d) // huge, in one of the layers: its page stays plain
					}
					if m.far(key.At(int64(j), 0, d), x) || m.far(value.At(int64(j), 0, d), y) {
						m.t.Fatalf("after %s: layer %d head %d key %d is not token %d", what, layer, head, j, o.tokens[p])
					}
				}
			}
		}
	}
}

// TestHeadCacheAttends: a layer read at once and head by head give the same bits,
// and both are attention over the keys that each head has kept.
func TestHeadCacheAttends(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	rng := rand.New(rand.NewPCG(5, 6))
	const layers, heads, kvHeads, dim = 2, 6, 2, 16
	c, err := kvcache.NewHeads(b, kvcache.Config{Layers: layers, Pages: 200, PageSize: 8, KVHeads: kvHeads, HeadDim: dim, ValueDim: dim, DType: tensor.F32})
	if err != nil {
		t.Fatal(err)
	}
	a, err := attention.New(b, attention.Config{Heads: heads / kvHeads, KVHeads: 1, HeadDim: dim, DType: tensor.F32, PageSize: 8, Mask: attention.Causal()})
	if err != nil {
		t.Fatal(err)
	}
	ids, counts := []kvcache.ID{c.NewSequence(), c.NewSequence()}, []int{70, 31}
	slots, err := c.Extend(ids, counts, nil)
	if err != nil {
		t.Fatal(err)
	}
	for layer := range layers {
		if err := c.Append(layer, slots, normal(rng, 101, kvHeads, dim), normal(rng, 101, kvHeads, dim)); err != nil {
			t.Fatal(err)
		}
	}
	var plans []kvcache.Plan
	for i := range ids {
		for range layers * kvHeads {
			p := kvcache.Plan{Keep: []int32{0}}
			for j := int32(1); int(j) < counts[i]; j++ {
				if rng.IntN(2) == 0 {
					p.Keep = append(p.Keep, j)
				}
			}
			plans = append(plans, p)
		}
	}
	used := c.Stats().Used
	if err := c.Apply(ids, plans); err != nil {
		t.Fatal(err)
	}
	if now := c.Stats().Used; now > used*3/4 {
		t.Errorf("%d pages used of %d after half the keys went", now, used)
	}
	run := func(v *kvcache.View, lens []int, query, out tensor.View) {
		t.Helper()
		args := kernel.Args{Query: query, Out: out}
		err := errors.Join(a.Plan(attention.Step{QueryLens: lens, KV: v}), c.Bind(&args))
		if err == nil {
			err = a.Run(&args)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	query := normal(rng, len(ids), heads, dim)
	var v kvcache.View
	for layer := range layers {
		all, apart := tensor.New(tensor.F32, 2, heads, dim), tensor.New(tensor.F32, 2, heads, dim)
		q, err1 := c.Split(query)
		o, err2 := c.Split(all)
		if err := errors.Join(err1, err2, c.Layer(&v, layer, ids...)); err != nil {
			t.Fatal(err)
		}
		run(&v, []int{1, 1, 1, 1}, q, o)
		for head := range kvHeads {
			lo, hi := int64(head*heads/kvHeads), int64((head+1)*heads/kvHeads)
			if err := c.Head(&v, layer, head, ids...); err != nil {
				t.Fatal(err)
			}
			run(&v, []int{1, 1}, query.Slice(1, lo, hi), apart.Slice(1, lo, hi))
			for i, id := range ids {
				key, value, err := c.Gather(id, layer, head)
				if err != nil {
					t.Fatal(err)
				}
				every := make([]int32, key.Shape[0])
				for j := range every {
					every[j] = int32(j)
				}
				for h := lo; h < hi; h++ {
					for d, want := range attend(&query, &key, &value, int64(i), h, 0, every, nil) {
						got := all.At(int64(i), h, int64(d))
						if math.Abs(float64(got)-want) > 1e-5 || got != apart.At(int64(i), h, int64(d)) {
							t.Fatalf("layer %d sequence %d head %d: %v at once, %v apart, want %v", layer, i, h, got, apart.At(int64(i), h, int64(d)), want)
						}
					}
				}
			}
		}
	}
}

// TestHeadCacheRefuses: bad arguments are typed errors.
func TestHeadCacheRefuses(t *testing.T) {
	config := kvcache.Config{Layers: 2, Pages: 8, PageSize: 2, KVHeads: 2, HeadDim: 4, ValueDim: 4, DType: tensor.F8E4M3}
	b := &hostBackend{}
	c, err := kvcache.NewHeads(b, config)
	if err != nil {
		t.Fatal(err)
	}
	id := c.NewSequence()
	var v kvcache.View
	fails := func(edit func(*kvcache.Config)) error {
		c := config
		edit(&c)
		_, err := kvcache.NewHeads(b, c)
		return err
	}
	extend := func(ids []kvcache.ID, counts ...int) error { _, err := c.Extend(ids, counts, nil); return err }
	length := func(id kvcache.ID, layer, head int) error { _, err := c.Len(id, layer, head); return err }
	split := func(v tensor.View) error { _, err := c.Split(v); return err }
	value, unknown, full := new(*kvcache.ValueError), new(*kvcache.UnknownSequenceError), new(*kvcache.OutOfPagesError)
	for i, tt := range []struct {
		err    error
		target any
	}{
		{fails(func(c *kvcache.Config) { c.Layers = 0 }), value},
		{fails(func(c *kvcache.Config) { c.KVHeads = 1 << 20 }), value},
		{fails(func(c *kvcache.Config) { c.Scales = make([]kvcache.Scales, 2) }), value},
		{fails(func(c *kvcache.Config) { c.Pages = 0 }), value},
		{extend([]kvcache.ID{id, id}, 1, 1), value}, {extend([]kvcache.ID{id}), value}, {extend([]kvcache.ID{id}, -1), value},
		{extend([]kvcache.ID{7}, 1), unknown}, {extend([]kvcache.ID{id}, 5), full},
		{length(id, 2, 0), value}, {length(id, 0, 2), value}, {length(0, 0, 0), unknown},
		{c.Truncate(id, 1), value}, {c.Truncate(0, 0), unknown}, {c.Free(0), unknown},
		{c.Layer(&v, 2, id), value}, {c.Head(&v, 0, 2, id), value}, {c.Layer(&v, 0, id, 0), unknown},
		{c.Apply([]kvcache.ID{id}, make([]kvcache.Plan, 3)), value}, {c.Apply([]kvcache.ID{0}, make([]kvcache.Plan, 4)), unknown},
		{c.Append(2, nil, tensor.View{}, tensor.View{}), value}, {c.Append(0, nil, tensor.View{}, tensor.View{}), value},
		{c.Append(0, make([]int32, 3), tensor.New(tensor.F32, 1, 2, 4), tensor.New(tensor.F32, 1, 2, 4)), value},
		{split(tensor.New(tensor.F32, 2, 3, 4)), value}, {split(tensor.New(tensor.F32, 2, 6, 4).Slice(1, 0, 4)), value},
	} {
		if !errors.As(tt.err, tt.target) {
			t.Errorf("case %d: error %v, want a %T", i, tt.err, tt.target)
		}
	}
	if err := c.CheckIntegrity(); err != nil {
		t.Error(err)
	}
}

// far reports that a stored element is not that of the token: not the same bits, or of
// elements of 0 to 255 that may be coded, more than the step of a code away.
func (m *headMachine) far(got, want float32) bool {
	if !m.config.Coded() {
		return got != want
	}
	return math.Abs(float64(got-want)) > 1
}

// TestHeadCacheConcurrent: sequences of one cache may be worked on at the same time.
func TestHeadCacheConcurrent(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 2})
	defer b.Close()
	c, err := kvcache.NewHeads(b, kvcache.Config{Layers: 2, Pages: 600, PageSize: 4, KVHeads: 2, HeadDim: 4, ValueDim: 4, DType: tensor.F32})
	if err != nil {
		t.Fatal(err)
	}
	prompt := c.NewSequence()
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(worker), 11))
			for range 30 {
				if err := life(c, prompt, rng); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	if err := errors.Join(c.Free(prompt), c.CheckIntegrity()); err != nil || c.Stats().Used != 0 {
		t.Errorf("%v, %d pages are left", err, c.Stats().Used)
	}
}

// life is that of a fork: it grows, is cut down, and ends.
func life(c *kvcache.HeadCache, prompt kvcache.ID, rng *rand.Rand) error {
	id, err := c.Fork(prompt)
	if err != nil {
		return err
	}
	for range 3 {
		n := 1 + rng.IntN(20)
		slots, err := c.Extend([]kvcache.ID{id}, []int{n}, nil)
		if err != nil {
			return err
		}
		for layer := range c.Config().Layers {
			if err := c.Append(layer, slots, normal(rng, n, 2, 4), normal(rng, n, 2, 4)); err != nil {
				return err
			}
		}
		plans := make([]kvcache.Plan, 4)
		for i := range plans {
			length, err := c.Len(id, i/2, i%2)
			if err != nil {
				return err
			}
			for j := range length {
				if rng.IntN(2) == 0 {
					plans[i].Keep = append(plans[i].Keep, int32(j))
				}
			}
		}
		if err := errors.Join(c.Apply([]kvcache.ID{id}, plans), c.CheckIntegrity()); err != nil {
			return err
		}
	}
	return c.Free(id)
}

// TestHeadCacheStepsAllocateNothing: a step of one token takes no memory of Go, but
// now and then for the positions of a sequence from which keys were evicted.
func TestHeadCacheStepsAllocateNothing(t *testing.T) {
	b := cpu.New(cpu.Options{Workers: 1})
	defer b.Close()
	c, err := kvcache.NewHeads(b, kvcache.Config{Layers: 2, Pages: 4000, PageSize: 4, KVHeads: 2, HeadDim: 4, ValueDim: 4, DType: tensor.F32})
	if err != nil {
		t.Fatal(err)
	}
	ids, counts := []kvcache.ID{c.NewSequence()}, []int{100}
	slots, err := c.Extend(ids, counts, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(ids, []kvcache.Plan{{}, {Keep: []int32{1, 99}}, {Keep: []int32{0}}, {Keep: []int32{7}}}); err != nil {
		t.Fatal(err)
	}
	rows := tensor.New(tensor.F32, 1, 2, 4)
	var v kvcache.View
	var batch kernel.Batch
	counts[0] = 1
	if n := testing.AllocsPerRun(300, func() {
		slots, err = c.Extend(ids, counts, slots[:0])
		for layer := range 2 {
			if err == nil {
				err = c.Append(layer, slots, rows, rows)
			}
			if err == nil {
				err = c.Layer(&v, layer, ids...)
			}
			if err == nil {
				err = v.LowerKV(&batch)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}); n != 0 && pooled {
		t.Errorf("a step allocates %v times, want 0", n)
	}
}
