package kvcache

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/kvcache/page"
)

// Export appends page k of a sequence to dst in the format of package page,
// under the given key: the keys, values and positions of its tokens in all
// layers, coded or plain as they are. It takes one page of the space while it
// runs. Until it has returned the sequence must not be extended if the page is
// not full.
//
// Nothing in a page says by which Config.Scales FP8 was stored, nor which model
// made it: Key.Namespace must.
func (w *SwapSpace) Export(ctx context.Context, id ID, k int, key page.Key, dst []byte) ([]byte, error) {
	if err := w.enter(); err != nil {
		return dst, err
	}
	defer w.calls.Done()
	c := w.cache
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return dst, err
	}
	if k < 0 || k >= len(s.pages) {
		return dst, valueError("Export: k", k, "0 to %d", len(s.pages)-1)
	}
	plain, coded := split(s.pages[k : k+1])
	hostPlain, hostCoded, err := w.takeHost(len(plain), len(coded))
	if err != nil {
		return dst, err
	}
	defer w.giveHost(hostPlain, hostCoded)
	first := k * c.config.PageSize
	one := s.fork(k, k+1, first, min(s.len(), first+c.config.PageSize))
	defer c.putBack(c.lend(one))
	if err := w.copyPages(ctx, plain, coded, hostPlain, hostCoded, false); err != nil {
		return dst, fmt.Errorf("kvcache: exporting page %d of sequence %d: %w", k, id, err)
	}
	h, at := w.plain, hostPlain
	if len(coded) > 0 {
		h, at = w.coded, hostCoded
	}
	return h.write(dst, at[0], key, &one.positions)
}

// fork is a sequence of some pages of s, with their positions.
func (s *sequence) fork(fromPage, toPage, from, to int) *sequence {
	x := &sequence{pages: slices.Clone(s.pages[fromPage:toPage]), seen: max(min(s.seen, toPage)-fromPage, 0)}
	for j := from; j < to; j++ {
		x.positions.push(int32(s.positions.at(j)))
	}
	return x
}

// lend keeps the pages of s from being written or freed until putBack.
func (c *Cache) lend(s *sequence) ID {
	for _, p := range s.pages {
		c.hold(p)
	}
	return c.move(s)
}

// move counts s among the tables that no method finds.
func (c *Cache) move(s *sequence) ID {
	id := ID(lastID.Add(1))
	c.moving[id] = s
	c.tokens += int64(s.len())
	return id
}

func (c *Cache) putBack(id ID) {
	s := c.moving[id]
	delete(c.moving, id)
	c.dropAll(s.pages)
	c.tokens -= int64(s.len())
}

// write appends a page of the host to dst.
func (h *hostPages) write(dst []byte, at int32, key page.Key, p *positions) ([]byte, error) {
	start := len(dst)
	head := page.Header{Key: key, Layout: h.layout, Tokens: p.len()}
	b, payload, err := page.Begin(dst, &head)
	if err != nil {
		return dst, fmt.Errorf("kvcache: exporting a page: %w", err)
	}
	copy(payload, h.payload(at))
	for j := range h.layout.PageSize {
		x := uint32(0)
		if j < p.len() {
			x = uint32(p.at(j))
		}
		binary.LittleEndian.PutUint32(payload[4*j:], x)
	}
	for i, s := range h.segments[1:] {
		part := payload[s.Offset:][:s.Bytes]
		if h.layout.Coding.IsZero() {
			h.clearPast(part, p.len(), i)
		}
		littleEndian(part, s.Size)
	}
	page.Seal(b[start:])
	return b, nil
}

// clearPast makes the rows past the tokens of the ith tensor of a plain page 0:
// they hold what others left there.
func (h *hostPages) clearPast(part []byte, tokens, i int) {
	l := &h.layout
	dim := l.HeadDim
	if i%2 == 1 {
		dim = l.ValueDim
	}
	row := dim * int(l.DType.Size())
	for head := range l.KVHeads {
		clear(part[head*l.PageSize*row:][tokens*row : l.PageSize*row])
	}
}

// littleEndian turns elements of the machine's order into those of a page, and
// back.
func littleEndian(b []byte, size int64) {
	if size == 1 || binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return
	}
	for ; len(b) > 0; b = b[size:] {
		slices.Reverse(b[:size])
	}
}

// Import adds the tokens of pages that Export made to a sequence, whose length
// has to be a multiple of PageSize: all pages but the last have to be full. It
// takes as many pages of the space while it runs.
//
// Bytes that are no sound page are a *page.FormatError, wrapped; a page of
// another layout than this cache's a *LayoutError; other errors are
// *UnknownSequenceError, *TooLongError, *OutOfPagesError and *OutOfSwapError.
// After any error nothing has changed. Whether the pages are those the caller
// asked for, by key, the store has seen to.
func (w *SwapSpace) Import(ctx context.Context, id ID, pages ...[]byte) error {
	in, err := w.parse(pages)
	if err != nil {
		return err
	}
	if err := w.enter(); err != nil {
		return err
	}
	defer w.calls.Done()
	c := w.cache
	defer c.mu.Unlock()
	s, err := c.find(id)
	if err != nil {
		return err
	}
	n := s.len()
	switch {
	case n%c.config.PageSize != 0:
		return valueError(fmt.Sprintf("Import: length of sequence %d", id), n, "a multiple of PageSize %d", c.config.PageSize)
	case in.positions.len() > math.MaxInt32-n:
		return tooLong(id, n, in.positions.len())
	}
	plain, coded, err := c.takePages(len(in.plain), len(in.coded), s.reserved)
	if err != nil {
		return err
	}
	// the pages come out of the reservation now, so that nobody else gets them
	reserved := s.reserved
	c.spend(s, len(plain))
	fresh := &sequence{pages: join(in.kinds, plain, coded), positions: in.positions}
	moving := c.move(fresh)
	err = w.fill(ctx, &in, plain, coded)
	if err == nil && (c.sequences[id] != s || s.len() != n) {
		err = valueError(fmt.Sprintf("Import: sequence %d", id), "changed meanwhile", "one that nothing else changes")
	}
	if err != nil {
		c.putBack(moving)
		if c.sequences[id] == s {
			c.setReserved(s, min(reserved, s.reserved+c.available()))
		}
		return fmt.Errorf("kvcache: importing %d pages to sequence %d: %w", len(pages), id, err)
	}
	delete(c.moving, moving) // its tokens are those of s now
	s.pages = append(s.pages, fresh.pages...)
	for j := range fresh.len() {
		s.positions.push(int32(fresh.positions.at(j)))
	}
	return nil
}

// incoming are pages to be imported.
type incoming struct {
	kinds        []int32  // −1 for a coded page, 0 for a plain one, in order
	plain, coded [][]byte // payloads
	positions    positions
}

func (w *SwapSpace) parse(pages [][]byte) (in incoming, err error) {
	for i, b := range pages {
		h, payload, err := page.Parse(b)
		if err != nil {
			return in, fmt.Errorf("kvcache: importing page %d of %d: %w", i, len(pages), err)
		}
		to := w.plain
		if !h.Layout.Coding.IsZero() && w.coded != nil {
			to = w.coded
		}
		if h.Layout != to.layout {
			return in, &LayoutError{Page: i, Got: h.Layout, Want: to.layout}
		}
		if h.Tokens < h.Layout.PageSize && (i < len(pages)-1 || to == w.coded) {
			return in, valueError(fmt.Sprintf("Import: tokens of page %d of %d", i, len(pages)), h.Tokens, "a full page of %d", h.Layout.PageSize)
		}
		for j := range h.Tokens {
			x := int32(binary.LittleEndian.Uint32(payload[4*j:]))
			if x < 0 {
				return in, valueError(fmt.Sprintf("Import: positions[%d] of page %d", j, i), x, "0 or more")
			}
			in.positions.push(x)
		}
		if to == w.coded {
			in.kinds, in.coded = append(in.kinds, -1), append(in.coded, payload)
		} else {
			in.kinds, in.plain = append(in.kinds, 0), append(in.plain, payload)
		}
	}
	return in, nil
}

// fill copies payloads to pages of the host and on to those of the cache.
func (w *SwapSpace) fill(ctx context.Context, in *incoming, plain, coded []int32) error {
	hostPlain, hostCoded, err := w.takeHost(len(plain), len(coded))
	if err != nil {
		return err
	}
	defer w.giveHost(hostPlain, hostCoded)
	w.cache.mu.Unlock()
	w.plain.read(hostPlain, in.plain)
	w.coded.read(hostCoded, in.coded)
	w.cache.mu.Lock()
	return w.copyPages(ctx, plain, coded, hostPlain, hostCoded, true)
}

func (h *hostPages) read(at []int32, payloads [][]byte) {
	for i, p := range payloads {
		to := h.payload(at[i])
		copy(to, p)
		for _, s := range h.segments[1:] {
			littleEndian(to[s.Offset:][:s.Bytes], s.Size)
		}
	}
}

// LayoutError reports a page to be imported that is of another kind of cache.
type LayoutError struct {
	Page      int // of the call
	Got, Want page.Layout
}

func (e *LayoutError) Error() string {
	return fmt.Sprintf("kvcache: page %d to import has layout %+v, want %+v", e.Page, e.Got, e.Want)
}
