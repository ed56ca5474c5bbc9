package kvcache

import "math"

// Reserve sets free pages aside so that a sequence can be extended by so many
// tokens, in one call or several, whatever others take meanwhile: a scheduler
// admits a request with it. It replaces what the sequence had reserved; 0
// tokens give that back, as Free does and SwapSpace.SwapOut. A page that the
// sequence takes comes out of its reservation first; Apply and Rewrite copy to
// pages that nobody has reserved. What Truncate, Drop and Apply give back is not
// added to it, and a Fork afterwards can make one more page necessary: the copy
// of a last page that was not shared.
//
// Where the free pages that are not reserved do not suffice, the error is an
// *OutOfPagesError; other errors are *UnknownSequenceError, *TooLongError and,
// for tokens below 0, *ValueError. After an error nothing has changed.
func (c *Cache) Reserve(id ID, tokens int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return err
	}
	if tokens < 0 {
		return valueError("Reserve: tokens", tokens, "0 or more")
	}
	if tokens > math.MaxInt32-s.len() {
		return tooLong(id, s.len(), tokens)
	}
	need := c.pagesFor(s.len()+tokens) - len(s.pages)
	if last := len(s.pages) - 1; tokens > 0 && s.len()%c.config.PageSize != 0 && c.pool.refs[s.pages[last]] > 1 {
		need++ // the copy of the last page
	}
	if free := c.available() + s.reserved; need > free {
		return &OutOfPagesError{Need: int64(need), Free: free}
	}
	c.setReserved(s, need)
	return nil
}

// available is the number of free pages that nobody has reserved.
func (c *Cache) available() int { return len(c.pool.free) - c.reserved }

// spend takes n pages out of what s has reserved, or as many as there are.
func (c *Cache) spend(s *sequence, n int) { c.setReserved(s, s.reserved-min(s.reserved, n)) }

func (c *Cache) setReserved(s *sequence, pages int) {
	c.reserved += pages - s.reserved
	s.reserved = pages
}
