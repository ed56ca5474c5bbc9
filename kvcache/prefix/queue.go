package prefix

import "fmt"

// Order says which page is evicted first. Only the last page of a prefix that
// no longer one shares is ever evicted; among those
type Order uint8

const (
	LRU        Order = iota // the one not matched or inserted for the longest time
	LFU                     // the one matched least often, of these by LRU
	FIFO                    // the one inserted first
	ByPriority              // the one of lowest Prompt.Priority, of these by LRU
)

func (o Order) String() string {
	if names := [...]string{"LRU", "LFU", "FIFO", "priority"}; int(o) < len(names) {
		return names[o]
	}
	return fmt.Sprintf("Order(%d)", uint8(o))
}

// less reports whether a is evicted before b. Two leaves never tie: what one
// call touches lies on one path, which has one leaf.
func (o Order) less(a, b *node) bool {
	switch o {
	case LFU:
		if a.hits != b.hits {
			return a.hits < b.hits
		}
	case FIFO:
		return a.born < b.born
	case ByPriority:
		if a.priority != b.priority {
			return a.priority < b.priority
		}
	}
	return a.used < b.used
}

// queue is a binary heap of the nodes that may be evicted; each knows its place.
type queue struct {
	order Order
	nodes []*node
}

const unqueued = -1

func (q *queue) push(n *node) {
	n.at = len(q.nodes)
	q.nodes = append(q.nodes, n)
	q.up(n.at)
}

// remove takes n out, if it is in.
func (q *queue) remove(n *node) {
	at, last := n.at, len(q.nodes)-1
	if at == unqueued {
		return
	}
	q.swap(at, last)
	q.nodes[last] = nil
	q.nodes = q.nodes[:last]
	n.at = unqueued
	if at < last {
		q.fix(q.nodes[at])
	}
}

// fix puts n, if it is in, where it belongs after a change.
func (q *queue) fix(n *node) {
	if n.at != unqueued && !q.up(n.at) {
		q.down(n.at)
	}
}

func (q *queue) swap(i, j int) {
	q.nodes[i], q.nodes[j] = q.nodes[j], q.nodes[i]
	q.nodes[i].at, q.nodes[j].at = i, j
}

func (q *queue) up(i int) (moved bool) {
	for i > 0 && q.order.less(q.nodes[i], q.nodes[(i-1)/2]) {
		q.swap(i, (i-1)/2)
		i, moved = (i-1)/2, true
	}
	return moved
}

func (q *queue) down(i int) {
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(q.nodes); c++ {
			if q.order.less(q.nodes[c], q.nodes[least]) {
				least = c
			}
		}
		if least == i {
			return
		}
		q.swap(i, least)
		i = least
	}
}
