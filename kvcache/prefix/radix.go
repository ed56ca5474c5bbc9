package prefix

import "encoding/binary"

// radix finds a child by its first page itself, as bytes.
type radix struct{ buffer []byte }

func (r *radix) root(_ *Prompt, n *node) { n.below = map[string]*node{} }

// key is a page as a string of bytes: tokens have their fixed length, so what
// follows them cannot be taken for one.
func (r *radix) key(tokens []int32, extra string) []byte {
	r.buffer = r.buffer[:0]
	for _, x := range tokens {
		r.buffer = binary.LittleEndian.AppendUint32(r.buffer, uint32(x))
	}
	return append(r.buffer, extra...)
}

func (r *radix) first(n *node) []byte {
	return r.key(n.tokens[:len(n.tokens)/len(n.pages)], n.extraOf(0))
}

func (r *radix) child(n *node, g *paged, page int) *node {
	return n.below[string(r.key(g.page(page)))]
}

func (r *radix) attach(n *node, _ *paged, _ int) {
	if n.below == nil {
		n.below = map[string]*node{}
	}
	n.parent.below[string(r.first(n))] = n
}

func (r *radix) detach(n *node) { delete(n.parent.below, string(r.first(n))) }

func (r *radix) split(upper, lower *node) {
	r.attach(upper, nil, 0) // in the place that lower had
	r.attach(lower, nil, 0)
}

func (r *radix) run(pages int) int { return pages }

func (r *radix) check(n *node, fault func(string, ...any)) {
	if n.parent.below[string(r.first(n))] != n {
		fault("a node of %d pages is not found by its first", len(n.pages))
	}
	if len(n.below) != n.children {
		fault("a node has %d children, %d noted", len(n.below), n.children)
	}
}

func (r *radix) count(int, func(string, ...any)) {}
