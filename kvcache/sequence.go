package kvcache

import (
	"slices"
	"sync/atomic"
)

// ID names a sequence. No ID is given twice; the zero ID is none.
type ID uint64

// lastID is common to all caches, so that the ID of one is not mistaken for a
// sequence of another: a model with two kinds of layers has two caches.
var lastID atomic.Uint64

// sequence is the table of one sequence.
type sequence struct {
	pages     []int32   // in the order of the keys; coded page p is ^p
	seen      int       // pages before this one are coded or cannot be; an Apply may leave coded ones behind it
	positions positions // one for each key: their number is the length
	extension uint64    // the last Extend that named the sequence
	reserved  int       // free pages set aside for it
	twins     bool      // it may have a plain page and the coded one that was made of it
}

func (s *sequence) len() int { return s.positions.len() }

func (c *Cache) find(id ID) (*sequence, error) {
	s := c.sequences[id]
	if s == nil {
		return nil, &UnknownSequenceError{id}
	}
	return s, nil
}

func (c *Cache) add(s *sequence) ID {
	id := ID(lastID.Add(1))
	c.sequences[id] = s
	c.tokens += int64(s.len())
	return id
}

// NewSequence starts an empty sequence. It takes no page.
func (c *Cache) NewSequence() ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.add(&sequence{})
}

// Fork starts a sequence with the keys, values and positions of another. The
// two share pages; a shared last page is copied when one of them is extended.
// It costs the length of the table and, where they are not the ordinals, of
// the positions, and no page.
func (c *Cache) Fork(id ID) (ID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return 0, err
	}
	for _, page := range s.pages {
		c.hold(page)
	}
	return c.add(&sequence{pages: slices.Clone(s.pages), seen: s.seen, positions: s.positions.clone(), twins: s.twins}), nil
}

// Truncate keeps the first n keys of a sequence and lets go of the pages past
// them, as a rejected speculation needs. The next token gets, by default, the
// position of the first key removed, or the one after the last key kept if
// that is larger. n is 0 to Len.
//
// An n within a coded page, which cannot be appended to, is a *CodedPageError,
// and nothing has changed. It is none from L − Residual on, L being the largest
// length that the sequence had when it was extended.
func (c *Cache) Truncate(id ID, n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return err
	}
	if n < 0 || n > s.len() {
		return valueError("Truncate: n", n, "0 to the length %d", s.len())
	}
	if err := c.cutsCoded(id, s, n); err != nil {
		return err
	}
	c.truncate(s, n)
	return nil
}

// cutsCoded returns an error if n keys end within a coded page.
func (c *Cache) cutsCoded(id ID, s *sequence, n int) error {
	size := c.config.PageSize
	if at := n / size; n%size != 0 && s.pages[at] < 0 {
		return &CodedPageError{Sequence: id, Keys: n, From: at * size, To: (at + 1) * size}
	}
	return nil
}

// truncate keeps n keys, which do not end within a coded page.
func (c *Cache) truncate(s *sequence, n int) {
	c.tokens -= int64(s.len() - n)
	keep := c.pagesFor(n)
	c.dropAll(s.pages[keep:])
	s.pages, s.seen = s.pages[:keep], min(s.seen, n/c.config.PageSize)
	s.positions.truncate(n)
}

// Drop removes the keys of ordinals from <= j < to. The keys after them move
// down in ordinal and keep their positions and slots, and the next token gets
// the position it would have got: attention sees a gap. Only whole pages can
// be removed: from is a multiple of PageSize, to as well or the length. Pages
// of one token therefore drop any key, as is right for measuring policies such
// as StreamingLLM (Xiao et al., "Efficient Streaming Language Models with
// Attention Sinks", https://arxiv.org/abs/2309.17453).
func (c *Cache) Drop(id ID, from, to int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return err
	}
	size, n := c.config.PageSize, s.len()
	switch {
	case to < 0 || to > n:
		return valueError("Drop: to", to, "0 to the length %d", n)
	case from < 0 || from > to:
		return valueError("Drop: from", from, "0 to %d", to)
	case from == to:
		return nil
	case from%size != 0:
		return valueError("Drop: from", from, "a multiple of PageSize %d", size)
	case to%size != 0 && to != n:
		return valueError("Drop: to", to, "a multiple of PageSize %d, or the length %d", size, n)
	}
	first, end := from/size, c.pagesFor(to)
	c.dropAll(s.pages[first:end])
	s.pages = slices.Delete(s.pages, first, end)
	s.seen -= max(min(s.seen, end)-first, 0)
	s.positions.drop(from, to)
	c.tokens -= int64(to - from)
	return nil
}

// Free ends a sequence and lets go of its pages. Its ID is unknown from now on.
func (c *Cache) Free(id ID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return err
	}
	c.setReserved(s, 0)
	c.dropAll(s.pages)
	c.tokens -= int64(s.len())
	delete(c.sequences, id)
	return nil
}

// Len is the number of keys of a sequence.
func (c *Cache) Len(id ID) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return 0, err
	}
	return s.len(), nil
}

// Positions appends the position of each key of a sequence to dst.
func (c *Cache) Positions(id ID, dst []int32) ([]int32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return dst, err
	}
	return s.positions.appendTo(dst), nil
}
