package policy

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/longctx/longctx/kvcache"
)

// Planner decides which keys stay.
type Planner interface {
	Needs() Needs
	// Plan gives a plan for each head of s, after which a head holds keys keys in
	// the mean, or what the Planner says. It changes nothing that a caller sees.
	Plan(s *Sequence, keys int) ([]kvcache.Plan, error)
}

// Score says what each key of a head is worth.
type Score interface {
	Needs() Needs
	// Score writes a number for each key of h to dst [h.Len()], larger for keys
	// that matter more. A NaN is worth least.
	Score(h *Head, dst []float32) error
}

// Rescorer is a Score that looks again once the number of keys that stay beside
// those always kept is known. candidates are the ordinals that are chosen from.
type Rescorer interface {
	Rescore(h *Head, scores []float32, candidates []int32, free int) error
}

// Merge says what becomes of keys that go.
type Merge interface {
	Needs() Needs
	// Merge appends the Merges into keys that stay, Into not descending. keep are
	// the ordinals that stay.
	Merge(h *Head, keep []int32, dst []kvcache.Merge) ([]kvcache.Merge, error)
}

// Policy keeps the keys of the best scores within a budget. Of equal scores the
// later key stays.
type Policy struct {
	Score  Score
	Budget Budget // nil: Uniform

	Sinks      int     // tokens at the start that always stay
	Recent     int     // last keys that always stay
	RecentPart float64 // and this part of the mean budget, 0 to 1
	Share      bool    // heads of a layer keep the same keys, by the mean of their scores

	// Block keys of neighbouring ordinals stay or go together, by the mean of their
	// scores, and one that always stays keeps its block; 0: each key by itself. With
	// the page size of the cache a plan copies nothing, and coded pages can go. What
	// is left of a budget that is no multiple stays unused.
	Block int

	Merge   Merge   // nil: keys that go are gone
	Trigger Trigger // nil: AfterPrompt
}

// Needs is what the parts need.
func (p *Policy) Needs() (n Needs) {
	if p.Score != nil {
		n = p.Score.Needs()
	}
	if p.Merge != nil {
		n |= p.Merge.Needs()
	}
	return n
}

// Due asks the Trigger.
func (p *Policy) Due(step Step) bool {
	if p.Trigger == nil {
		return AfterPrompt{}.Due(step)
	}
	return p.Trigger.Due(step)
}

// recent is the number of last keys that always stay.
func (p *Policy) recent(keys int) int { return p.Recent + int(p.RecentPart*float64(keys)) }

func (p *Policy) check(keys int) error {
	switch {
	case p.Score == nil:
		return valueError("Score", "nil", "a Score")
	case p.Sinks < 0:
		return valueError("Sinks", p.Sinks, "0 or more")
	case p.Recent < 0:
		return valueError("Recent", p.Recent, "0 or more")
	case p.Block < 0:
		return valueError("Block", p.Block, "0 or more")
	case !(p.RecentPart >= 0 && p.RecentPart <= 1):
		return valueError("RecentPart", p.RecentPart, "0 to 1")
	case keys < 1 || keys < p.Sinks+p.recent(keys):
		return valueError("keys", keys, "at least 1 and the %d that always stay", p.Sinks+p.recent(keys))
	}
	return nil
}

// checkHeads sees that all is told that is needed.
func checkHeads(s *Sequence, needs Needs) error {
	if s == nil || s.Layers < 1 || s.KVHeads < 1 || len(s.Heads) != s.Layers*s.KVHeads {
		return valueError("Sequence", "malformed", "one of NewSequence with a layer and a head")
	}
	for i, h := range s.Heads {
		if m := h.missing(needs); m != 0 {
			return &MissingError{Layer: i / s.KVHeads, Head: i % s.KVHeads, Missing: m}
		}
	}
	return nil
}

// Plan keeps the keys of the best scores: keys a head in the mean over heads and
// layers, fewer where there are not so many.
func (p *Policy) Plan(s *Sequence, keys int) ([]kvcache.Plan, error) {
	if err := p.check(keys); err != nil {
		return nil, err
	}
	if err := checkHeads(s, p.Needs()); err != nil {
		return nil, err
	}
	heads, err := p.choices(s, keys)
	if err != nil {
		return nil, err
	}
	budget := p.Budget
	if budget == nil {
		budget = Uniform{}
	}
	r := &Request{Layers: s.Layers, KVHeads: s.KVHeads}
	for i := range heads {
		r.add(&heads[i], keys)
	}
	counts, err := budget.Split(r)
	if err != nil {
		return nil, err
	}
	if len(counts) != len(heads) {
		return nil, fmt.Errorf("policy: %T gave %d budgets, want %d", budget, len(counts), len(heads))
	}
	plans := make([]kvcache.Plan, len(heads))
	for i := range heads {
		if plans[i].Keep, err = p.keep(s.Heads[i], &heads[i], counts[i]); err != nil {
			return nil, err
		}
		s.Heads[i].pending = pending{threshold: s.Heads[i].threshold}
		if p.Merge == nil {
			continue
		}
		if plans[i].Merges, err = p.Merge.Merge(s.Heads[i], plans[i].Keep, nil); err != nil {
			return nil, err
		}
	}
	return plans, nil
}

// choice is what there is to choose from in a head.
type choice struct {
	scores     []float32 // [n]
	candidates []int32   // ordinals that may go
	always     []int32   // those that stay, ascending
}

// choices scores all heads and sets apart what always stays.
func (p *Policy) choices(s *Sequence, keys int) ([]choice, error) {
	out := make([]choice, len(s.Heads))
	for i, h := range s.Heads {
		c := &out[i]
		c.scores = make([]float32, h.Len())
		if err := p.Score.Score(h, c.scores); err != nil {
			return nil, err
		}
		for j, position := range h.Positions {
			if int(position) < p.Sinks || j >= h.Len()-p.recent(keys) {
				c.always = append(c.always, int32(j))
			} else {
				c.candidates = append(c.candidates, int32(j))
			}
		}
	}
	if p.Block > 1 {
		for i := range out {
			out[i].wholeBlocks(p.Block)
		}
	}
	if !p.Share {
		return out, nil
	}
	for layer := range s.Layers {
		of := out[layer*s.KVHeads:][:s.KVHeads]
		for head := range of {
			if !slices.Equal(s.Head(layer, head).Positions, s.Head(layer, 0).Positions) {
				return nil, valueError("Share", fmt.Sprintf("layer %d with other keys in head %d than in head 0", layer, head), "heads of the same keys")
			}
		}
		for j := range of[0].scores {
			mean := float32(0)
			for head := range of {
				mean += of[head].scores[j] / float32(len(of))
			}
			for head := range of {
				of[head].scores[j] = mean
			}
		}
	}
	return out, nil
}

// keep are the ordinals that stay: those that always do and the best of the
// others.
func (p *Policy) keep(h *Head, c *choice, free int) ([]int32, error) {
	if r, ok := p.Score.(Rescorer); ok {
		if err := r.Rescore(h, c.scores, c.candidates, free); err != nil {
			return nil, err
		}
	}
	keep := slices.Clone(c.always)
	if p.Block > 1 {
		keep = append(keep, c.bestBlocks(p.Block, free)...)
	} else {
		keep = append(keep, best(c.scores, c.candidates, free)...)
	}
	slices.Sort(keep)
	return keep, nil
}

// wholeBlocks keeps the blocks of all keys that always stay.
func (c *choice) wholeBlocks(size int) {
	stays := map[int32]bool{}
	for _, j := range c.always {
		stays[j/int32(size)] = true
	}
	var left []int32
	for _, j := range c.candidates {
		if stays[j/int32(size)] {
			c.always = append(c.always, j)
		} else {
			left = append(left, j)
		}
	}
	c.candidates = left
	slices.Sort(c.always)
}

// bestBlocks are the keys of the best blocks, free keys at most.
func (c *choice) bestBlocks(size, free int) []int32 {
	if free >= len(c.candidates) {
		return c.candidates
	}
	var scores []float32
	var blocks []int32
	parts := [][]int32{}
	for rest := c.candidates; len(rest) > 0; {
		n, sum := 0, float32(0)
		for n < len(rest) && rest[n]/int32(size) == rest[0]/int32(size) {
			sum += c.scores[rest[n]]
			n++
		}
		scores, blocks, parts = append(scores, sum/float32(n)), append(blocks, int32(len(parts))), append(parts, rest[:n])
		rest = rest[n:]
	}
	var keep []int32
	for _, b := range best(scores, blocks, free/size) {
		keep = append(keep, parts[b]...)
	}
	return keep
}

// best are the n candidates of the largest scores, in any order.
func best(scores []float32, candidates []int32, n int) []int32 {
	order := slices.Clone(candidates)
	n = min(max(n, 0), len(order))
	first(order, n, func(a, b int32) int {
		if c := cmp.Compare(scores[b], scores[a]); c != 0 { // NaN is below all numbers
			return c
		}
		return cmp.Compare(b, a)
	})
	return order[:n]
}

// first brings the n first elements by compare to the front, in any order: it halves
// the part that is not yet divided, and sorts it if that takes too many turns.
func first[T any](x []T, n int, compare func(a, b T) int) {
	for turns := 0; n > 0 && n < len(x); turns++ {
		if len(x) <= 32 || turns > 60 {
			slices.SortFunc(x, compare)
			return
		}
		a, b, c := x[0], x[len(x)/2], x[len(x)-1]
		if compare(a, b) > 0 {
			a, b = b, a
		}
		if compare(b, c) > 0 {
			b = c
			if compare(a, b) > 0 {
				b = a
			}
		}
		lo, same, hi := 0, 0, len(x) // before the pivot b, equal to it, after it
		for same < hi {
			switch o := compare(x[same], b); {
			case o < 0:
				x[lo], x[same] = x[same], x[lo]
				lo, same = lo+1, same+1
			case o > 0:
				hi--
				x[same], x[hi] = x[hi], x[same]
			default:
				same++
			}
		}
		switch {
		case n <= lo:
			x = x[:lo]
		case n <= hi:
			return
		default:
			x, n = x[hi:], n-hi
		}
	}
}
