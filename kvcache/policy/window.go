package policy

import "github.com/longctx/longctx/kvcache"

// Window is sinks at the start and recent keys at the end: what is left of a head
// that needs no more.
type Window struct {
	Sinks, Recent int

	// Block is as in Policy: a key that stays keeps all of its block. 0: none
	Block int
}

func (w Window) check() error {
	if w.Sinks < 0 || w.Recent < 1 || w.Block < 0 {
		return valueError("Window.Recent", w.Recent, "1 or more, with Sinks (%d) and Block (%d) of 0 or more", w.Sinks, w.Block)
	}
	return nil
}

// keep are the ordinals in the window.
func (w Window) keep(h *Head) []int32 {
	var c choice
	for j, position := range h.Positions {
		if int(position) < w.Sinks || j >= h.Len()-w.Recent {
			c.always = append(c.always, int32(j))
		} else {
			c.candidates = append(c.candidates, int32(j))
		}
	}
	if w.Block > 1 {
		c.wholeBlocks(w.Block)
	}
	return c.always
}

// all are the ordinals of all keys.
func all(h *Head) []int32 {
	keep := make([]int32, h.Len())
	for j := range keep {
		keep[j] = int32(j)
	}
	return keep
}

// eachHead makes a plan of the ordinals that f keeps of each head.
func eachHead(s *Sequence, needs Needs, f func(i int, h *Head) ([]int32, error)) ([]kvcache.Plan, error) {
	if err := checkHeads(s, needs); err != nil {
		return nil, err
	}
	plans := make([]kvcache.Plan, len(s.Heads))
	for i, h := range s.Heads {
		keep, err := f(i, h)
		if err != nil {
			return nil, err
		}
		plans[i].Keep, h.pending = keep, pending{threshold: h.threshold}
	}
	return plans, nil
}

// checkClasses sees that there is a class for each head.
func checkClasses(name string, n int, s *Sequence) error {
	if s != nil && n != len(s.Heads) {
		return valueError(name, n, "one for each of the %d heads of all layers", len(s.Heads))
	}
	return nil
}
