package kvcache

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Plan says what becomes of the keys of a sequence. A policy of eviction makes
// one, Apply carries it out.
type Plan struct {
	Keep   []int32 // ordinals of the keys that stay, ascending
	Merges []Merge // Into not descending
}

// Merge is a term of a row that is merged: in all layers, the key of ordinal
// Into becomes Σ Key·(key From) over the Merges into it, in order, and the value
// Σ Value·(value From), by rule 19 of package kernel. Its own row counts only as
// far as a Merge with From = Into says. Into is a key that stays, From any. A
// term of weight 0 is left out.
type Merge struct {
	Into, From int32
	Key, Value float32
}

// Apply changes sequence seqs[i] as plans[i] says, for all i or for none. Keys
// that stay move down in ordinal and keep their positions; the next token gets
// the position it would have got. Pages that no table holds any more are free
// afterwards.
//
// A page is never written while a table holds it. One whose rows all stay, or
// the first ones of which become the last page, stays in the table where it comes
// to lie at the start of a page; the rows of others are copied to free pages. So
// it does not matter which pages are shared. Apply needs free pages for all it
// copies before it lets go of one: where they do not suffice the error is an
// *OutOfPagesError.
//
// Rows of a coded page can only stay all, beginning a page, or go all: other
// plans are a *CodedRowsError. Other errors are *UnknownSequenceError, *ValueError
// and those of the backend's GatherRows; one without it (a *kernel.UnsupportedError)
// still does plans that keep whole pages. After an error nothing has changed.
func (c *Cache) Apply(seqs []ID, plans []Plan) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(plans) != len(seqs) {
		return valueError("Apply: number of plans", len(plans), "that of sequences, %d", len(seqs))
	}
	c.extension.number++ // marks the sequences that were named
	changes := make([]change, len(seqs))
	g, need := gather{key: newRows(), value: newRows()}, 0
	for i, id := range seqs {
		s, err := c.find(id)
		if err != nil {
			return err
		}
		if s.extension == c.extension.number {
			return valueError(fmt.Sprintf("Apply: seqs[%d]", i), id, "a sequence not named before")
		}
		s.extension = c.extension.number
		if err := plans[i].check(id, s.len()); err != nil {
			return err
		}
		changes[i] = change{sequence: s, plan: &plans[i]}
		if err := changes[i].reuse(id, c.config.PageSize); err != nil {
			return err
		}
		need += changes[i].fresh
	}
	if free := c.available(); need > free {
		return &OutOfPagesError{Need: int64(need), Free: free}
	}
	var taken []int32
	for i := range changes {
		taken = changes[i].take(c, &g, taken)
	}
	if err := c.gatherRows(&g); err != nil {
		c.pool.dropAll(taken)
		return err
	}
	for i := range changes {
		changes[i].commit(c)
	}
	return nil
}

// check compares a plan with a sequence of n keys.
func (p *Plan) check(id ID, n int) error {
	for i, j := range p.Keep {
		if j < 0 || int(j) >= n || i > 0 && j <= p.Keep[i-1] {
			return valueError(fmt.Sprintf("Apply: Keep[%d] of sequence %d", i, id), j, "ascending ordinals below the length %d", n)
		}
	}
	at := 0
	for i, m := range p.Merges {
		for at < len(p.Keep) && p.Keep[at] < m.Into {
			at++
		}
		if at == len(p.Keep) || p.Keep[at] != m.Into {
			return valueError(fmt.Sprintf("Apply: Merges[%d].Into of sequence %d", i, id), m.Into, "an ordinal in Keep, not below that of the Merge before")
		}
		if m.From < 0 || int(m.From) >= n {
			return valueError(fmt.Sprintf("Apply: Merges[%d].From of sequence %d", i, id), m.From, "0 to %d", n-1)
		}
	}
	return nil
}

// change is what an Apply does to one sequence.
type change struct {
	sequence *sequence
	plan     *Plan
	pages    []int32 // of the table to be; a page to be written is toWrite until it is taken
	seen     int
	fresh    int // pages to be written
}

// toWrite is no page: ^toWrite is more than any coded page.
const toWrite = -1 << 31

// reuse finds the pages of the table that stay as they are.
func (x *change) reuse(id ID, size int) error {
	s, keep, merges := x.sequence, x.plan.Keep, x.plan.Merges
	for lo := 0; lo < len(keep); lo += size {
		rows := keep[lo:min(lo+size, len(keep))]
		into := merges
		for len(merges) > 0 && merges[0].Into <= rows[len(rows)-1] {
			merges = merges[1:]
		}
		into = into[:len(into)-len(merges)]
		at := int(rows[0]) / size
		same := len(into) == 0 && int(rows[0])%size == 0 && int(rows[len(rows)-1]-rows[0]) == len(rows)-1
		if same && (s.pages[at] >= 0 || len(rows) == size) {
			x.pages = append(x.pages, s.pages[at])
			if at < s.seen && len(rows) == size && x.seen == len(x.pages)-1 {
				x.seen++
			}
			continue
		}
		if err := s.plainRows(id, size, rows, into); err != nil {
			return err
		}
		x.pages = append(x.pages, toWrite)
		x.fresh++
	}
	return nil
}

// plainRows returns an error if a row that is to be copied or merged is coded.
func (s *sequence) plainRows(id ID, size int, rows []int32, merges []Merge) error {
	coded := func(j int32) error {
		at := int(j) / size
		if s.pages[at] >= 0 {
			return nil
		}
		return &CodedRowsError{Sequence: id, Key: int(j), From: at * size, To: (at + 1) * size}
	}
	for _, j := range rows {
		if err := coded(j); err != nil {
			return err
		}
	}
	for _, m := range merges {
		if err := coded(m.From); err != nil {
			return err
		}
	}
	return nil
}

// rows are the lists of one GatherRows.
type rows struct {
	dst, start, src []int32
	weights         []float32
	weighted        bool
}

func newRows() rows { return rows{start: []int32{0}} }

// term adds a source to the row at hand.
func (r *rows) term(src int32, w float32) {
	r.src, r.weights = append(r.src, src), append(r.weights, w)
	r.weighted = r.weighted || w != 1
}

// end ends the row at hand. A sum of no terms is 0 times a row.
func (r *rows) end(dst, own int32) {
	if int(r.start[len(r.dst)]) == len(r.src) {
		r.term(own, 0)
	}
	r.dst, r.start = append(r.dst, dst), append(r.start, int32(len(r.src)))
}

// gather is what an Apply copies and merges, in every layer.
type gather struct{ key, value rows }

// take takes the pages to be written, lists their rows and appends them to taken.
func (x *change) take(c *Cache, g *gather, taken []int32) []int32 {
	s, keep, merges, size := x.sequence, x.plan.Keep, x.plan.Merges, c.config.PageSize
	slot := func(j int32) int32 { return s.pages[int(j)/size]*int32(size) + j%int32(size) }
	for k, page := range x.pages {
		if page != toWrite {
			continue
		}
		page = c.pool.take()
		x.pages[k], taken = page, append(taken, page)
		for i, j := range keep[k*size : min((k+1)*size, len(keep))] {
			for len(merges) > 0 && merges[0].Into < j {
				merges = merges[1:]
			}
			if len(merges) == 0 || merges[0].Into > j {
				g.key.term(slot(j), 1)
				g.value.term(slot(j), 1)
			}
			for ; len(merges) > 0 && merges[0].Into == j; merges = merges[1:] {
				if m := merges[0]; m.Key != 0 {
					g.key.term(slot(m.From), m.Key)
				}
				if m := merges[0]; m.Value != 0 {
					g.value.term(slot(m.From), m.Value)
				}
			}
			dst := page*int32(size) + int32(i)
			g.key.end(dst, slot(j))
			g.value.end(dst, slot(j))
		}
	}
	return taken
}

// gatherRows writes rows of free pages in all layers.
func (c *Cache) gatherRows(g *gather) error {
	if len(g.key.dst) == 0 {
		return nil
	}
	call := func(cache tensor.View, r *rows) error {
		a := kernel.GatherArgs{Cache: cache, Dst: r.dst, Start: r.start, Src: r.src}
		if r.weighted {
			a.Weights = r.weights
		}
		return c.backend.GatherRows(&a)
	}
	plain := c.plain.Load()
	for layer := range plain.keys {
		err := call(plain.keys[layer], &g.key)
		if err == nil {
			err = call(plain.values[layer], &g.value)
		}
		if err != nil {
			return fmt.Errorf("kvcache: Apply: copying %d rows of layer %d: %w", len(g.key.dst), layer, err)
		}
	}
	return nil
}

// commit changes the table. Nothing in it can fail.
func (x *change) commit(c *Cache) {
	s := x.sequence
	for k, page := range x.pages {
		if c.holds(s, x.plan.Keep[k*c.config.PageSize], page) {
			c.hold(page)
		}
	}
	c.dropAll(s.pages)
	c.tokens -= int64(s.len() - len(x.plan.Keep))
	s.pages, s.seen = x.pages, x.seen
	s.positions.keep(x.plan.Keep)
}

// holds reports whether page is that of ordinal j in the table of s, and not one
// just taken.
func (c *Cache) holds(s *sequence, j, page int32) bool {
	return s.pages[int(j)/c.config.PageSize] == page
}
