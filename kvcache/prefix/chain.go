package prefix

// chain finds a child by the hash of its page, and then compares. A node is one
// page.
type chain struct {
	hasher Hasher
	table  map[Hash]*node // the first of those of a hash
}

func (c *chain) root(p *Prompt, n *node) { n.hash = c.hasher.Root(p) }

// child compares the parent by identity: what is before the page has been
// compared on the way to it.
func (c *chain) child(n *node, g *paged, page int) *node {
	for m := c.table[c.hasher.Page(n.hash, g.Prompt, page, g.size)]; m != nil; m = m.next {
		if m.parent == n && m.same(0, g, page) {
			return m
		}
	}
	return nil
}

func (c *chain) attach(n *node, g *paged, page int) {
	n.hash = c.hasher.Page(n.parent.hash, g.Prompt, page, g.size)
	n.next = c.table[n.hash]
	c.table[n.hash] = n
}

func (c *chain) detach(n *node) {
	switch first := c.table[n.hash]; {
	case first != n:
		for first.next != n {
			first = first.next
		}
		first.next = n.next
	case n.next != nil:
		c.table[n.hash] = n.next
	default:
		delete(c.table, n.hash)
	}
}

func (c *chain) split(_, _ *node) {} // a node of one page is not split

func (c *chain) run(int) int { return 1 }

func (c *chain) check(n *node, fault func(string, ...any)) {
	m := c.table[n.hash]
	for m != nil && m != n {
		m = m.next
	}
	if m == nil || len(n.pages) != 1 {
		fault("a node of %d pages is not found by its hash", len(n.pages))
	}
}

func (c *chain) count(nodes int, fault func(string, ...any)) {
	n := 0
	for _, m := range c.table {
		for ; m != nil; m = m.next {
			n++
		}
	}
	if n != nodes {
		fault("%d pages by hash, %d noted", n, nodes)
	}
}
