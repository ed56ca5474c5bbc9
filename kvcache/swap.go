package kvcache

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/tensor"
)

// SwapSpace is memory of the host for pages of one Cache. Sequences move there
// whole and come back, for a scheduler that has to make room (SwapOut, Restore,
// Discard); and pages pass through it on their way to other processes and
// stores (Export, Import). Its methods may be called from several goroutines and
// block; the cache can be used meanwhile. For the sequence that is named the
// rules of the package comment hold: SwapOut, Restore and Import change it,
// Export reads it.
type SwapSpace struct {
	cache   *Cache
	swapper kernel.Swapper
	plain   *hostPages
	coded   *hostPages // nil without a Coding

	// of all below, and of the free lists, under the cache's lock
	swapped map[ID]*sequence // pages are those of the host
	counts  SwapStats        // of those that only grow
	closed  bool
	calls   sync.WaitGroup
}

// hostPages are pages of one kind in memory of the host. Each is the payload of
// package page, so that its tensors lie in one piece.
type hostPages struct {
	layout   page.Layout
	segments []page.Segment
	record   int64 // bytes of a page
	bytes    []byte
	buffer   tensor.Buffer
	tensors  []tensor.View        // of the host
	likes    func() []tensor.View // of the cache: Grow makes others
	free     []int32
	total    int
}

// SwapStats is what a SwapSpace holds at one moment.
type SwapStats struct {
	Sequences             int
	Tokens                int64
	Pages, Free           int
	CodedPages, CodedFree int
	Bytes                 int64 // of all pages

	// since NewSwapSpace: sequences and pages, of both kinds, that SwapOut and
	// Restore moved, and calls of all methods in which a copy failed or was cancelled
	Out, In           int64
	PagesOut, PagesIn int64
	Failed            int64
}

// NewSwapSpace allocates memory of the host for so many plain and coded pages,
// which hold all layers. The backend has to be a kernel.Swapper, or the error is
// a *kernel.UnsupportedError; where memory is short it is the backend's, wrapped.
func (c *Cache) NewSwapSpace(pages, codedPages int) (*SwapSpace, error) {
	swapper, ok := c.backend.(kernel.Swapper)
	if !ok {
		return nil, &kernel.UnsupportedError{Backend: c.backend.Name(), Reasons: []string{"it is no kernel.Swapper: it cannot move pages to the host"}}
	}
	if pages < 0 || int64(pages) > 1<<31-1 {
		return nil, valueError("NewSwapSpace: pages", pages, "0 to 2³¹−1")
	}
	if codedPages < 0 || int64(codedPages) > 1<<31-1 || codedPages > 0 && !c.config.Coded() {
		return nil, valueError("NewSwapSpace: codedPages", codedPages, "0 to 2³¹−1, and 0 without a Coding")
	}
	w := &SwapSpace{cache: c, swapper: swapper, swapped: map[ID]*sequence{}}
	var err error
	if w.plain, err = w.alloc(pages, false, c.plainTensors); err != nil {
		return nil, err
	}
	if c.config.Coded() {
		if w.coded, err = w.alloc(codedPages, true, c.codedTensors); err != nil {
			return nil, errors.Join(err, w.plain.close())
		}
	}
	return w, nil
}

// layout is that of a page of either kind. A *ValueError says that package page has no
// place for a coding of each layer.
func (c *Cache) layout(coded bool) (page.Layout, error) {
	f := &c.config
	l := page.Layout{Layers: f.Layers, PageSize: f.PageSize, KVHeads: f.KVHeads, HeadDim: f.HeadDim, ValueDim: f.ValueDim, DType: f.DType, KeyStorage: f.KeyStorage}
	if coded {
		if f.LayerCoding != nil {
			return l, valueError("NewSwapSpace: Config.LayerCoding", fmt.Sprint(len(f.LayerCoding), " codings"), "none: a page has one Coding for all layers")
		}
		l.Coding = f.Coding
	}
	return l, nil
}

func (c *Cache) plainTensors() (list []tensor.View) {
	plain := c.plain.Load()
	for i := range plain.keys {
		list = append(list, plain.keys[i], plain.values[i])
	}
	return list
}

// codedTensors are in the order of package page.
func (c *Cache) codedTensors() (list []tensor.View) {
	for i := range c.coded {
		for _, p := range []*kernel.CodedPages{&c.coded[i].key, &c.coded[i].value} {
			for _, v := range []tensor.View{p.Codes, p.Scale, p.Zero, p.Outliers, p.Left, p.Right} {
				if !v.IsZero() {
					list = append(list, v)
				}
			}
		}
	}
	return list
}

func (w *SwapSpace) alloc(pages int, coded bool, likes func() []tensor.View) (*hostPages, error) {
	l, err := w.cache.layout(coded)
	if err != nil {
		return nil, err
	}
	h := &hostPages{layout: l, total: pages, likes: likes}
	if h.segments, h.record, err = l.Segments(); err != nil {
		return nil, fmt.Errorf("kvcache: swap space: %w", err)
	}
	if pages == 0 {
		return h, nil
	}
	bytes, ok := product(int64(pages), h.record)
	if !ok {
		return nil, valueError("NewSwapSpace: pages", pages, "fewer: a page has %d bytes", h.record)
	}
	if h.buffer, err = w.swapper.HostAlloc(bytes); err != nil {
		return nil, fmt.Errorf("kvcache: swap space of %d pages: %w", pages, err)
	}
	memory, ok := h.buffer.(interface{ Bytes() []byte })
	if !ok {
		return nil, errors.Join(errors.New("kvcache: swap space: the backend's HostAlloc gave memory without Bytes"), h.close())
	}
	h.bytes = memory.Bytes()
	for i, v := range likes() {
		host, s := v, h.segments[1+i]
		host.Buf, host.Shape[0] = h.buffer, int64(pages)
		host.Stride[0], host.Offset = h.record/s.Size, s.Offset/s.Size
		h.tensors = append(h.tensors, host)
	}
	for i := pages - 1; i >= 0; i-- {
		h.free = append(h.free, int32(i))
	}
	return h, nil
}

func (h *hostPages) close() error {
	if c, ok := h.buffer.(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}

// payload is that of one page.
func (h *hostPages) payload(at int32) []byte {
	return h.bytes[int64(at)*h.record:][:h.record:h.record]
}

// take gives n pages. The caller has seen that they are there.
func (h *hostPages) take(n int) []int32 {
	at := len(h.free) - n
	list := append([]int32(nil), h.free[at:]...)
	h.free = h.free[:at]
	return list
}

// transfer moves pages of all tensors, and returns when no copy is under way.
func (w *SwapSpace) transfer(ctx context.Context, h *hostPages, cachePages, host []int32, in bool) error {
	if len(cachePages) == 0 {
		return nil
	}
	start := w.swapper.SwapOut
	if in {
		start = w.swapper.SwapIn
	}
	var under []kernel.Transfer
	var err error
	for i, like := range h.likes() {
		if err = ctx.Err(); err != nil {
			break
		}
		t, failed := start(&kernel.SwapArgs{Cache: like, Host: h.tensors[i], CachePages: cachePages, HostPages: host})
		if err = failed; err != nil {
			break
		}
		under = append(under, t)
	}
	for _, t := range under { // also after an error: the pages must not be used before
		err = errors.Join(err, t.Wait())
	}
	return err
}

// split lists the pages of a table by kind.
func split(pages []int32) (plain, coded []int32) {
	for _, p := range pages {
		if p < 0 {
			coded = append(coded, ^p)
		} else {
			plain = append(plain, p)
		}
	}
	return plain, coded
}

// join is the table of kinds as in like, with other pages.
func join(like, plain, coded []int32) []int32 {
	pages := make([]int32, len(like))
	for i, p := range like {
		if p < 0 {
			pages[i], coded = ^coded[0], coded[1:]
		} else {
			pages[i], plain = plain[0], plain[1:]
		}
	}
	return pages
}

// takeHost gives pages of the host, or an *OutOfSwapError.
func (w *SwapSpace) takeHost(plain, coded int) (p, q []int32, err error) {
	if plain > len(w.plain.free) {
		return nil, nil, &OutOfSwapError{Need: plain, Free: len(w.plain.free)}
	}
	if coded > 0 && coded > len(w.coded.free) {
		return nil, nil, &OutOfSwapError{Need: coded, Free: len(w.coded.free), Coded: true}
	}
	if coded > 0 {
		q = w.coded.take(coded)
	}
	return w.plain.take(plain), q, nil
}

func (w *SwapSpace) giveHost(plain, coded []int32) {
	w.plain.free = append(w.plain.free, plain...)
	if len(coded) > 0 {
		w.coded.free = append(w.coded.free, coded...)
	}
}

// takePages gives free pages of the cache to one table, or an *OutOfPagesError.
func (c *Cache) takePages(plain, coded, reserved int) (p, q []int32, err error) {
	if free := c.available() + reserved; plain > free {
		return nil, nil, &OutOfPagesError{Need: int64(plain), Free: free}
	}
	if free := len(c.codes.pool.free); coded > free {
		return nil, nil, &OutOfPagesError{Need: int64(coded), Free: free, Coded: true}
	}
	for range plain {
		p = append(p, c.pool.take())
	}
	for range coded {
		q = append(q, c.codes.pool.take())
	}
	return p, q, nil
}

// enter begins a method: the lock is held after it, if there is no error.
func (w *SwapSpace) enter() error {
	w.cache.mu.Lock()
	if w.closed {
		w.cache.mu.Unlock()
		return ErrSwapClosed
	}
	w.calls.Add(1)
	return nil
}

// copyPages moves the pages of both kinds without the lock, and has it again.
func (w *SwapSpace) copyPages(ctx context.Context, plain, coded, hostPlain, hostCoded []int32, in bool) error {
	w.cache.mu.Unlock()
	err := w.transfer(ctx, w.plain, plain, hostPlain, in)
	if err == nil {
		err = w.transfer(ctx, w.coded, coded, hostCoded, in)
	}
	w.cache.mu.Lock()
	if err != nil {
		w.counts.Failed++
	}
	return err
}

// SwapOut moves sequences to the host, all or none, and gives their pages back to
// the cache, and what they had reserved. Methods of the Cache do not know them
// until Restore, which gives them the same IDs. Pages that a sequence shares with
// others are copied too, and come back as its own.
//
// Sequences for which the space has no room are an *OutOfSwapError; an ID that
// comes twice is a *ValueError. After any error, that of a context that has ended
// included, nothing has changed.
func (w *SwapSpace) SwapOut(ctx context.Context, ids ...ID) error {
	if err := w.enter(); err != nil {
		return err
	}
	defer w.calls.Done()
	c := w.cache
	defer c.mu.Unlock()
	list, pages, err := named("SwapOut", c.sequences, ids)
	if err != nil {
		return err
	}
	plain, coded := split(pages)
	hostPlain, hostCoded, err := w.takeHost(len(plain), len(coded))
	if err != nil {
		return err
	}
	for i, id := range ids {
		delete(c.sequences, id)
		c.moving[id] = list[i]
	}
	err = w.copyPages(ctx, plain, coded, hostPlain, hostCoded, false)
	pages = join(pages, hostPlain, hostCoded)
	for i, id := range ids {
		s := list[i]
		delete(c.moving, id)
		if err != nil {
			c.sequences[id] = s
			continue
		}
		n := len(s.pages)
		w.swapped[id] = &sequence{pages: pages[:n:n], seen: s.seen, positions: s.positions}
		pages = pages[n:]
		c.setReserved(s, 0)
		c.dropAll(s.pages)
		c.tokens -= int64(s.len())
	}
	if err != nil {
		w.giveHost(hostPlain, hostCoded)
		return fmt.Errorf("kvcache: swapping out sequences %v of %d pages: %w", ids, len(pages), err)
	}
	w.counts.Out += int64(len(ids))
	w.counts.PagesOut += int64(len(plain) + len(coded))
	return nil
}

// Restore moves sequences back to the cache, all or none: their keys, values and
// positions are what they were, in other pages. A cache without enough free pages
// is an *OutOfPagesError, an ID that is not in the space an
// *UnknownSequenceError, one that comes twice a *ValueError. After any error
// nothing has changed, and Restore can be tried again.
func (w *SwapSpace) Restore(ctx context.Context, ids ...ID) error {
	if err := w.enter(); err != nil {
		return err
	}
	defer w.calls.Done()
	c := w.cache
	defer c.mu.Unlock()
	list, pages, err := named("Restore", w.swapped, ids)
	if err != nil {
		return err
	}
	hostPlain, hostCoded := split(pages)
	plain, coded, err := c.takePages(len(hostPlain), len(hostCoded), 0)
	if err != nil {
		return err
	}
	rest := join(pages, plain, coded)
	for i, id := range ids {
		out := list[i]
		n := len(out.pages)
		delete(w.swapped, id)
		c.moving[id] = &sequence{pages: rest[:n:n], seen: out.seen, positions: out.positions}
		rest = rest[n:]
		c.tokens += int64(out.len())
	}
	err = w.copyPages(ctx, plain, coded, hostPlain, hostCoded, true)
	for i, id := range ids {
		s := c.moving[id]
		delete(c.moving, id)
		if err == nil {
			c.sequences[id] = s
			continue
		}
		w.swapped[id] = list[i]
		c.dropAll(s.pages)
		c.tokens -= int64(s.len())
	}
	if err != nil {
		return fmt.Errorf("kvcache: restoring sequences %v of %d pages: %w", ids, len(pages), err)
	}
	w.giveHost(hostPlain, hostCoded)
	w.counts.In += int64(len(ids))
	w.counts.PagesIn += int64(len(pages))
	return nil
}

// named finds sequences, and lists the pages of all.
func named(method string, in map[ID]*sequence, ids []ID) (list []*sequence, pages []int32, err error) {
	seen := make(map[ID]bool, len(ids))
	for i, id := range ids {
		s := in[id]
		if s == nil {
			return nil, nil, &UnknownSequenceError{id}
		}
		if seen[id] {
			return nil, nil, valueError(fmt.Sprintf("%s: ids[%d]", method, i), id, "a sequence not named before")
		}
		seen[id] = true
		list, pages = append(list, s), append(pages, s.pages...)
	}
	return list, pages, nil
}

// Discard ends a sequence that is swapped out, as Cache.Free does one that is
// not.
func (w *SwapSpace) Discard(id ID) error {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	s := w.swapped[id]
	if s == nil {
		return &UnknownSequenceError{id}
	}
	w.giveHost(split(s.pages))
	delete(w.swapped, id)
	return nil
}

// Len is the number of keys of a sequence that is swapped out, and Pages the
// plain and coded pages that Restore takes.
func (w *SwapSpace) Len(id ID) (keys, pages, codedPages int, err error) {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	s := w.swapped[id]
	if s == nil {
		return 0, 0, 0, &UnknownSequenceError{id}
	}
	plain, coded := split(s.pages)
	return s.len(), len(plain), len(coded), nil
}

// Stats is what w holds now.
func (w *SwapSpace) Stats() SwapStats {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	s := w.counts
	s.Sequences, s.Pages, s.Free = len(w.swapped), w.plain.total, len(w.plain.free)
	s.Bytes = w.plain.record * int64(s.Pages)
	if w.coded != nil {
		s.CodedPages, s.CodedFree = w.coded.total, len(w.coded.free)
		s.Bytes += w.coded.record * int64(w.coded.total)
	}
	for _, x := range w.swapped {
		s.Tokens += int64(x.len())
	}
	return s
}

// CheckIntegrity recounts the pages of w, as Cache.CheckIntegrity those of the
// cache: each is free or in one sequence. It must not be called while another
// method is under way.
func (w *SwapSpace) CheckIntegrity() error {
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	var faults []error
	check := func(kind string, h *hostPages, lists ...[]int32) {
		seen := make([]int, h.total)
		for _, list := range lists {
			for _, p := range list {
				seen[p]++
			}
		}
		for p, n := range seen {
			if n != 1 {
				faults = append(faults, fmt.Errorf("kvcache: internal error: %s %d of a swap space is in %d lists, want 1", kind, p, n))
			}
		}
	}
	plain, coded := [][]int32{w.plain.free}, [][]int32{}
	for id, s := range w.swapped {
		p, q := split(s.pages)
		plain, coded = append(plain, p), append(coded, q)
		if w.cache.sequences[id] != nil || len(s.pages) != w.cache.pagesFor(s.len()) {
			faults = append(faults, fmt.Errorf("kvcache: internal error: swapped sequence %d of %d keys has %d pages, or is in the cache too", id, s.len(), len(s.pages)))
		}
	}
	check("page", w.plain, plain...)
	if w.coded != nil {
		check("coded page", w.coded, append(coded, w.coded.free)...)
	}
	return errors.Join(faults...)
}

// Close waits for the methods under way, ends the sequences that are swapped out
// and frees the memory.
func (w *SwapSpace) Close() error {
	w.cache.mu.Lock()
	closed := w.closed
	w.closed = true
	w.cache.mu.Unlock()
	if closed {
		return nil
	}
	w.calls.Wait()
	w.cache.mu.Lock()
	defer w.cache.mu.Unlock()
	clear(w.swapped)
	err := w.plain.close()
	w.plain.free, w.plain.total = nil, 0
	if w.coded != nil {
		err = errors.Join(err, w.coded.close())
		w.coded.free, w.coded.total = nil, 0
	}
	return err
}

// ErrSwapClosed is returned by a SwapSpace after Close.
var ErrSwapClosed = errors.New("kvcache: swap space is closed")

// OutOfSwapError reports that a SwapSpace has too few free pages. Nothing was
// changed.
type OutOfSwapError struct {
	Need, Free int
	Coded      bool // of coded pages
}

func (e *OutOfSwapError) Error() string {
	kind := ""
	if e.Coded {
		kind = "coded "
	}
	return fmt.Sprintf("kvcache: swap space: %d %spages needed, %d free", e.Need, kind, e.Free)
}
