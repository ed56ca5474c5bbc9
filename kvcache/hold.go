package kvcache

import (
	"fmt"
	"math"
)

// Page names a page, plain or coded, that Hold gave: a full one, whose rows do
// not change while it is held. Its value means nothing outside its Cache.
type Page int32

// Coded reports whether it is a coded page.
func (p Page) Coded() bool { return p < 0 }

// PageError reports a page that is not held, or is named too often.
type PageError struct {
	Index  int // in the pages of the call
	Page   Page
	Reason string
}

func (e *PageError) Error() string {
	return fmt.Sprintf("kvcache: pages[%d] is page %d: %s", e.Index, e.Page, e.Reason)
}

// Hold keeps the pages of the keys from <= j < to of a sequence for a holder
// that is no sequence, such as an index of prefixes, and appends them to dst.
// They outlive the sequence, until Release. from and to are multiples of
// PageSize: only full pages can be held. It must not be called between Extend
// and the last Append of the sequence.
//
// Errors are *UnknownSequenceError and *ValueError.
func (c *Cache) Hold(id ID, from, to int, dst []Page) ([]Page, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return dst, err
	}
	size := c.config.PageSize
	switch {
	case to < 0 || to > s.len() || to%size != 0:
		return dst, valueError("Hold: to", to, "a multiple of PageSize %d, 0 to the length %d", size, s.len())
	case from < 0 || from > to || from%size != 0:
		return dst, valueError("Hold: from", from, "a multiple of PageSize %d, 0 to %d", size, to)
	}
	for _, page := range s.pages[from/size : to/size] {
		c.hold(page)
		p, at := c.poolOf(page)
		p.keep(at)
		dst = append(dst, Page(page))
	}
	c.holdCount += int64((to - from) / size)
	return dst, nil
}

// Release undoes Hold: of each page named, one hold is given back, and a page
// that nobody has any more is free. A page that is not held so often is a
// *PageError; nothing has changed then.
func (c *Cache) Release(pages ...Page) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, page := range pages {
		p, at, ok := c.heldPage(page)
		if !ok || p.held[at] == 0 {
			for _, undo := range pages[:i] {
				p, at := c.poolOf(int32(undo))
				p.keep(at)
			}
			return &PageError{i, page, "want a page that is held, so often as it is named"}
		}
		p.let(at)
	}
	for i := len(pages) - 1; i >= 0; i-- { // the first is the next to be given
		c.drop(int32(pages[i]))
	}
	c.holdCount -= int64(len(pages))
	return nil
}

// Start starts a sequence with the keys of held pages, in order, as Fork does
// with those of a sequence. positions are those of its keys, nil: the ordinals.
// Where keys were rotated before they were stored, positions must be those they
// were rotated by. It costs no page, and the pages stay held.
//
// A page that is not held, or named twice, is a *PageError. Others are
// *ValueError for positions and *TooLongError.
//
// A Truncate within a coded page is refused; of a sequence that was started
// from some, Residual does not bound where they are.
func (c *Cache) Start(pages []Page, positions []int32) (ID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := int64(len(pages)) * int64(c.config.PageSize)
	if n > math.MaxInt32 {
		return 0, &TooLongError{"length of a sequence", fmt.Sprint(n)}
	}
	if positions != nil && int64(len(positions)) != n {
		return 0, valueError("Start: number of positions", len(positions), "that of keys, %d", n)
	}
	for i, p := range positions {
		if p < 0 {
			return 0, valueError(fmt.Sprintf("Start: positions[%d]", i), p, "0 or more")
		}
	}
	named := make(map[Page]bool, len(pages))
	for i, page := range pages {
		if p, at, ok := c.heldPage(page); !ok || p.held[at] == 0 {
			return 0, &PageError{i, page, "want a page that is held"}
		}
		if named[page] {
			return 0, &PageError{i, page, "named twice; a sequence has a page once"}
		}
		named[page] = true
	}
	s := &sequence{pages: make([]int32, len(pages))}
	for i, page := range pages {
		c.hold(int32(page))
		if s.pages[i] = int32(page); page < 0 {
			s.seen = i + 1
		} else if len(c.codes.twin) > 0 && c.codes.twin[page] >= 0 && named[Page(^c.codes.twin[page])] {
			s.twins = true
		}
	}
	if positions == nil {
		s.positions = positionsOf(int(n))
	}
	for _, p := range positions {
		s.positions.push(p)
	}
	return c.add(s), nil
}

// Holders is the number of sequences that have a page, and of times that it is
// held; 0, 0 for what is no page.
func (c *Cache) Holders(page Page) (sequences, holds int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, at, ok := c.heldPage(page)
	if !ok {
		return 0, 0
	}
	return int(p.refs[at] - p.held[at]), int(p.held[at])
}

// Ordinal is the number of first keys of a sequence whose positions are their
// ordinals: nothing was dropped before them, nor were they put elsewhere.
func (c *Cache) Ordinal(id ID) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return 0, err
	}
	return s.positions.identity, nil
}

// poolOf is the pool of a page in a table, and its place there.
func (c *Cache) poolOf(page int32) (*pool, int32) {
	if page < 0 {
		return &c.codes.pool, ^page
	}
	return &c.pool, page
}

// heldPage is poolOf a page that a caller named; ok: there is such a page.
func (c *Cache) heldPage(page Page) (p *pool, at int32, ok bool) {
	p, at = c.poolOf(int32(page))
	return p, at, int(at) < len(p.refs)
}
