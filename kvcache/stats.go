package kvcache

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Stats is what a Cache holds at one moment.
type Stats struct {
	Sequences int
	Tokens    int64 // Σ lengths; a key that two sequences share counts twice

	Pages, Free, Used int // plain pages: Free + Used + Cached = Pages
	Shared            int // of Used and Cached: had by more than one sequence or holder
	Reserved          int // of Free: set aside by Reserve

	CodedPages, CodedFree, CodedUsed, CodedShared int // as above, of coded pages

	Cached, CodedCached int   // held by Hold, and in no sequence
	Holds               int64 // Σ holds of pages of either kind: Hold − Release

	Bytes, UsedBytes int64 // of all layers' keys and values; of the used and cached pages
}

// Stats takes the same time whatever the cache holds.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	pages, free := c.config.Pages, len(c.pool.free)
	coded, codedFree := c.config.CodedPages, len(c.codes.pool.free)
	plainBytes, codedBytes, _ := c.config.pageBytes()
	return Stats{
		Sequences: len(c.sequences), Tokens: c.tokens,
		Pages: pages, Free: free, Used: pages - free - c.pool.cached, Shared: c.pool.shared, Reserved: c.reserved,
		CodedPages: coded, CodedFree: codedFree, CodedUsed: coded - codedFree - c.codes.pool.cached, CodedShared: c.codes.pool.shared,
		Cached: c.pool.cached, CodedCached: c.codes.pool.cached, Holds: c.holdCount,
		Bytes: c.bytes, UsedBytes: plainBytes*int64(pages-free) + codedBytes*int64(coded-codedFree),
	}
}

// CheckIntegrity recounts everything and reports each broken invariant of the
// package comment. It is for tests and for the hunt of a bug: an error is the
// fault of this package, and takes time in proportion to all tables.
func (c *Cache) CheckIntegrity() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("kvcache: internal error: "+format, args...))
	}
	refs, coded := make([]int32, c.config.Pages), make([]int32, c.config.CodedPages)
	tokens, reserved := int64(0), 0
	for _, tables := range []map[ID]*sequence{c.sequences, c.moving} {
		for id, s := range tables {
			tokens += int64(s.len())
			reserved += s.reserved
			c.checkSequence(id, s, refs, coded, fault)
		}
	}
	if reserved != c.reserved || c.reserved > len(c.pool.free) {
		fault("%d pages reserved, %d noted, %d free", reserved, c.reserved, len(c.pool.free))
	}
	if tokens != c.tokens {
		fault("%d tokens counted, %d noted", tokens, c.tokens)
	}
	if holds := c.pool.addHeld(refs) + c.codes.pool.addHeld(coded); holds != c.holdCount {
		fault("%d holds counted, %d noted", holds, c.holdCount)
	}
	c.pool.check("page", refs, fault)
	if c.config.Coded() {
		c.codes.pool.check("coded page", coded, fault)
		c.codes.check(refs, coded, fault)
	}
	return errors.Join(faults...)
}

// checkSequence adds the pages of s to refs and coded.
func (c *Cache) checkSequence(id ID, s *sequence, refs, coded []int32, fault func(string, ...any)) {
	if id == 0 || uint64(id) > lastID.Load() {
		fault("sequence %d has an ID that was not given", id)
	}
	p := &s.positions
	if want := c.pagesFor(s.len()); len(s.pages) != want || s.len() > math.MaxInt32 {
		fault("sequence %d of %d keys has %d pages, want %d", id, s.len(), len(s.pages), want)
	}
	if p.identity < 0 || p.next < 0 || p.next > math.MaxInt32+1 || len(p.rest) > 0 && int(p.rest[0]) == p.identity ||
		slices.ContainsFunc(p.rest, func(x int32) bool { return x < 0 }) {
		fault("sequence %d has positions %d and %d others, next %d", id, p.identity, len(p.rest), p.next)
	}
	if s.seen < 0 || s.seen > s.len()/c.config.PageSize {
		fault("sequence %d of %d keys has %d pages that may be coded", id, s.len(), s.seen)
	}
	seen := make(map[int32]bool, len(s.pages))
	for _, page := range s.pages {
		count, kind, at := refs, "page", page
		if page < 0 {
			count, kind, at = coded, "coded page", ^page
		}
		if at < 0 || int(at) >= len(count) {
			fault("sequence %d holds %s %d of %d", id, kind, at, len(count))
			continue
		}
		if seen[page] {
			fault("sequence %d holds %s %d twice", id, kind, at)
		}
		seen[page] = true
		count[at]++
	}
}

// check compares what is noted of plain pages and those coded of them. It
// knows how many tables hold each.
func (n *codes) check(refs, coded []int32, fault func(string, ...any)) {
	for page, twin := range n.twin {
		if twin == none {
			continue
		}
		if twin >= 0 && (int(twin) >= len(coded) || n.origin[twin] != int32(page) || coded[twin] == 0) || twin < unfit || refs[page] == 0 {
			fault("page %d, in %d tables, is noted to be coded page %d", page, refs[page], twin)
		}
	}
	for page, origin := range n.origin {
		if origin != none && (origin < 0 || int(origin) >= len(refs) || n.twin[origin] != int32(page)) {
			fault("coded page %d is noted to be of page %d", page, origin)
		}
	}
}

// addHeld adds the holds of each page to refs, and returns their number.
func (p *pool) addHeld(refs []int32) (holds int64) {
	for page, n := range p.held {
		refs[page] += n
		holds += int64(n)
	}
	return holds
}

// check compares a pool with the pages of its kind counted in tables and,
// where they are held by others, as noted.
func (p *pool) check(kind string, refs []int32, fault func(string, ...any)) {
	used, shared, cached := 0, 0, 0
	for page, n := range refs {
		if n > 0 {
			used++
		}
		if n > 1 {
			shared++
		}
		if n > 0 && n == p.held[page] {
			cached++
		}
		if p.held[page] < 0 {
			fault("%s %d is held %d times", kind, page, p.held[page])
		}
		if p.refs[page] != n {
			fault("%s %d is in %d tables, %d noted", kind, page, n, p.refs[page])
		}
	}
	if shared != p.shared {
		fault("%d %ss are shared, %d noted", shared, kind, p.shared)
	}
	if cached != p.cached {
		fault("%d %ss are held by no table, %d noted", cached, kind, p.cached)
	}
	if free := len(p.free); free+used != len(refs) {
		fault("%d %ss free + %d used, want %d", free, kind, used, len(refs))
	}
	seen := make([]bool, len(refs))
	for _, page := range p.free {
		switch {
		case page < 0 || int(page) >= len(refs):
			fault("%s %d of %d is free", kind, page, len(refs))
		case seen[page]:
			fault("%s %d is free twice", kind, page)
		case refs[page] > 0:
			fault("%s %d is free and in %d tables", kind, page, refs[page])
		default:
			seen[page] = true
		}
	}
}
