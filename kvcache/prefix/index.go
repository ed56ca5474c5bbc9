package prefix

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/kvcache"
)

// Index finds the pages of a Cache that hold the keys and values of a prefix. Its
// methods may be called from several goroutines. NewRadix and NewChain make one.
type Index interface {
	// Match finds the most full pages that p begins with, and locks them: until
	// the Lease is released they are not evicted. A model needs the last token of
	// a prompt computed anew: match the prompt without it.
	Match(p *Prompt) (*Lease, error)

	// Insert makes the full pages of p, which are those that sequence id begins
	// with, known, and holds those that were not. The sequence keeps its own
	// pages. Their rows must have been stored, and computed from p alone: nothing
	// dropped, merged or put elsewhere. It returns the number of new pages.
	//
	// A page that is known plain, and not locked, is exchanged for the sequence's
	// where that is coded by now: insert again when a sequence ends.
	//
	// A sequence with fewer keys, or with positions other than the ordinals, is a
	// *ValueError.
	Insert(p *Prompt, id kvcache.ID) (pages int, err error)

	// Evict gives up to so many pages back to the Cache, by Order, from the ends
	// of prefixes, and returns how many. It passes over pages that are locked, or
	// that a sequence or another holder has: that would free nothing. It takes
	// O(log n) for a page of n known prefixes, given back or passed over.
	Evict(pages int) int

	// Clear forgets everything that is not locked, and returns the number of
	// pages that stay. (New weights are better a new Namespace: what was begun
	// with the old ones may still be inserted.)
	Clear() int

	Stats() Stats

	// CheckIntegrity recounts everything, of which an error is a fault of this
	// package, or of a Release of a page that another holds.
	CheckIntegrity() error
}

// Stats is what an Index holds at one moment, and what it has done.
type Stats struct {
	Pages, Nodes int // held; by so many nodes of the tree
	Locked       int // nodes that leases lock
	Scopes       int // different (Namespace, Salt, Adapter)

	Matches, Inserts          int64 // calls
	MatchTokens, HitTokens    int64 // asked for; found
	InsertedPages, FreedPages int64
}

// Options of an Index.
type Options struct {
	Order  Order
	Hasher Hasher // of NewChain, and of what Evicted is told; nil: SHA256

	// Evicted, if not nil, is told of each page that Evict is about to give back,
	// and may read it until it returns: Levels.Evicted puts it in a store. The Index
	// is locked meanwhile and must not be called. Clear does not tell.
	Evicted func(Evicted)
}

// Evicted is a page that an Index gives back.
type Evicted struct {
	Namespace, Salt, Adapter string // of the Prompt

	Hash  Hash         // of the page and all before it, as Hashes gives it
	Page  kvcache.Page // held until Options.Evicted returns
	First int          // ordinal of its first key
}

// NewRadix is an Index over c by a radix tree of pages (Zheng et al., "SGLang:
// Efficient Execution of Structured Language Model Programs",
// https://arxiv.org/abs/2312.07104): a node is a run of pages, and its children
// begin with different ones. Tokens are the keys, so nothing can collide.
func NewRadix(c *kvcache.Cache, o Options) (Index, error) {
	if o.Hasher != nil && o.Evicted == nil {
		return nil, valueError("Options.Hasher", fmt.Sprintf("%T", o.Hasher), "nil without Evicted: a radix tree hashes nothing")
	}
	return newTree(c, o, &radix{})
}

// NewChain is an Index over c by a chain of hashes, as vLLM has it (Kwon et al.,
// https://arxiv.org/abs/2309.06180): the hash of a page is that of its parent's
// hash, its tokens and its media. A page found by its hash is compared, with the
// page before it, so a collision costs time and shares nothing.
func NewChain(c *kvcache.Cache, o Options) (Index, error) {
	h := o.Hasher
	if h == nil {
		h = SHA256{}
	}
	return newTree(c, o, &chain{hasher: h, table: map[Hash]*node{}})
}

// Extend is Cache.Extend that evicts pages from x where too few are free, as
// many as are missing, and tries again until it fits or x has none to give.
func Extend(c *kvcache.Cache, x Index, seqs []kvcache.ID, counts []int, slots []int32) ([]int32, error) {
	for {
		out, err := c.Extend(seqs, counts, slots)
		var full *kvcache.OutOfPagesError
		if !errors.As(err, &full) {
			return out, err
		}
		missing := full.Need - int64(full.Free)
		if missing > maxLength || x.Evict(int(missing)) == 0 {
			return out, err
		}
	}
}

// Lease is a prefix that was found. It keeps its pages from being evicted until
// Release.
type Lease struct {
	tree  *tree
	node  *node // the last; nil: nothing was found
	pages []kvcache.Page

	released bool
}

// Tokens is the number of tokens found.
func (l *Lease) Tokens() int { return len(l.pages) * l.tree.size }

// Pages are the pages found, in order, until Release; the caller does not change
// them.
func (l *Lease) Pages() []kvcache.Page { return l.pages }

// Start starts a sequence with what was found, to which the rest of the prompt
// is added by Extend. It shares the pages for as long as it lives, so that the
// Lease may then be released. After Release it is a *ValueError: the pages may be
// another's by then.
func (l *Lease) Start() (kvcache.ID, error) {
	l.tree.mu.Lock()
	defer l.tree.mu.Unlock()
	if l.released {
		return 0, valueError("Lease", "released", "Start before Release")
	}
	id, err := l.tree.cache.Start(l.pages, nil)
	if err != nil {
		return 0, fmt.Errorf("prefix: %w", err)
	}
	return id, nil
}

// Release unlocks the pages. A second call does nothing.
func (l *Lease) Release() { l.tree.release(l) }
