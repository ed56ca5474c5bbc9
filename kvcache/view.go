package kvcache

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
)

// View is the sequences of a batch, in order, as attention reads them. It
// looks at the cache when it is asked, so one View serves many steps. One
// goroutine uses a View at a time. Cache.Sequences makes one.
type View struct {
	cache *Cache
	ids   []ID
	found []*sequence // scratch
}

// Sequences is the View of the given sequences. An ID may come twice.
func (c *Cache) Sequences(ids ...ID) *View {
	v := &View{cache: c}
	v.Reset(ids...)
	return v
}

// Reset changes the sequences of v.
func (v *View) Reset(ids ...ID) { v.ids = append(v.ids[:0], ids...) }

// KeyStorage is Config.KeyStorage.
func (v *View) KeyStorage() kernel.KeyStorage { return v.cache.config.KeyStorage }

// PageSize is Config.PageSize.
func (v *View) PageSize() int { return v.cache.config.PageSize }

// LowerKV writes SeqLens and Pages of dst, in the memory they have where it
// suffices, and empties KeyStart. It returns an *UnknownSequenceError for a
// freed sequence and a *TooLongError if the tables together pass 2³¹−1 pages;
// dst is unchanged then. The tables hold good until the next Extend, Truncate,
// Drop or Free of one of the sequences.
func (v *View) LowerKV(dst *kernel.Batch) error {
	if dst == nil {
		return valueError("LowerKV: dst", "nil", "a Batch")
	}
	v.cache.mu.Lock()
	defer v.cache.mu.Unlock()
	defer v.forget()
	if err := v.find(); err != nil {
		return err
	}
	pages := int64(0)
	for _, s := range v.found {
		pages += int64(len(s.pages))
	}
	if pages > math.MaxInt32 {
		return &TooLongError{"number of pages of a batch", fmt.Sprint(pages)}
	}
	dst.KeyStart = dst.KeyStart[:0]
	dst.SeqLens = dst.SeqLens[:0]
	t := &dst.Pages
	t.Indptr, t.Indices, t.Coded = append(t.Indptr[:0], 0), t.Indices[:0], t.Coded[:0]
	for _, s := range v.found {
		dst.SeqLens = append(dst.SeqLens, int32(s.len()))
		if !v.cache.config.Coded() {
			t.Indices = append(t.Indices, s.pages...)
		} else {
			for _, page := range s.pages {
				t.Indices, t.Coded = append(t.Indices, max(page, ^page)), append(t.Coded, page < 0)
			}
		}
		t.Indptr = append(t.Indptr, int32(len(t.Indices)))
	}
	return nil
}

// KeyPositions appends to dst the positions of the keys of all sequences, one
// sequence after the other. It returns nil if each is its ordinal, and also if
// a sequence was freed, which LowerKV reports.
func (v *View) KeyPositions(dst []int32) []int32 {
	v.cache.mu.Lock()
	defer v.cache.mu.Unlock()
	defer v.forget()
	if v.find() != nil {
		return nil
	}
	identity := true
	for _, s := range v.found {
		identity = identity && len(s.positions.rest) == 0
	}
	if identity {
		return nil
	}
	for _, s := range v.found {
		dst = s.positions.appendTo(dst)
	}
	return dst
}

// forget lets a sequence that is freed later go.
func (v *View) forget() {
	clear(v.found)
	v.found = v.found[:0]
}

func (v *View) find() error {
	for _, id := range v.ids {
		s, err := v.cache.find(id)
		if err != nil {
			return err
		}
		v.found = append(v.found, s)
	}
	return nil
}
