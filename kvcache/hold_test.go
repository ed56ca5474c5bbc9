package kvcache_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// begin is Start with the tokens that the oracle knows of the pages.
func (m *machine) begin(pages []kvcache.Page, tokens []token) kvcache.ID {
	m.t.Helper()
	positions := make([]int32, len(tokens))
	for j, tok := range tokens {
		positions[j] = tok.position
	}
	id, err := m.cache.Start(pages, positions)
	m.ok("Start", err)
	s := &oracleSequence{tokens: slices.Clone(tokens)}
	if n := len(tokens); n > 0 {
		s.next = tokens[n-1].position + 1
	}
	m.add(id, s)
	return id
}

// TestHeldPagesOutliveTheirSequence: free + used + cached = all, and sequences
// started from held pages have the rows and are independent.
func TestHeldPagesOutliveTheirSequence(t *testing.T) {
	m := fixed(t, small())
	a := m.start(10)
	tokens := slices.Clone(m.oracle[a].tokens[:8])
	pages, err := m.cache.Hold(a, 0, 8, nil)
	m.ok("Hold", err)
	if s := m.cache.Stats(); s.Used != 3 || s.Cached != 0 || s.Shared != 2 || s.Holds != 2 {
		t.Fatalf("held beside a sequence: %+v", s)
	}
	if seqs, holds := m.cache.Holders(pages[0]); seqs != 1 || holds != 1 {
		t.Fatalf("%d sequences, %d holds", seqs, holds)
	}
	m.forget(a)
	if s := m.cache.Stats(); s.Used != 0 || s.Cached != 2 || s.Free != 4 || s.UsedBytes == 0 {
		t.Fatalf("held alone: %+v", s)
	}
	m.ok("CheckIntegrity", m.cache.CheckIntegrity())
	var full *kvcache.OutOfPagesError
	if _, err := m.cache.Extend([]kvcache.ID{m.start(0)}, []int{17}, nil); !errors.As(err, &full) || full.Free != 4 {
		t.Fatalf("Extend to cached pages: %v", err)
	}
	b, c := m.begin(pages, tokens), m.begin(pages[:1], tokens[:4])
	if s := m.cache.Stats(); s.Used != 2 || s.Cached != 0 {
		t.Fatalf("started from held pages: %+v", s)
	}
	m.grow(b, 1)
	m.grow(c, 2)
	m.check("Start")
	m.ok("Truncate", m.cache.Truncate(b, 5)) // into a held page
	m.oracle[b].tokens, m.oracle[b].next = m.oracle[b].tokens[:5], 5
	m.grow(b, 1)
	m.check("rolling back into a held page")
	m.ok("Release", m.cache.Release(pages...))
	m.check("Release")
	m.forgetAll()
	if s := m.cache.Stats(); s.Free != s.Pages || s.Holds != 0 {
		t.Errorf("in the end: %+v", s)
	}
}

// TestHeldCodedPages: a held page may be coded, and one that is held plain
// stays while its sequence takes the coded one.
func TestHeldCodedPages(t *testing.T) {
	c := small()
	c.Coding, c.CodedPages = coding(kernel.Int8, 2), 4
	m := fixed(t, c)
	a := m.start(9)
	plain, err := m.cache.Hold(a, 0, 4, nil)
	m.ok("Hold", err)
	m.grow(a, 1) // codes two pages
	coded, err := m.cache.Hold(a, 0, 8, nil)
	m.ok("Hold", err)
	if s := m.cache.Stats(); s.Cached != 1 || s.CodedUsed != 2 || s.CodedCached != 0 {
		t.Fatalf("%+v", s)
	}
	tokens := slices.Clone(m.oracle[a].tokens)
	m.forget(a)
	if s := m.cache.Stats(); s.Cached != 1 || s.Used != 0 || s.CodedUsed != 0 || s.CodedCached != 2 {
		t.Fatalf("%+v", s)
	}
	// One sequence of both kinds: the coded page comes after the plain one.
	b := m.begin([]kvcache.Page{plain[0], coded[1]}, tokens[:8])
	m.grow(b, 5)
	m.check("Start from pages of both kinds")
	if _, err := m.cache.Rewrite(b, []int32{5}, nil); !errors.As(err, new(*kvcache.ValueError)) {
		t.Errorf("Rewrite of a coded page: %v", err)
	}
	m.ok("Release", m.cache.Release(append(plain, coded...)...))
	m.check("Release")
	m.forgetAll()
	m.check("the end")
	if s := m.cache.Stats(); s.Free != s.Pages || s.CodedFree != s.CodedPages {
		t.Errorf("in the end: %+v", s)
	}
}

// TestHoldRefuses: what is refused is typed and changes nothing.
func TestHoldRefuses(t *testing.T) {
	m := fixed(t, small())
	a := m.start(10)
	gone := m.start(0)
	m.forget(gone)
	pages, err := m.cache.Hold(a, 0, 8, nil)
	m.ok("Hold", err)
	hold := func(id kvcache.ID, from, to int) error { _, err := m.cache.Hold(id, from, to, nil); return err }
	start := func(pages []kvcache.Page, positions []int32) error {
		_, err := m.cache.Start(pages, positions)
		return err
	}
	rewrite := func(id kvcache.ID, keys ...int32) error { _, err := m.cache.Rewrite(id, keys, nil); return err }
	unknown, value, page := new(*kvcache.UnknownSequenceError), new(*kvcache.ValueError), new(*kvcache.PageError)
	for _, tt := range []struct {
		what   string
		err    func() error
		target any
	}{
		{"Hold freed", func() error { return hold(gone, 0, 0) }, unknown},
		{"Hold a part of a page", func() error { return hold(a, 0, 10) }, value},
		{"Hold from within a page", func() error { return hold(a, 1, 8) }, value},
		{"Hold past the end", func() error { return hold(a, 0, 12) }, value},
		{"Hold before the start", func() error { return hold(a, -4, 4) }, value},
		{"Hold backwards", func() error { return hold(a, 8, 4) }, value},
		{"Release free", func() error { return m.cache.Release(5) }, page},
		{"Release no page", func() error { return m.cache.Release(pages[0], 6) }, page},
		{"Release no coded page", func() error { return m.cache.Release(-1) }, page},
		{"Release twice", func() error { return m.cache.Release(pages[0], pages[1], pages[0]) }, page},
		{"Start from a used page", func() error { return start([]kvcache.Page{2}, nil) }, page},
		{"Start from no page", func() error { return start([]kvcache.Page{pages[0], 6}, nil) }, page},
		{"Start from a page twice", func() error { return start([]kvcache.Page{pages[0], pages[0]}, nil) }, page},
		{"Start with few positions", func() error { return start(pages, make([]int32, 7)) }, value},
		{"Start before 0", func() error { return start(pages[:1], []int32{0, 1, -2, 3}) }, value},
		{"Rewrite freed", func() error { return rewrite(gone) }, unknown},
		{"Rewrite past the end", func() error { return rewrite(a, 1, 10) }, value},
		{"Rewrite before the start", func() error { return rewrite(a, -1) }, value},
	} {
		before := m.snapshot()
		if err := tt.err(); !errors.As(err, tt.target) {
			t.Errorf("%s: error %v, want a %T", tt.what, err, tt.target)
		}
		m.unchanged(tt.what, before)
		m.check(tt.what)
	}
	// A slot of a sequence that is gone, in a page that another holds.
	m.forget(a)
	key, val := tensor.New(tensor.F32, 1, 1, 3), tensor.New(tensor.F32, 1, 1, 2)
	if err := m.cache.Append(0, []int32{int32(pages[0]) * 4}, key, val); !errors.As(err, new(*kvcache.SlotError)) {
		t.Errorf("Append to a held page: %v", err)
	}
}

// TestRewriteCopiesOnce: a rewritten key leaves the others' rows alone, costs a
// copy of its page where that is shared, and none where it is not.
func TestRewriteCopiesOnce(t *testing.T) {
	c := small()
	c.Pages = 7
	m := fixed(t, c)
	a := m.start(10)
	b := m.branch(a)
	m.grow(b, 1)

	rewrite := func(keys ...int32) {
		t.Helper()
		slots, err := m.cache.Rewrite(b, keys, nil)
		m.ok("Rewrite", err)
		var fresh []token
		for _, j := range keys {
			m.tokens++
			tok := token{m.tokens, m.oracle[b].tokens[j].position}
			m.oracle[b].tokens[j] = tok
			fresh = append(fresh, tok)
		}
		for layer := range c.Layers {
			key, value := rowsOf(c, layer, fresh)
			m.ok("Append", m.cache.Append(layer, slots, key, value))
		}
		m.check("Rewrite")
	}
	for call := int64(1); call <= 4; call++ { // of each layer, keys and values
		before := m.snapshot()
		m.backend.failCopy.Store(call)
		if _, err := m.cache.Rewrite(b, []int32{0, 5}, nil); !errors.Is(err, errInjected) {
			t.Fatalf("copy %d: %v", call, err)
		}
		m.unchanged("Rewrite", before)
		m.check("Rewrite")
	}
	copied := m.backend.copied.Load()
	rewrite(6, 5, 10, 1)
	if n := m.backend.copied.Load() - copied; n != 8 { // two pages, keys and values, two layers
		t.Errorf("%d copies, want 8", n)
	}
	rewrite(7, 4)
	if n := m.backend.copied.Load() - copied; n != 8 {
		t.Errorf("%d copies of pages that were not shared", n-8)
	}
	var full *kvcache.OutOfPagesError
	d := m.branch(b)
	m.start(4)
	before := m.snapshot()
	if _, err := m.cache.Rewrite(d, []int32{0, 10}, nil); !errors.As(err, &full) || full.Need != 2 {
		t.Errorf("Rewrite in a full cache: %v", err)
	}
	m.unchanged("Rewrite", before)
}
