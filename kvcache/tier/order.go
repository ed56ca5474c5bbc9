package tier

import (
	"container/heap"
	"fmt"

	"github.com/longctx/longctx/kvcache/page"
)

// Order says which page goes first when there is no room.
type Order uint8

const (
	LRU        Order = iota // the one used longest ago
	LFU                     // the one used least often, of these the one used longest ago
	FIFO                    // the one put longest ago
	ByPriority              // the one of lowest priority, of these the one used longest ago
)

func (o Order) String() string {
	if int(o) < len(orderNames) {
		return orderNames[o]
	}
	return fmt.Sprintf("Order(%d)", uint8(o))
}

var orderNames = [...]string{"lru", "lfu", "fifo", "priority"}

// ParseOrder is the Order of a name that String gives.
func ParseOrder(name string) (Order, error) {
	for i, s := range orderNames {
		if s == name {
			return Order(i), nil
		}
	}
	return 0, &OptionError{"Order", fmt.Sprintf("%q", name), fmt.Sprint(orderNames)}
}

// Limits are the options that bounded stores share.
type Limits struct {
	Bytes    int64              // of all pages together
	Order    Order              //
	Priority func(page.Key) int // for ByPriority, asked once a Put; must not call the store
}

func (l *Limits) check(what string, least int64) error {
	switch {
	case l.Bytes < least:
		return &OptionError{what + ".Bytes", fmt.Sprint(l.Bytes), fmt.Sprint("at least ", least)}
	case int(l.Order) >= len(orderNames):
		return &OptionError{what + ".Order", fmt.Sprint(l.Order), fmt.Sprint(orderNames)}
	case l.Order == ByPriority && l.Priority == nil:
		return &OptionError{what + ".Priority", "nil", "a function with Order priority"}
	}
	return nil
}

// index is the keys of a store, as a heap with the page that goes first on top:
// putting, using and removing one of n pages takes O(log n).
type index struct {
	limits  Limits
	entries map[page.Key]*entry
	order   byRank
	tick    uint64
	bytes   int64
	held    int64 // bytes promised to pages that are being written
	evicted int64
	corrupt int64
}

type entry struct {
	key         page.Key
	bytes       int64
	blob        []byte // of Host
	uses        uint64
	first, last uint64 // ticks
	priority    int
	at          int // in the heap
}

func newIndex(l Limits) index {
	return index{limits: l, entries: map[page.Key]*entry{}, order: byRank{order: l.Order}}
}

func (x *index) add(e *entry) {
	x.remove(x.entries[e.key])
	x.tick++
	e.uses, e.first, e.last = 1, x.tick, x.tick
	if x.limits.Order == ByPriority {
		e.priority = x.limits.Priority(e.key)
	}
	x.entries[e.key] = e
	x.bytes += e.bytes
	heap.Push(&x.order, e)
}

func (x *index) use(e *entry) {
	x.tick++
	e.uses, e.last = e.uses+1, x.tick
	heap.Fix(&x.order, e.at)
}

func (x *index) remove(e *entry) {
	if e == nil {
		return
	}
	delete(x.entries, e.key)
	x.bytes -= e.bytes
	heap.Remove(&x.order, e.at)
}

// room reports whether n more bytes fit; the one that goes first if they do not.
func (x *index) room(n int64) (victim *entry, ok bool) {
	if x.limits.Bytes == 0 || x.bytes+x.held <= x.limits.Bytes-n {
		return nil, true
	}
	if len(x.order.list) == 0 {
		return nil, false
	}
	return x.order.list[0], false
}

// victim is the method Victim of a store.
func (x *index) victim(k page.Key, bytes int64) (page.Key, bool) {
	if x.entries[k] != nil || x.limits.Bytes > 0 && bytes > x.limits.Bytes {
		return page.Key{}, false
	}
	if e, _ := x.room(bytes); e != nil {
		return e.key, true
	}
	return page.Key{}, false
}

func (x *index) usage() Usage {
	return Usage{Pages: len(x.entries), Bytes: x.bytes, Limit: x.limits.Bytes, Evicted: x.evicted, Corrupt: x.corrupt}
}

// byRank is a heap of entries.
type byRank struct {
	order Order
	list  []*entry
}

func (h *byRank) Len() int { return len(h.list) }

func (h *byRank) Less(i, j int) bool {
	a, b := h.list[i], h.list[j]
	switch {
	case h.order == FIFO:
		return a.first < b.first
	case h.order == LFU && a.uses != b.uses:
		return a.uses < b.uses
	case h.order == ByPriority && a.priority != b.priority:
		return a.priority < b.priority
	}
	return a.last < b.last
}

func (h *byRank) Swap(i, j int) {
	h.list[i], h.list[j] = h.list[j], h.list[i]
	h.list[i].at, h.list[j].at = i, j
}

func (h *byRank) Push(x any) {
	e := x.(*entry)
	e.at = len(h.list)
	h.list = append(h.list, e)
}

func (h *byRank) Pop() any {
	last := len(h.list) - 1
	e := h.list[last]
	h.list[last], h.list = nil, h.list[:last]
	return e
}
