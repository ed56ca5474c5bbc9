package prefix_test

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/prefix"
)

// victim is the entry to be evicted next: no other begins with it, and neither
// a lease nor, but for all, a sequence has it.
func (m *machine) victim(all bool) (v *entry) {
	inTable := map[kvcache.Page]bool{}
	for id := range m.prompts {
		for _, page := range m.table(m.rigs[0], id) {
			inTable[page] = true
		}
	}
	inner := map[string]bool{}
	for _, e := range m.entries {
		inner[e.parent] = true
	}
	for _, e := range m.entries {
		if inner[e.key] || e.locks > 0 {
			continue
		}
		if inTable[e.pages[0]] && !all {
			m.passed++
			continue
		}
		if v == nil || m.before(e, v) {
			v = e
		}
	}
	return v
}

func (m *machine) before(a, b *entry) bool {
	key := func(e *entry) []int {
		return map[prefix.Order][]int{prefix.LRU: {e.used}, prefix.LFU: {e.hits, e.used}, prefix.FIFO: {e.born}, prefix.ByPriority: {e.priority, e.used}}[m.order]
	}
	return slices.Compare(key(a), key(b)) < 0
}

func (m *machine) evict() string {
	n := m.below(24)
	freed := 0
	for ; freed < n; freed++ {
		v := m.victim(false)
		if v == nil {
			break
		}
		delete(m.entries, v.key)
	}
	m.evicted += freed
	for _, r := range m.rigs {
		before := r.cache.Stats()
		got := r.index.Evict(n)
		after := r.cache.Stats()
		if gained := after.Free + after.CodedFree - before.Free - before.CodedFree; got != freed || gained != freed {
			m.fatal("%s evicted %d of %d pages and freed %d, want %d", r.name, got, n, gained, freed)
		}
	}
	return fmt.Sprintf("evict %d", n)
}

func (m *machine) clear() string {
	for v := m.victim(true); v != nil; v = m.victim(true) {
		delete(m.entries, v.key)
	}
	for _, r := range m.rigs {
		if n := r.index.Clear(); n != len(m.entries) {
			m.fatal("%s keeps %d pages after Clear, want %d", r.name, n, len(m.entries))
		}
	}
	return "clear"
}

// check compares everything: which pages each index holds, that nothing else is
// held, and what is in the sequences.
func (m *machine) check(what string) {
	m.t.Helper()
	for i, r := range m.rigs {
		m.ok("after "+what, r.cache.CheckIntegrity())
		m.ok("after "+what, r.index.CheckIntegrity())
		for _, e := range m.entries {
			if _, holds := r.cache.Holders(e.pages[i]); holds != 1 {
				m.fatal("after %s: %s holds page %d %d times, want once", what, r.name, e.pages[i], holds)
			}
		}
		s, x := r.cache.Stats(), r.index.Stats()
		if s.Holds != int64(len(m.entries)) || x.Pages != len(m.entries) {
			m.fatal("after %s: %s has %d pages, its cache %d holds, want %d", what, r.name, x.Pages, s.Holds, len(m.entries))
		}
		if s.Free+s.Used+s.Cached != s.Pages || s.CodedFree+s.CodedUsed+s.CodedCached != s.CodedPages {
			m.fatal("after %s: %+v", what, s)
		}
		for id, p := range m.prompts {
			m.checkRows(what, r, id, p)
		}
	}
}

func (m *machine) checkRows(what string, r *rig, id int, p *prefix.Prompt) {
	m.t.Helper()
	key, value, err := r.cache.Gather(0, r.sequences[id])
	m.ok("Gather", err)
	if key.Shape[0] != int64(len(p.Tokens)) {
		m.fatal("after %s: %s: sequence %d has %d keys, want %d", what, r.name, id, key.Shape[0], len(p.Tokens))
	}
	bound := 0.0
	if m.coded {
		bound = 1 // half a step of 255/255, and the rounding of the scale
	}
	for j := range p.Tokens {
		want := float64(mark(p, j))
		for _, got := range []float32{key.At(int64(j), 0, 0), -key.At(int64(j), 0, 1), value.At(int64(j), 0, 0)} {
			if !(math.Abs(float64(got)-want) <= bound) {
				m.fatal("after %s: %s: sequence %d key %d is %v, want %v", what, r.name, id, j, got, want)
			}
		}
	}
}

// end frees all, after which nothing is left.
func (m *machine) end() {
	for len(m.leased) > 0 {
		m.release()
	}
	for len(m.prompts) > 0 {
		m.free()
	}
	m.check("freeing all")
	for _, r := range m.rigs {
		n := len(m.entries)
		if got := r.index.Evict(n + 1); got != n {
			m.fatal("%s: %d pages evicted in the end, want %d", r.name, got, n)
		}
		m.ok("the end", r.index.CheckIntegrity())
		if s, x := r.cache.Stats(), r.index.Stats(); s.Free != s.Pages || s.CodedFree != s.CodedPages || x.Nodes != 0 || x.Scopes != 0 || x.Locked != 0 {
			m.fatal("%s: in the end %+v, %+v", r.name, s, x)
		}
	}
}
