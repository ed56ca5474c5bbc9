package kvcache

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
)

// extension is the work of one Extend, kept from call to call for its memory.
type extension struct {
	number uint64
	parts  []part
	args   kernel.CopyArgs
}

// part is what one sequence has in an extension.
type part struct {
	sequence *sequence
	count    int
	copies   bool // its last page is shared and partly filled
	need     int  // pages
}

// Extend adds counts[i] tokens to sequence seqs[i], for all i or for none, and
// appends to slots the slots of the new tokens, sequence by sequence. Append
// fills them. The position of a token is one more than that of the token before
// it, evicted or not, and 0 for the first.
//
// A shared, partly filled last page is copied, in all layers, before the
// sequence writes in it. Where the free pages do not suffice, the error is an
// *OutOfPagesError. Other errors are *UnknownSequenceError, *TooLongError,
// *ValueError for counts below 0 and for a sequence named twice, and those of
// the backend's EncodePages and CopyPages. After an error nothing has changed,
// but that pages may have been coded, and slots is returned as it was.
//
// With a Coding, the pages of the named sequences that are due are coded first,
// counts of 0 included; those that find no free coded page stay plain and are
// tried again the next time.
func (c *Cache) Extend(seqs []ID, counts []int, slots []int32) ([]int32, error) {
	return c.ExtendAt(seqs, counts, nil, slots)
}

// ExtendAt is Extend with the position of each new token, sequence by
// sequence: Σ counts of them, none below 0. Positions may repeat and need not
// ascend. nil asks for those of Extend.
func (c *Cache) ExtendAt(seqs []ID, counts []int, positions, slots []int32) ([]int32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := &c.extension
	defer e.reset()
	if err := c.planExtension(seqs, counts, positions); err != nil {
		return slots, err
	}
	if err := c.encodeDue(); err != nil {
		return slots, err
	}
	need, free := c.separate()
	if need > int64(free) {
		c.reunite()
		return slots, &OutOfPagesError{Need: need, Free: free}
	}
	if err := c.copyShared(); err != nil {
		c.reunite()
		return slots, err
	}
	return c.commit(positions, slots), nil
}

func (e *extension) reset() {
	clear(e.parts) // a freed sequence must not live on here
	e.parts, e.args.Src, e.args.Dst = e.parts[:0], e.args.Src[:0], e.args.Dst[:0]
}

// planExtension checks the arguments and lists the parts.
func (c *Cache) planExtension(seqs []ID, counts []int, positions []int32) error {
	if len(counts) != len(seqs) {
		return valueError("Extend: number of counts", len(counts), "that of sequences, %d", len(seqs))
	}
	e := &c.extension
	e.number++
	total := int64(0)
	for i, id := range seqs {
		s, err := c.find(id)
		if err != nil {
			return err
		}
		n := counts[i]
		switch {
		case s.extension == e.number:
			return valueError(fmt.Sprintf("Extend: seqs[%d]", i), id, "a sequence not named before")
		case n < 0:
			return valueError(fmt.Sprintf("Extend: counts[%d]", i), n, "0 or more")
		case n > math.MaxInt32-s.len():
			return tooLong(id, s.len(), n)
		case n > 0 && positions == nil && s.positions.next+int64(n) > math.MaxInt32+1:
			return &TooLongError{fmt.Sprintf("last position of sequence %d", id), fmt.Sprint(s.positions.next + int64(n) - 1)}
		}
		s.extension = e.number
		e.parts = append(e.parts, part{sequence: s, count: n})
		total += int64(n)
	}
	if positions == nil {
		return nil
	}
	if int64(len(positions)) != total {
		return valueError("ExtendAt: number of positions", len(positions), "that of tokens, %d", total)
	}
	for i, p := range positions {
		if p < 0 {
			return valueError(fmt.Sprintf("ExtendAt: positions[%d]", i), p, "0 or more")
		}
	}
	return nil
}

// separate takes a shared, partly filled last page from each sequence that is
// going to write in it, and returns the number of free pages that the extension
// takes, and of those that it may take. Of sequences that have such a page to
// themselves, the last keeps it: by then it is shared no more.
func (c *Cache) separate() (need int64, free int) {
	free = c.available()
	for i := range c.extension.parts {
		p := &c.extension.parts[i]
		s := p.sequence
		p.need = c.pagesFor(s.len()+p.count) - len(s.pages)
		if p.count > 0 && s.len()%c.config.PageSize != 0 {
			if last := s.pages[len(s.pages)-1]; c.pool.refs[last] > 1 {
				c.pool.drop(last)
				p.copies = true
				p.need++
			} else {
				c.codes.rewrite(last)
			}
		}
		need += int64(p.need)
		free += min(p.need, s.reserved)
	}
	return need, free
}

// reunite undoes separate.
func (c *Cache) reunite() {
	for _, p := range c.extension.parts {
		if p.copies {
			c.pool.hold(p.sequence.pages[len(p.sequence.pages)-1])
		}
	}
}

// copyShared copies the pages that separate took to free ones, in all layers.
// Tables change only in commit, so after an error the copies are free again.
func (c *Cache) copyShared() error {
	args := &c.extension.args
	for _, p := range c.extension.parts {
		if p.copies {
			args.Src = append(args.Src, p.sequence.pages[len(p.sequence.pages)-1])
			args.Dst = append(args.Dst, c.pool.take())
		}
	}
	return c.copyPages()
}

// copyPages copies the pages of an extension's args in all layers. After an
// error the targets are free again.
func (c *Cache) copyPages() error {
	args := &c.extension.args
	if len(args.Src) == 0 {
		return nil
	}
	plain := c.plain.Load()
	for layer := range plain.keys {
		args.Cache = plain.keys[layer]
		err := c.backend.CopyPages(args)
		if err == nil {
			args.Cache = plain.values[layer]
			err = c.backend.CopyPages(args)
		}
		if err != nil {
			c.pool.dropAll(args.Dst)
			return fmt.Errorf("kvcache: copying %d shared pages of layer %d: %w", len(args.Src), layer, err)
		}
	}
	return nil
}

// commit changes the tables. Nothing in it can fail.
func (c *Cache) commit(positions, slots []int32) []int32 {
	size := c.config.PageSize
	copied := 0
	for _, p := range c.extension.parts {
		s := p.sequence
		c.spend(s, p.need)
		if p.copies {
			s.pages[len(s.pages)-1] = c.extension.args.Dst[copied]
			copied++
		}
		for j, end := s.len(), s.len()+p.count; j < end; j++ {
			if j%size == 0 {
				s.pages = append(s.pages, c.pool.take())
			}
			slots = append(slots, s.pages[j/size]*int32(size)+int32(j%size))
			if positions == nil {
				s.positions.push(int32(s.positions.next))
			} else {
				s.positions.push(positions[0])
				positions = positions[1:]
			}
		}
		c.tokens += int64(p.count)
	}
	return slots
}
