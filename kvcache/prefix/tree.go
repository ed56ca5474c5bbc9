package prefix

import (
	"fmt"
	"slices"
	"sync"

	"github.com/longctx/longctx/kvcache"
)

// node is a run of pages that follow those of its parent. One of a root has no
// pages and stands for a scope.
type node struct {
	parent *node
	root   *node // above all; nil: this one
	scope  scope // of a root
	tokens []int32
	extra  []string // of each page; nil: nothing
	pages  []kvcache.Page
	first  int    // pages before it
	hashes []Hash // of each page, with Options.Evicted

	children int
	locks    int // leases of it or of nodes below

	used, born uint64 // ticks of the last touch and of the insert
	hits       uint64 // matches
	priority   int
	at         int // in the queue, or unqueued

	below map[string]*node // of a radix tree: children by their first page
	hash  Hash             // of a chain
	next  *node            // of a chain: another of the same hash
}

// lookup finds children. It is all that the two kinds of Index differ in.
type lookup interface {
	root(p *Prompt, n *node)                     // n becomes a root
	child(n *node, g *paged, page int) *node     // that begins with page of g, compared in full
	attach(n *node, g *paged, page int)          // n, which begins with page of g, to its parent
	detach(n *node)                              // undoes attach
	split(upper, lower *node)                    // lower, attached, has lost its first pages to upper
	run(pages int) int                           // how many pages a new node takes of so many
	check(n *node, fault func(string, ...any))   // that n is found
	count(nodes int, fault func(string, ...any)) // that so many, without roots, are all
}

// tree is an Index.
type tree struct {
	cache *kvcache.Cache
	size  int // tokens a page
	look  lookup

	evicted func(Evicted) // nil: nobody is told
	hasher  Hasher        // with evicted

	mu    sync.Mutex // of all below; the Cache's is taken under it
	roots map[scope]*node
	queue queue // nodes without children and locks
	tick  uint64
	stats Stats
}

func newTree(c *kvcache.Cache, o Options, look lookup) (Index, error) {
	if c == nil {
		return nil, valueError("Cache", "nil", "a cache")
	}
	if o.Order > ByPriority {
		return nil, valueError("Options.Order", o.Order, "LRU, LFU, FIFO or priority")
	}
	t := &tree{cache: c, size: c.Config().PageSize, look: look, evicted: o.Evicted, hasher: o.Hasher, roots: map[scope]*node{}, queue: queue{order: o.Order}}
	if t.hasher == nil {
		t.hasher = SHA256{}
	}
	return t, nil
}

func (t *tree) Match(p *Prompt) (*Lease, error) {
	g, err := cut(p, t.size)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tick++
	t.stats.Matches++
	t.stats.MatchTokens += int64(len(p.Tokens))
	l := &Lease{tree: t}
	root := t.roots[p.scope()]
	if root == nil {
		return l, nil
	}
	n, found := t.walk(root, &g)
	if found == 0 {
		return l, nil
	}
	l.node, l.pages = n, make([]kvcache.Page, found)
	t.stats.HitTokens += int64(found * t.size)
	for ; n.parent != nil; n = n.parent {
		found -= copy(l.pages[found-len(n.pages):], n.pages)
		n.used, n.hits = t.tick, n.hits+1
		if n.locks++; n.locks == 1 {
			t.stats.Locked++
		}
		t.queue.remove(n)
	}
	return l, nil
}

func (t *tree) release(l *Lease) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := l.node
	l.node, l.released = nil, true
	for ; n != nil && n.parent != nil; n = n.parent {
		if n.locks--; n.locks == 0 {
			t.stats.Locked--
			t.offer(n)
		}
	}
}

// offer queues n if it may be evicted.
func (t *tree) offer(n *node) {
	if n.parent != nil && n.children == 0 && n.locks == 0 {
		t.queue.push(n)
	}
}

// walk follows the pages of g, and splits a node of which only some match: the
// node returned ends where the match does.
func (t *tree) walk(n *node, g *paged) (last *node, pages int) {
	for total := g.pages(); pages < total; {
		c := t.look.child(n, g, pages)
		if c == nil {
			break
		}
		k := 1
		for k < len(c.pages) && pages+k < total && c.same(k, g, pages+k) {
			k++
		}
		if pages += k; k < len(c.pages) {
			return t.split(c, k), pages
		}
		n = c
	}
	return n, pages
}

// same reports whether page k of n is page i of g.
func (n *node) same(k int, g *paged, i int) bool {
	tokens, extra := g.page(i)
	return slices.Equal(n.tokens[k*g.size:(k+1)*g.size], tokens) && n.extraOf(k) == extra
}

func (n *node) extraOf(k int) string {
	if n.extra == nil {
		return ""
	}
	return n.extra[k]
}

// split makes the first k pages of n a node of their own, which is returned. n
// keeps the others, so that leases and the queue stay right.
func (t *tree) split(n *node, k int) *node {
	upper := &node{parent: n.parent, root: n.root, tokens: n.tokens[: k*t.size : k*t.size], pages: n.pages[:k:k], first: n.first, children: 1,
		locks: n.locks, used: n.used, born: n.born, hits: n.hits, priority: n.priority, at: unqueued}
	n.parent, n.tokens, n.pages, n.first = upper, n.tokens[k*t.size:], n.pages[k:], n.first+k
	if n.hashes != nil {
		upper.hashes, n.hashes = n.hashes[:k:k], n.hashes[k:]
	}
	if n.extra != nil {
		upper.extra, n.extra = n.extra[:k:k], n.extra[k:]
	}
	t.look.split(upper, n)
	t.stats.Nodes++
	if upper.locks > 0 {
		t.stats.Locked++
	}
	return upper
}

func (t *tree) Insert(p *Prompt, id kvcache.ID) (int, error) {
	g, err := cut(p, t.size)
	if err != nil {
		return 0, err
	}
	n, err := t.cache.Ordinal(id)
	if err != nil {
		return 0, fmt.Errorf("prefix: %w", err)
	}
	want := g.pages()
	if n < want*t.size {
		return 0, valueError("Insert: sequence", fmt.Sprintf("of %d keys at the positions of their ordinals", n), "%d, the full pages of the prompt", want*t.size)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	root := t.root(p)
	last, have := t.walk(root, &g)
	pages, err := t.cache.Hold(id, have*t.size, want*t.size, nil)
	if err != nil {
		t.forget(root)
		return 0, fmt.Errorf("prefix: %w", err)
	}
	t.tick++
	t.stats.Inserts++
	t.stats.InsertedPages += int64(len(pages))
	t.stats.Pages += len(pages)
	for n := last; n.parent != nil; n = n.parent {
		n.used, n.priority = t.tick, max(n.priority, p.Priority)
		t.queue.fix(n)
	}
	t.exchange(last, have, id)
	t.grow(last, &g, have, pages)
	t.forget(root)
	return len(pages), nil
}

// exchange gives up plain pages on the way to n, its last the have-th, for those
// of a sequence that are coded.
func (t *tree) exchange(n *node, have int, id kvcache.ID) {
	if c := t.cache.Config(); !c.Coded() {
		return
	}
	pages, err := t.cache.Hold(id, 0, have*t.size, nil)
	if err != nil {
		return // its pages are as good
	}
	for ; n.parent != nil; n = n.parent {
		have -= len(n.pages)
		for k, page := range n.pages {
			if other := pages[have+k]; n.locks == 0 && !page.Coded() && other.Coded() {
				n.pages[k], pages[have+k] = other, page
			}
		}
	}
	_ = t.cache.Release(pages...)
}

// grow adds pages, which are those of g from the first-th on, below n.
func (t *tree) grow(n *node, g *paged, first int, pages []kvcache.Page) {
	if len(pages) == 0 {
		return
	}
	for len(pages) > 0 {
		k := t.look.run(len(pages))
		c := &node{parent: n, root: n.top(), first: first, hashes: t.hash(n, g, first, k), pages: slices.Clone(pages[:k]), used: t.tick, born: t.tick, priority: g.Priority, at: unqueued,
			tokens: slices.Clone(g.Tokens[first*t.size : (first+k)*t.size])}
		if g.extra != nil {
			c.extra = slices.Clone(g.extra[first : first+k])
		}
		t.queue.remove(n)
		n.children++
		t.look.attach(c, g, first)
		t.stats.Nodes++
		n, first, pages = c, first+k, pages[k:]
	}
	t.offer(n)
}

func (n *node) top() *node {
	if n.root == nil {
		return n
	}
	return n.root
}

// hash gives the hashes of k pages of g, the first of which comes after n.
func (t *tree) hash(n *node, g *paged, first, k int) (hashes []Hash) {
	if t.evicted == nil {
		return nil
	}
	var parent Hash
	if n.root == nil {
		parent = t.hasher.Root(g.Prompt)
	} else {
		parent = n.hashes[len(n.hashes)-1]
	}
	for i := first; i < first+k; i++ {
		parent = t.hasher.Page(parent, g.Prompt, i, t.size)
		hashes = append(hashes, parent)
	}
	return hashes
}

func (t *tree) root(p *Prompt) *node {
	n := t.roots[p.scope()]
	if n == nil {
		n = &node{scope: p.scope(), at: unqueued}
		t.look.root(p, n)
		t.roots[n.scope] = n
	}
	return n
}

// forget removes a root that has no pages below it.
func (t *tree) forget(n *node) {
	if n.parent == nil && n.children == 0 {
		delete(t.roots, n.scope)
	}
}

func (t *tree) Evict(pages int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.evict(pages, t.evicted, func(page kvcache.Page) bool {
		sequences, holds := t.cache.Holders(page)
		return sequences == 0 && holds == 1
	})
}

func (t *tree) Clear() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.evict(t.stats.Pages, nil, func(kvcache.Page) bool { return true })
	return t.stats.Pages
}

// evict gives back pages that may go, and passes over nodes whose last may not.
func (t *tree) evict(pages int, tell func(Evicted), may func(kvcache.Page) bool) (freed int) {
	var passed []*node
	for freed < pages && len(t.queue.nodes) > 0 {
		n := t.queue.nodes[0]
		last := len(n.pages) - 1
		page := n.pages[last]
		ok := may(page)
		if ok && tell != nil {
			of := n.top().scope
			tell(Evicted{of.namespace, of.salt, of.adapter, n.hashes[last], page, (n.first + last) * t.size})
		}
		if !ok || t.cache.Release(page) != nil {
			t.queue.remove(n)
			passed = append(passed, n)
			continue
		}
		freed++
		t.stats.Pages--
		t.stats.FreedPages++
		if last > 0 {
			n.pages, n.tokens = n.pages[:last], n.tokens[:last*t.size]
			if n.extra != nil {
				n.extra = n.extra[:last]
			}
			if n.hashes != nil {
				n.hashes = n.hashes[:last]
			}
			continue // nothing in its order has changed
		}
		t.queue.remove(n)
		t.look.detach(n)
		t.stats.Nodes--
		n.parent.children--
		t.offer(n.parent)
		t.forget(n.parent)
	}
	for _, n := range passed {
		t.queue.push(n)
	}
	return freed
}

func (t *tree) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Scopes = len(t.roots)
	return s
}
