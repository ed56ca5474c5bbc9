package prefix_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/tensor"
)

// weak is a Hasher by which every page of every namespace collides.
type weak struct{}

func (weak) Root(*prefix.Prompt) prefix.Hash                            { return prefix.Hash{} }
func (weak) Page(prefix.Hash, *prefix.Prompt, int, int) (h prefix.Hash) { return h }

// mark is what a model computes of token j: a number that depends on all that
// the token sees.
func mark(p *prefix.Prompt, j int) float32 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%q %q %q", p.Namespace, p.Salt, p.Adapter)
	for _, m := range p.Media {
		if m.Offset <= j {
			fmt.Fprintf(h, "%q %d", m.ID, m.Offset)
		}
	}
	binary.Write(h, binary.LittleEndian, p.Tokens[:j+1])
	return float32(h.Sum64() >> 56)
}

// rig is one index over one cache.
type rig struct {
	name      string
	cache     *kvcache.Cache
	index     prefix.Index
	sequences map[int]kvcache.ID
	leases    map[int]*prefix.Lease
}

// entry is what the oracle knows of a page of an index.
type entry struct {
	key, parent      string         // of the page and all before it; of those alone
	pages            []kvcache.Page // in each rig
	used, born, hits int
	priority, locks  int
}

// machine drives indexes and an oracle by a string of bytes. The oracle is a map
// of prefixes, and picks what to evict by looking at all of them.
type machine struct {
	t       testing.TB
	in      []byte
	order   prefix.Order
	size    int
	coded   bool
	rigs    []*rig
	entries map[string]*entry
	prompts map[int]*prefix.Prompt // of the live sequences
	leased  map[int][]*entry
	tick    int
	next    int

	hits, evicted, passed, full, refused, exchanged int
}

func (m *machine) below(n int) int {
	if len(m.in) == 0 || n <= 1 {
		return 0
	}
	x := int(m.in[0])
	m.in = m.in[1:]
	return x % n
}

func newMachine(t testing.TB, input []byte) *machine {
	m := &machine{t: t, in: input, entries: map[string]*entry{}, prompts: map[int]*prefix.Prompt{}, leased: map[int][]*entry{}}
	m.order, m.size, m.coded = prefix.Order(m.below(4)), 1+m.below(4), m.below(4) == 0
	c := kvcache.Config{Layers: 1, Pages: 8 + m.below(60), PageSize: m.size, KVHeads: 1, HeadDim: 2, ValueDim: 1, DType: tensor.F32}
	if m.coded {
		c.Coding, c.CodedPages = kernel.KIVI(kernel.Int8, 1), 1+m.below(20)
	}
	for _, name := range []string{"radix", "chain", "weak chain"} {
		cache, err := kvcache.New(cpu.New(cpu.Options{Workers: 1}), c)
		if err != nil {
			t.Fatal(err)
		}
		r := &rig{name: name, cache: cache, sequences: map[int]kvcache.ID{}, leases: map[int]*prefix.Lease{}}
		switch name {
		case "radix":
			r.index, err = prefix.NewRadix(cache, prefix.Options{Order: m.order})
		case "chain":
			r.index, err = prefix.NewChain(cache, prefix.Options{Order: m.order})
		default:
			r.index, err = prefix.NewChain(cache, prefix.Options{Order: m.order, Hasher: weak{}})
		}
		if err != nil {
			t.Fatal(err)
		}
		m.rigs = append(m.rigs, r)
	}
	return m
}

func (m *machine) run() {
	for range 300 {
		if len(m.in) == 0 {
			return
		}
		m.check(m.step())
	}
}

func (m *machine) step() string {
	switch m.below(14) {
	case 0, 1, 2:
		return m.begin()
	case 3, 4:
		return m.insert()
	case 5, 6:
		return m.grow()
	case 7:
		return m.truncate()
	case 8:
		return m.fork()
	case 9:
		return m.free()
	case 10:
		return m.evict()
	case 11, 12:
		return m.rewrite()
	default:
		if m.below(30) == 0 {
			return m.clear()
		}
		return m.release()
	}
}

// key is all of a prompt that the page ending at token n must agree in.
func (m *machine) key(p *prefix.Prompt, n int) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%q %q %q %v", p.Namespace, p.Salt, p.Adapter, p.Tokens[:n])
	for _, x := range p.Media {
		if x.Offset < n {
			fmt.Fprintf(&b, " %q %d %d", x.ID, x.Offset, x.Length)
		}
	}
	return b.String()
}

// found are the entries of the longest known prefix.
func (m *machine) found(p *prefix.Prompt) (path []*entry) {
	for n := m.size; n <= len(p.Tokens); n += m.size {
		e := m.entries[m.key(p, n)]
		if e == nil {
			break
		}
		path = append(path, e)
	}
	return path
}

func (m *machine) prompt() *prefix.Prompt {
	p := &prefix.Prompt{Priority: m.below(3)}
	// The same string in different places must not be the same namespace.
	for _, s := range []*string{&p.Namespace, &p.Salt, &p.Adapter} {
		if m.below(6) == 0 {
			*s = "x"
		}
	}
	n := m.below(6*m.size + 2)
	for range n {
		p.Tokens = append(p.Tokens, int32(m.below(6)/5))
	}
	if m.below(3) == 0 {
		end := 0
		for range 1 + m.below(2) {
			x := prefix.Media{ID: string(rune('a' + m.below(2))), Offset: end + m.below(m.size+2), Length: 1 + m.below(m.size+1)}
			p.Media, end = append(p.Media, x), x.Offset+x.Length
		}
	}
	return p
}

func (m *machine) fatal(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf(format, args...)
}

func (m *machine) ok(what string, err error) {
	m.t.Helper()
	if err != nil {
		m.fatal("%s: %v", what, err)
	}
}

// begin is the life of a request up to its first step: match, start, extend.
func (m *machine) begin() string {
	if len(m.prompts) > 5 {
		m.free()
	}
	p := m.prompt()
	what := fmt.Sprintf("begin %+v", *p)
	path, id := m.found(p), m.next
	m.next++
	m.tick++
	for _, e := range path {
		e.used, e.hits, e.locks = m.tick, e.hits+1, e.locks+1
	}
	m.hits += len(path)
	grown := true
	for i, r := range m.rigs {
		l, err := r.index.Match(p)
		m.ok(what, err)
		if l.Tokens() != len(path)*m.size {
			m.fatal("%s: %s found %d tokens, want %d", what, r.name, l.Tokens(), len(path)*m.size)
		}
		for k, page := range l.Pages() {
			if page != path[k].pages[i] {
				m.fatal("%s: %s found page %d, want %d", what, r.name, page, path[k].pages[i])
			}
		}
		if r.sequences[id], err = l.Start(); err != nil {
			m.fatal("%s: %v", what, err)
		}
		r.leases[id] = l
		grown = m.extend(r, id, p, l.Tokens()) && grown
	}
	m.leased[id], m.prompts[id] = path, p
	if !grown {
		p.Tokens = p.Tokens[:len(path)*m.size]
		m.trim(p)
		m.check(what)
	}
	if m.below(2) == 0 {
		m.unlock(id)
	}
	return what
}

// extend stores the tokens of p from have on. It may be that nothing fits.
func (m *machine) extend(r *rig, id int, p *prefix.Prompt, have int) bool {
	n := len(p.Tokens) - have
	slots, err := r.cache.Extend([]kvcache.ID{r.sequences[id]}, []int{n}, nil)
	if errors.As(err, new(*kvcache.OutOfPagesError)) {
		m.full++
		return false
	}
	m.ok("Extend", err)
	m.store(r, p, have, slots)
	return true
}

// store stores the tokens of p from have on.
func (m *machine) store(r *rig, p *prefix.Prompt, have int, slots []int32) {
	n := len(p.Tokens) - have
	key, value := tensor.New(tensor.F32, int64(n), 1, 2), tensor.New(tensor.F32, int64(n), 1, 1)
	for j := range n {
		x := mark(p, have+j)
		key.Set(x, int64(j), 0, 0)
		key.Set(-x, int64(j), 0, 1)
		value.Set(x, int64(j), 0, 0)
	}
	m.ok("Append", r.cache.Append(0, slots, key, value))
}

func (m *machine) pick() int {
	if len(m.prompts) == 0 {
		return -1
	}
	ids := slices.Sorted(maps.Keys(m.prompts))
	return ids[m.below(len(ids))]
}

func (m *machine) table(r *rig, id int) []kvcache.Page {
	var b kernel.Batch
	m.ok("LowerKV", r.cache.Sequences(r.sequences[id]).LowerKV(&b))
	pages := make([]kvcache.Page, len(b.Pages.Indices))
	for i, page := range b.Pages.Indices {
		if pages[i] = kvcache.Page(page); b.Pages.IsCoded(i) {
			pages[i] = ^kvcache.Page(page)
		}
	}
	return pages
}

func (m *machine) insert() string {
	id := m.pick()
	if id < 0 {
		return "no insert"
	}
	p := *m.prompts[id]
	p.Tokens = p.Tokens[:len(p.Tokens)-m.below(len(p.Tokens)+1)/2]
	what := fmt.Sprintf("insert %d %+v", id, p)
	m.tick++
	path := m.found(&p)
	for k, e := range path {
		e.used, e.priority = m.tick, max(e.priority, p.Priority)
		for i, r := range m.rigs {
			if page := m.table(r, id)[k]; e.locks == 0 && page.Coded() && !e.pages[i].Coded() {
				e.pages[i] = page
				m.exchanged++
			}
		}
	}
	have := len(path)
	for n := (have + 1) * m.size; n <= len(p.Tokens); n += m.size {
		e := &entry{key: m.key(&p, n), parent: m.key(&p, n-m.size), used: m.tick, born: m.tick, priority: p.Priority}
		for _, r := range m.rigs {
			e.pages = append(e.pages, m.table(r, id)[n/m.size-1])
		}
		m.entries[e.key] = e
	}
	for _, r := range m.rigs {
		if added, err := r.index.Insert(&p, r.sequences[id]); err != nil || added != len(p.Tokens)/m.size-have {
			m.fatal("%s: %s added %d pages (%v), want %d", what, r.name, added, err, len(p.Tokens)/m.size-have)
		}
	}
	if m.below(8) == 0 { // more than the sequence has
		p.Tokens = append(slices.Clone(m.prompts[id].Tokens), make([]int32, m.size)...)
		for _, r := range m.rigs {
			if _, err := r.index.Insert(&p, r.sequences[id]); !errors.As(err, new(*prefix.ValueError)) {
				m.fatal("%s: Insert of more than there is: %v", r.name, err)
			}
		}
		m.refused++
	}
	return what
}

func (m *machine) grow() string {
	id := m.pick()
	if id < 0 {
		return "no grow"
	}
	p := m.prompts[id]
	have := len(p.Tokens)
	for range 1 + m.below(2*m.size) {
		p.Tokens = append(p.Tokens[:len(p.Tokens):len(p.Tokens)], int32(m.below(2)))
	}
	grown := true
	for _, r := range m.rigs {
		grown = m.extend(r, id, p, have) && grown
	}
	if !grown {
		p.Tokens = p.Tokens[:have]
	}
	return fmt.Sprintf("grow %d", id)
}

// rewrite puts another token in the place of the last, in pages that an index
// and other sequences may have.
func (m *machine) rewrite() string {
	id := m.pick()
	if id < 0 || len(m.prompts[id].Tokens) == 0 {
		return "no rewrite"
	}
	p := m.prompts[id]
	last := len(p.Tokens) - 1
	p.Tokens = append(slices.Clone(p.Tokens[:last]), 2+int32(m.below(2)))
	refused := false
	for _, r := range m.rigs {
		slots, err := r.cache.Rewrite(r.sequences[id], []int32{int32(last)}, nil)
		if refused = errors.As(err, new(*kvcache.OutOfPagesError)) || m.coded && errors.As(err, new(*kvcache.ValueError)); refused {
			continue
		}
		m.ok("Rewrite", err)
		m.store(r, p, last, slots)
	}
	if refused { // by all alike
		for _, r := range m.rigs {
			if err := r.cache.Truncate(r.sequences[id], last); err != nil {
				last = last / m.size * m.size // coded
				m.ok("Truncate", r.cache.Truncate(r.sequences[id], last))
			}
		}
		p.Tokens = p.Tokens[:last]
		m.trim(p)
	}
	return fmt.Sprintf("rewrite %d", id)
}

// trim cuts the media that the tokens do not reach.
func (m *machine) trim(p *prefix.Prompt) {
	p.Media = slices.Clone(p.Media)
	for i, x := range p.Media {
		if x.Offset >= len(p.Tokens) {
			p.Media = p.Media[:i]
			return
		}
	}
}

func (m *machine) truncate() string {
	id := m.pick()
	if id < 0 {
		return "no truncate"
	}
	p := m.prompts[id]
	n := len(p.Tokens) - m.below(len(p.Tokens)+1)
	what := fmt.Sprintf("truncate %d to %d", id, n)
	for _, r := range m.rigs {
		err := r.cache.Truncate(r.sequences[id], n)
		if m.coded && errors.As(err, new(*kvcache.CodedPageError)) {
			n = n / m.size * m.size
			err = r.cache.Truncate(r.sequences[id], n)
		}
		m.ok(what, err)
	}
	p.Tokens = p.Tokens[:n:n]
	m.trim(p)
	return what
}

func (m *machine) fork() string {
	id := m.pick()
	if id < 0 || len(m.prompts) > 8 {
		return "no fork"
	}
	p := *m.prompts[id]
	p.Tokens, p.Media = slices.Clone(p.Tokens), slices.Clone(p.Media)
	m.prompts[m.next] = &p
	for _, r := range m.rigs {
		other, err := r.cache.Fork(r.sequences[id])
		m.ok("fork", err)
		r.sequences[m.next] = other
	}
	m.next++
	return fmt.Sprintf("fork %d", id)
}

func (m *machine) free() string {
	id := m.pick()
	if id < 0 {
		return "no free"
	}
	for _, r := range m.rigs {
		m.ok("free", r.cache.Free(r.sequences[id]))
		delete(r.sequences, id)
	}
	delete(m.prompts, id)
	return fmt.Sprintf("free %d", id)
}

func (m *machine) unlock(id int) {
	for _, e := range m.leased[id] {
		e.locks--
	}
	delete(m.leased, id)
	for _, r := range m.rigs {
		r.leases[id].Release()
		r.leases[id].Release() // a second call does nothing
		if _, err := r.leases[id].Start(); !errors.As(err, new(*prefix.ValueError)) {
			m.fatal("%s: Start of a released lease: %v", r.name, err)
		}
		delete(r.leases, id)
	}
}

func (m *machine) release() string {
	ids := slices.Sorted(maps.Keys(m.leased))
	if len(ids) == 0 {
		return "no release"
	}
	id := ids[m.below(len(ids))]
	m.unlock(id)
	return fmt.Sprintf("release %d", id)
}

// TestOracle: after any operations both kinds of index know what a map of
// prefixes knows, have evicted what it evicts, and no sequence has a row of
// another's prompt, be hashes as weak as they can be.
func TestOracle(t *testing.T) {
	runs := 80
	if testing.Short() {
		runs = 30
	}
	var hits, evicted, passed, full, refused, exchanged int
	for seed := range uint64(runs) {
		rng := rand.New(rand.NewPCG(seed, 5))
		input := make([]byte, 2500)
		for i := range input {
			input[i] = byte(rng.Uint32())
		}
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			m := newMachine(t, input)
			m.run()
			m.end()
			hits, evicted, passed, full, refused, exchanged = hits+m.hits, evicted+m.evicted, passed+m.passed, full+m.full, refused+m.refused, exchanged+m.exchanged
		})
	}
	t.Logf("%d pages found, %d evicted, %d passed over, %d full caches, %d refused, %d exchanged for coded ones", hits, evicted, passed, full, refused, exchanged)
	if hits < 5*runs || evicted < 5*runs || passed < runs || full < runs || refused < runs/4 || exchanged < runs/4 {
		t.Error("too few of one to mean anything")
	}
}

// FuzzIndex is TestOracle with the operations of the fuzzer.
func FuzzIndex(f *testing.F) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 6))
		input := make([]byte, 100*(seed+1))
		for i := range input {
			input[i] = byte(rng.Uint32())
		}
		f.Add(input)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		m := newMachine(t, input)
		m.run()
		m.end()
	})
}
