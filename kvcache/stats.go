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

	Pages, Free, Used int // Free + Used = Pages
	Shared            int // of Used: in more than one sequence

	Bytes, UsedBytes int64 // of all layers' keys and values; of the used pages
}

// Stats takes the same time whatever the cache holds.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	pages, free := c.config.Pages, len(c.pool.free)
	return Stats{
		Sequences: len(c.sequences), Tokens: c.tokens,
		Pages: pages, Free: free, Used: pages - free, Shared: c.pool.shared,
		Bytes: c.bytes, UsedBytes: c.bytes / int64(pages) * int64(pages-free),
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
	refs := make([]int32, c.config.Pages)
	tokens := int64(0)
	for id, s := range c.sequences {
		tokens += int64(s.len())
		c.checkSequence(id, s, refs, fault)
	}
	if tokens != c.tokens {
		fault("%d tokens counted, %d noted", tokens, c.tokens)
	}
	c.checkPool(refs, fault)
	return errors.Join(faults...)
}

// checkSequence adds the pages of s to refs.
func (c *Cache) checkSequence(id ID, s *sequence, refs []int32, fault func(string, ...any)) {
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
	seen := make(map[int32]bool, len(s.pages))
	for _, page := range s.pages {
		if page < 0 || int(page) >= len(refs) {
			fault("sequence %d holds page %d of %d", id, page, len(refs))
			continue
		}
		if seen[page] {
			fault("sequence %d holds page %d twice", id, page)
		}
		seen[page] = true
		refs[page]++
	}
}

// checkPool compares the pool with the pages counted in tables.
func (c *Cache) checkPool(refs []int32, fault func(string, ...any)) {
	used, shared := 0, 0
	for page, n := range refs {
		if n > 0 {
			used++
		}
		if n > 1 {
			shared++
		}
		if c.pool.refs[page] != n {
			fault("page %d is in %d tables, %d noted", page, n, c.pool.refs[page])
		}
	}
	if shared != c.pool.shared {
		fault("%d pages are shared, %d noted", shared, c.pool.shared)
	}
	if free := len(c.pool.free); free+used != c.config.Pages {
		fault("%d pages free + %d used, want %d", free, used, c.config.Pages)
	}
	seen := make([]bool, len(refs))
	for _, page := range c.pool.free {
		switch {
		case page < 0 || int(page) >= len(refs):
			fault("page %d of %d is free", page, len(refs))
		case seen[page]:
			fault("page %d is free twice", page)
		case refs[page] > 0:
			fault("page %d is free and in %d tables", page, refs[page])
		default:
			seen[page] = true
		}
	}
}
