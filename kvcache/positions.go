package kvcache

import (
	"slices"
	"sort"
)

// positions are the positions of the keys of a sequence, by ordinal. Most
// sequences have the ordinals themselves, which take no memory.
type positions struct {
	identity int     // the ordinals j < identity have position j
	rest     []int32 // positions of the ordinals from identity on; rest[0] is not identity
	next     int64   // position that the next token gets by default; 2³¹ is one too many
}

// positionsOf are n keys whose positions are their ordinals.
func positionsOf(n int) positions { return positions{identity: n, next: int64(n)} }

func (p *positions) len() int { return p.identity + len(p.rest) }

func (p *positions) at(j int) int64 {
	if j < p.identity {
		return int64(j)
	}
	return int64(p.rest[j-p.identity])
}

// push adds the position of one more key.
func (p *positions) push(position int32) {
	if len(p.rest) == 0 && int(position) == p.identity {
		p.identity++
	} else {
		p.rest = append(p.rest, position)
	}
	p.next = int64(position) + 1
}

// truncate keeps the first n. The next token takes the place of the first one
// removed, also where keys between it and its predecessor were dropped, but
// comes after the last one kept: the nodes of a speculated tree repeat positions.
func (p *positions) truncate(n int) {
	if n == p.len() {
		return
	}
	p.next = p.at(n)
	if n > 0 {
		p.next = max(p.next, p.at(n-1)+1)
	}
	if n <= p.identity {
		p.identity, p.rest = n, p.rest[:0]
	} else {
		p.rest = p.rest[:n-p.identity]
	}
}

// drop removes the ordinals from <= j < to; next stays, for the tokens were there.
func (p *positions) drop(from, to int) {
	switch {
	case from == to:
		return
	case from >= p.identity:
		p.rest = slices.Delete(p.rest, from-p.identity, to-p.identity)
	default:
		tail := p.rest[max(to-p.identity, 0):]
		rest := make([]int32, 0, max(p.identity-to, 0)+len(tail))
		for j := to; j < p.identity; j++ {
			rest = append(rest, int32(j))
		}
		p.identity, p.rest = from, append(rest, tail...)
	}
	n := 0
	for n < len(p.rest) && int(p.rest[n]) == p.identity+n {
		n++
	}
	p.identity, p.rest = p.identity+n, slices.Delete(p.rest, 0, n)
}

// appendTo appends all positions to dst.
func (p *positions) appendTo(dst []int32) []int32 {
	for j := range p.identity {
		dst = append(dst, int32(j))
	}
	return append(dst, p.rest...)
}

func (p *positions) clone() positions {
	return positions{p.identity, slices.Clone(p.rest), p.next}
}

// keep removes all but the given ordinals, which ascend; next stays.
func (p *positions) keep(ordinals []int32) {
	q := positions{}
	for _, j := range ordinals {
		q.push(int32(p.at(int(j))))
	}
	p.identity, p.rest = q.identity, q.rest
}

// below is the number of keys before the first of position n or more, where
// positions ascend.
func (p *positions) below(n int) int {
	if n <= p.identity {
		return n
	}
	return p.identity + sort.Search(len(p.rest), func(i int) bool { return int(p.rest[i]) >= n })
}
