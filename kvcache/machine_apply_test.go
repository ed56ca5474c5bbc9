package kvcache_test

import (
	"errors"
	"fmt"
	"slices"

	"github.com/longctx/longctx/kvcache"
)

// What the machine knows of Apply.

// apply drops some keys of some sequences, with a fault now and then.
func (m *machine) apply() string {
	var ids []kvcache.ID
	var plans []kvcache.Plan
	for _, id := range m.live {
		if m.in.below(2) == 0 {
			ids, plans = append(ids, id), append(plans, m.plan(id))
		}
	}
	what := fmt.Sprintf("Apply(%v, %v)", ids, plans)
	if m.in.below(5) == 0 {
		m.backend.failGather.Store(1 + int64(m.in.below(2*m.config.Layers)))
	}
	before, gathered := m.snapshot(), m.backend.gathered.Load()
	err := m.cache.Apply(ids, plans)
	m.backend.failGather.Store(0)
	coded, pages, copied := m.toCopy(before, ids, plans)
	var full *kvcache.OutOfPagesError
	var rows *kvcache.CodedRowsError
	switch {
	case coded:
		if !errors.As(err, &rows) || rows.Key < rows.From || rows.Key >= rows.To {
			m.t.Fatalf("%s: error %v, want a CodedRowsError", what, err)
		}
	case pages > before.stats.Free:
		if !errors.As(err, &full) || full.Need != int64(pages) || full.Free != before.stats.Free {
			m.t.Fatalf("%s: error %v, want OutOfPages{%d, %d}", what, err, pages, before.stats.Free)
		}
	case errors.Is(err, errGather) && copied > 0:
		m.failedApplies++
	default:
		m.ok(what, err)
		if got := m.backend.gathered.Load() - gathered; got != int64(copied*2*m.config.Layers) {
			m.t.Fatalf("%s: %d rows copied, want %d", what, got, copied*2*m.config.Layers)
		}
		for i, id := range ids {
			s := m.oracle[id]
			m.applied += len(s.tokens) - len(plans[i].Keep)
			tokens := make([]token, 0, len(plans[i].Keep))
			for _, j := range plans[i].Keep {
				tokens = append(tokens, s.tokens[j])
			}
			s.tokens = tokens
		}
		return what
	}
	m.unchanged(what, before)
	return what
}

// plan keeps all, runs, whole pages or any keys of a sequence.
func (m *machine) plan(id kvcache.ID) kvcache.Plan {
	var p kvcache.Plan
	n, size := len(m.oracle[id].tokens), m.config.PageSize
	kind, keep := m.in.below(4), true
	for j := range n {
		switch kind {
		case 1:
			keep = m.in.below(2) == 0
		case 2:
			if j%size == 0 {
				keep = m.in.below(2) == 0
			}
		case 3:
			if m.in.below(5) == 0 {
				keep = !keep
			}
		}
		if keep {
			p.Keep = append(p.Keep, int32(j))
		}
	}
	return p
}

// toCopy is what plans need in closed form: whether a coded row would have to be
// copied, the pages to be written and the rows in them.
func (m *machine) toCopy(before snapshot, ids []kvcache.ID, plans []kvcache.Plan) (coded bool, pages, rows int) {
	size := m.config.PageSize
	for i, id := range ids {
		table := table(before.batch, slices.Index(m.live, id))
		for part := range slices.Chunk(plans[i].Keep, size) {
			stays, any := part[0]%int32(size) == 0, false
			for k, j := range part {
				stays = stays && j == part[0]+int32(k)
				any = any || table.IsCoded(int(j)/size)
			}
			if any {
				stays = stays && len(part) == size
			}
			if !stays {
				coded, pages, rows = coded || any, pages+1, rows+len(part)
			}
		}
	}
	return coded, pages, rows
}
