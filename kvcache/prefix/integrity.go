package prefix

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/kvcache"
)

func (t *tree) CheckIntegrity() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("prefix: internal error: "+format, args...))
	}
	nodes := t.collect(fault)
	pages, locked, queued, seen := 0, 0, 0, map[kvcache.Page]bool{}
	children, locks := map[*node]int{}, map[*node]int{}
	for _, n := range nodes {
		pages += len(n.pages)
		children[n.parent]++
		locks[n.parent] += n.locks
		if n.locks > 0 {
			locked++
		}
		if n.at != unqueued {
			queued++
		}
		t.look.check(n, fault)
		for _, page := range n.pages {
			if _, holds := t.cache.Holders(page); holds == 0 || seen[page] {
				fault("page %d is held %d times, known before: %v", page, holds, seen[page])
			}
			seen[page] = true
		}
	}
	for _, n := range nodes {
		t.checkNode(n, children[n], locks[n], fault)
	}
	for s, n := range t.roots {
		if n.children != children[n] || n.children == 0 || n.scope != s {
			fault("a scope has %d children, %d noted", children[n], n.children)
		}
	}
	if s := &t.stats; pages != s.Pages || len(nodes) != s.Nodes || locked != s.Locked || s.InsertedPages-s.FreedPages != int64(pages) {
		fault("%d pages of %d nodes, %d locked; noted %+v", pages, len(nodes), locked, *s)
	}
	if queued != len(t.queue.nodes) {
		fault("%d nodes are queued, %d noted", queued, len(t.queue.nodes))
	}
	t.look.count(len(nodes), fault)
	return errors.Join(faults...)
}

// collect is all nodes but the roots, by way of the leaves for a chain, which
// does not know its children.
func (t *tree) collect(fault func(string, ...any)) (nodes []*node) {
	visit := func(n *node) {
		for _, c := range n.below {
			if c.parent != n {
				fault("a child of %d pages has another parent", len(c.pages))
			}
			nodes = append(nodes, c)
		}
	}
	for _, n := range t.roots {
		visit(n)
	}
	for i := 0; i < len(nodes); i++ {
		visit(nodes[i])
	}
	if c, ok := t.look.(*chain); ok {
		for _, n := range c.table {
			for ; n != nil; n = n.next {
				nodes = append(nodes, n)
			}
		}
	}
	return nodes
}

func (t *tree) checkNode(n *node, children, locks int, fault func(string, ...any)) {
	if len(n.pages) == 0 || len(n.tokens) != len(n.pages)*t.size || n.extra != nil && len(n.extra) != len(n.pages) {
		fault("a node has %d pages, %d tokens, %d extra keys", len(n.pages), len(n.tokens), len(n.extra))
	}
	before := 0
	if n.parent.root != nil {
		before = n.parent.first + len(n.parent.pages)
	}
	if n.root != n.parent.top() || n.first != before || t.evicted != nil && len(n.hashes) != len(n.pages) {
		fault("a node comes after %d pages and has %d hashes, want %d and %d", n.first, len(n.hashes), before, len(n.pages))
	}
	if n.children != children || n.locks < locks {
		fault("a node has %d children and %d locks below it, noted %d and %d", children, locks, n.children, n.locks)
	}
	free := n.children == 0 && n.locks == 0
	if free != (n.at != unqueued) || n.at != unqueued && t.queue.nodes[n.at] != n {
		fault("a node of %d children and %d locks is queued at %d", n.children, n.locks, n.at)
	}
	if n.at > 0 && t.queue.order.less(n, t.queue.nodes[(n.at-1)/2]) {
		fault("the node queued at %d comes before the one above it", n.at)
	}
	if p := n.parent; p.parent != nil && (p.used < n.used || p.born > n.born || p.hits < n.hits || p.priority < n.priority) {
		fault("a node was touched after its parent, or inserted before it")
	}
}
