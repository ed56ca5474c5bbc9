package recurrence

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// ErrNoSlot is returned by Alloc and Fork when every slot is in use.
var ErrNoSlot = errors.New("recurrence: no free slot")

// States is a pool of the states of one layer, one slot a sequence: what pages
// are to a layer of attention. Unlike pages they cannot be shared, for every
// token changes them: a fork is a copy, and so is a snapshot to come back to. It
// serves one goroutine at a time.
type States struct {
	layer *Layer
	parts []tensor.View // [slots, heads, rows, columns] F32
	aux   []float64     // [slots, Heads]: mLSTM's maximum
	free  []int32
	live  []bool
	fresh []bool // zero, whatever the parts hold
}

// NewStates makes room for the states of so many sequences.
func (l *Layer) NewStates(slots int) (*States, error) {
	if slots < 1 || slots > 1<<24 {
		return nil, fmt.Errorf("recurrence: %d slots, want 1 to %d", slots, 1<<24)
	}
	s := &States{layer: l, aux: make([]float64, slots*l.config.Heads), live: make([]bool, slots), fresh: make([]bool, slots)}
	for _, n := range l.rec.states(&l.config) {
		b, err := l.backend.Alloc(4 * int64(slots) * int64(n[0]) * int64(n[1]) * int64(n[2]))
		if err != nil {
			return nil, fmt.Errorf("recurrence: %w", err)
		}
		s.parts = append(s.parts, tensor.Of(b, tensor.F32, int64(slots), int64(n[0]), int64(n[1]), int64(n[2])))
	}
	for i := slots - 1; i >= 0; i-- {
		s.free = append(s.free, int32(i))
	}
	return s, nil
}

// SlotBytes is the memory of a slot.
func (s *States) SlotBytes() int64 {
	n := int64(8 * s.layer.config.Heads)
	for _, p := range s.parts {
		n += 4 * p.Stride[0]
	}
	return n
}

// Free slots are left.
func (s *States) Free() int { return len(s.free) }

func (s *States) has(slot int32) bool { return slot >= 0 && int(slot) < len(s.live) && s.live[slot] }

// Alloc takes a slot, with a state of zero.
func (s *States) Alloc() (int32, error) {
	if len(s.free) == 0 {
		return -1, ErrNoSlot
	}
	slot := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	s.live[slot], s.fresh[slot] = true, true
	clear(s.auxOf(slot))
	return slot, nil
}

// Release gives a slot back.
func (s *States) Release(slot int32) error {
	if !s.has(slot) {
		return s.unknown(slot)
	}
	s.live[slot] = false
	s.free = append(s.free, slot)
	return nil
}

// Fork takes a slot with a copy of the state of another: for a second
// continuation, or as a snapshot to come back to with Copy.
func (s *States) Fork(slot int32) (int32, error) {
	if !s.has(slot) {
		return -1, s.unknown(slot)
	}
	to, err := s.Alloc()
	if err != nil {
		return -1, err
	}
	if err := s.Copy(to, slot); err != nil {
		return -1, errors.Join(err, s.Release(to))
	}
	return to, nil
}

// Copy sets the state of slot to to that of from.
func (s *States) Copy(to, from int32) error {
	for _, slot := range []int32{to, from} {
		if !s.has(slot) {
			return s.unknown(slot)
		}
	}
	if to == from {
		return nil
	}
	if !s.fresh[from] {
		for _, p := range s.parts {
			if err := s.layer.backend.CopyPages(&kernel.CopyArgs{Cache: p, Src: []int32{from}, Dst: []int32{to}}); err != nil {
				return fmt.Errorf("recurrence: %w", err)
			}
		}
	}
	s.fresh[to] = s.fresh[from]
	copy(s.auxOf(to), s.auxOf(from))
	return nil
}

func (s *States) auxOf(slot int32) []float64 {
	n := s.layer.config.Heads
	return s.aux[int(slot)*n:][:n]
}

func (s *States) unknown(slot int32) error {
	return fmt.Errorf("recurrence: slot %d is not allocated (States have %d slots, %d free)", slot, len(s.live), len(s.free))
}
