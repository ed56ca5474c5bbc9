package kvcache

import "fmt"

// Rewrite makes room to store keys and values of a sequence anew: every page in
// which one of the keys (ordinals, in any order) lies becomes the sequence's
// own, by a copy in all layers where it is shared or held, and the slots of the
// keys are appended to slots, in their order. Append then stores rows there; the
// other rows are as they were. Positions stay.
//
// It is for a partial recompute of keys that were put together from others'
// pages. Until Append of the last layer has returned, what holds from Extend on
// holds here. Where too few pages are free the error is an *OutOfPagesError;
// others are *UnknownSequenceError, *ValueError, for a key of a coded page too,
// and the backend's of CopyPages. After an error nothing has changed, and slots
// is returned as it was.
func (c *Cache) Rewrite(id ID, keys, slots []int32) ([]int32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return slots, err
	}
	size := c.config.PageSize
	for i, j := range keys {
		if j < 0 || int(j) >= s.len() {
			return slots, valueError(fmt.Sprintf("Rewrite: keys[%d]", i), j, "0 to %d", s.len()-1)
		}
		if s.pages[int(j)/size] < 0 {
			return slots, valueError(fmt.Sprintf("Rewrite: keys[%d]", i), j, "a key of a plain page: a coded one is not written")
		}
	}
	e := &c.extension
	defer e.reset()
	var shared []int // places in the table
	listed := map[int]bool{}
	for _, j := range keys {
		if at := int(j) / size; !listed[at] && c.pool.refs[s.pages[at]] > 1 {
			shared, listed[at] = append(shared, at), true
		}
	}
	if free := c.available(); len(shared) > free {
		return slots, &OutOfPagesError{Need: int64(len(shared)), Free: free}
	}
	for _, at := range shared {
		e.args.Src, e.args.Dst = append(e.args.Src, s.pages[at]), append(e.args.Dst, c.pool.take())
	}
	if err := c.copyPages(); err != nil {
		return slots, err
	}
	for i, at := range shared {
		c.drop(s.pages[at])
		s.pages[at] = e.args.Dst[i]
	}
	for _, j := range keys {
		page := s.pages[int(j)/size]
		c.codes.rewrite(page)
		slots = append(slots, page*int32(size)+j%int32(size))
	}
	return slots, nil
}
