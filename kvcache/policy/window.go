package policy

import "github.com/longctx/longctx/kvcache"

// Window is sinks at the start and recent keys at the end: what is left of a head
// that needs no more.
type Window struct {
	Sinks, Recent int
}

func (w Window) check() error {
	if w.Sinks < 0 || w.Recent < 1 {
		return valueError("Window.Recent", w.Recent, "1 or more, with Sinks of 0 or more")
	}
	return nil
}

// keep are the ordinals in the window.
func (w Window) keep(h *Head) []int32 {
	var keep []int32
	for j, position := range h.Positions {
		if int(position) < w.Sinks || j >= h.Len()-w.Recent {
			keep = append(keep, int32(j))
		}
	}
	return keep
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
