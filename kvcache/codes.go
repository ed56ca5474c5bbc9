package kvcache

import (
	"fmt"
	"slices"

	"github.com/longctx/longctx/kernel"
)

// codedLayer is the coded pages of a layer.
type codedLayer struct{ key, value kernel.CodedPages }

func (c *Cache) allocCoded(layer int) error {
	f := &c.config
	if !f.Coded() {
		return nil
	}
	pages, size, heads := int64(f.CodedPages), int64(f.PageSize), int64(f.KVHeads)
	c.coded = append(c.coded, codedLayer{}) // Close finds what there is
	l, coding := &c.coded[layer], f.CodingOf(layer)
	if f.Levels != nil {
		l.key.Levels, l.value.Levels = f.Levels[layer].Key, f.Levels[layer].Value
	}
	for _, side := range [][6]kernel.CodedTensor{
		coding.Key.Tensors(&l.key, pages, size, heads, f.HeadDim), coding.Value.Tensors(&l.value, pages, size, heads, f.ValueDim),
	} {
		for _, t := range side {
			if t.Rank == 0 {
				continue
			}
			var err error
			if *t.View, err = alloc(c.backend, t.DType, t.Shape[:t.Rank]...); err != nil {
				return fmt.Errorf("kvcache: coded pages of layer %d of %d: %w", layer, f.Layers, err)
			}
		}
	}
	return nil
}

// codes is the pool of coded pages, and which plain page each was made of: a
// sequence that comes to code a page that another has coded takes that one.
type codes struct {
	pool   pool
	twin   []int32 // [Pages] the coded page of a plain one, none or unfit
	origin []int32 // [CodedPages] the plain page of a coded one, or none

	// scratch of encodeDue
	src, dst []int32
	fits     []bool
	args     kernel.EncodeArgs
}

const (
	none  = -1 // no page
	unfit = -2 // values that cannot be coded, or pages that are to stay plain
)

func newCodes(c *Config) codes {
	if !c.Coded() {
		return codes{}
	}
	n := codes{pool: newPool(c.CodedPages), twin: make([]int32, c.Pages), origin: make([]int32, c.CodedPages)}
	for i := range n.twin {
		n.twin[i] = none
	}
	for i := range n.origin {
		n.origin[i] = none
	}
	return n
}

// grow makes more plain pages, if there are coded ones.
func (n *codes) grow(pages int) {
	for n.origin != nil && len(n.twin) < pages {
		n.twin = append(n.twin, none)
	}
}

func (n *codes) join(plain, coded int32) { n.twin[plain], n.origin[coded] = coded, plain }

// part forgets what a page of one kind, no longer used, is of the other.
func (n *codes) part(plain, coded int32) {
	if plain >= 0 {
		n.twin[plain] = none
	}
	if coded >= 0 {
		n.origin[coded] = none
	}
}

// rewrite forgets what a plain page was coded to: it is going to get rows other
// than those that a Truncate took from it.
func (n *codes) rewrite(page int32) {
	if len(n.twin) > 0 {
		n.part(page, n.twin[page])
	}
}

// hold adds a table to those of a page of either kind.
func (c *Cache) hold(page int32) {
	if page < 0 {
		c.codes.pool.hold(^page)
	} else {
		c.pool.hold(page)
	}
}

// drop removes a table from those of a page of either kind.
func (c *Cache) drop(page int32) {
	n := &c.codes
	if page < 0 {
		if n.pool.drop(^page); n.pool.refs[^page] == 0 {
			n.part(n.origin[^page], ^page)
		}
		return
	}
	if c.pool.drop(page); len(n.twin) > 0 && c.pool.refs[page] == 0 {
		n.part(page, n.twin[page])
	}
}

// dropAll drops pages from the last to the first, so that the first is the
// next to be given.
func (c *Cache) dropAll(pages []int32) {
	for i := len(pages) - 1; i >= 0; i-- {
		c.drop(pages[i])
	}
}

// due is the number of pages of a sequence that are full and older than its
// last Residual tokens.
func (c *Cache) due(s *sequence) int { return max(s.len()-c.config.Residual, 0) / c.config.PageSize }

// encodeDue codes what is due in the sequences of an extension. Tables change
// after all layers are coded; after an error nothing has changed.
func (c *Cache) encodeDue() error {
	if !c.config.Coded() {
		return nil
	}
	n := &c.codes
	n.src, n.dst, n.fits = n.src[:0], n.dst[:0], n.fits[:0]
	for _, p := range c.extension.parts {
		s := p.sequence
		for k, due := s.seen, c.due(s); k < due; k++ {
			page := s.pages[k]
			if page < 0 || n.twin[page] != none {
				continue
			}
			if len(n.pool.free) == 0 {
				break
			}
			n.join(page, n.pool.take())
			n.src, n.dst, n.fits = append(n.src, page), append(n.dst, n.twin[page]), append(n.fits, true)
		}
	}
	if err := c.encode(); err != nil {
		for i, page := range n.dst {
			n.part(n.src[i], page)
		}
		n.pool.dropAll(n.dst)
		return err
	}
	for _, p := range c.extension.parts {
		c.takeCoded(p.sequence)
	}
	for i := len(n.dst) - 1; i >= 0; i-- { // the tables hold what is coded now
		if !n.fits[i] {
			n.origin[n.dst[i]] = none
		}
		n.pool.drop(n.dst[i])
	}
	return nil
}

// encodeAtOnce bounds the pages of one call of EncodePages, whose check takes
// time as their square.
const encodeAtOnce = 256

// encode codes pages src to pages dst in all layers.
func (c *Cache) encode() error {
	n, plain := &c.codes, c.plain.Load()
	defer func() { n.args = kernel.EncodeArgs{Encoded: n.args.Encoded[:0]} }()
	for lo := 0; lo < len(n.src); lo += encodeAtOnce {
		hi := min(lo+encodeAtOnce, len(n.src))
		for layer := range c.coded {
			a := &n.args
			*a = kernel.EncodeArgs{Coding: c.config.CodingOf(layer), Key: plain.keys[layer], Value: plain.values[layer],
				CodedKey: c.coded[layer].key, CodedValue: c.coded[layer].value, Src: n.src[lo:hi], Dst: n.dst[lo:hi], Encoded: a.Encoded[:0]}
			a.KeyScale, a.ValueScale = c.scales(layer)
			for range n.src[lo:hi] {
				a.Encoded = append(a.Encoded, false)
			}
			if err := c.backend.EncodePages(a); err != nil {
				return fmt.Errorf("kvcache: coding %d pages of layer %d: %w", hi-lo, layer, err)
			}
			for i, ok := range a.Encoded {
				n.fits[lo+i] = n.fits[lo+i] && ok
			}
		}
	}
	for i, ok := range n.fits {
		if !ok {
			n.twin[n.src[i]] = unfit
		}
	}
	return nil
}

// takeCoded exchanges the due pages of a sequence for their coded ones. A sequence
// that was started from a page and its coded one keeps both: it has no page twice.
func (c *Cache) takeCoded(s *sequence) {
	n := &c.codes
	for due := c.due(s); s.seen < due; s.seen++ {
		page := s.pages[s.seen]
		if page < 0 {
			continue
		}
		coded := n.twin[page]
		if coded == none {
			return // no coded page was free
		}
		if coded >= 0 && !(s.twins && slices.Contains(s.pages, ^coded)) {
			n.pool.hold(coded)
			s.pages[s.seen] = ^coded
			c.drop(page)
		}
	}
}

// KeepPlain keeps pages of a sequence, counted from its first, from being coded, as
// mixed precision by importance has it (package codec). A page that is coded already
// stays so. What is said of a page holds for all sequences that have it, until it is
// written to anew: an Apply that moves its rows forgets it.
func (c *Cache) KeepPlain(id ID, pages []int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return err
	}
	for i, k := range pages {
		if k < 0 || k >= len(s.pages) {
			return valueError(fmt.Sprintf("KeepPlain: pages[%d]", i), k, "0 to %d", len(s.pages)-1)
		}
	}
	if !c.config.Coded() {
		return nil
	}
	for _, k := range pages {
		if page := s.pages[k]; page >= 0 && c.codes.twin[page] == none {
			c.codes.twin[page] = unfit
		}
	}
	return nil
}
