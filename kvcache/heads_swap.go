package kvcache

import (
	"context"
	"errors"
	"fmt"
)

// HeadSwapSpace is SwapSpace for the sequences of a HeadCache: all streams of a
// sequence move together or not at all.
type HeadSwapSpace struct {
	heads   *HeadCache
	space   *SwapSpace
	swapped map[ID]*headSequence // under the lock of heads
}

// NewSwapSpace is Cache.NewSwapSpace; its pages are those of one head of one
// layer, as Config.Pages.
func (h *HeadCache) NewSwapSpace(pages, codedPages int) (*HeadSwapSpace, error) {
	space, err := h.cache.NewSwapSpace(pages, codedPages)
	if err != nil {
		return nil, err
	}
	return &HeadSwapSpace{heads: h, space: space, swapped: map[ID]*headSequence{}}, nil
}

// SwapOut is SwapSpace.SwapOut of all streams of a sequence.
func (w *HeadSwapSpace) SwapOut(ctx context.Context, id ID) error {
	return w.move(ctx, id, w.heads.sequences, w.swapped, w.space.SwapOut)
}

// Restore is SwapSpace.Restore of all streams of a sequence.
func (w *HeadSwapSpace) Restore(ctx context.Context, id ID) error {
	return w.move(ctx, id, w.swapped, w.heads.sequences, w.space.Restore)
}

// move takes a sequence from one map to the other. While its streams move it is
// in neither, so that no method finds it.
func (w *HeadSwapSpace) move(ctx context.Context, id ID, from, to map[ID]*headSequence, streams func(context.Context, ...ID) error) error {
	mu := &w.heads.mu
	mu.Lock()
	s := from[id]
	if s == nil {
		mu.Unlock()
		return &UnknownSequenceError{id}
	}
	delete(from, id)
	w.heads.moving += len(s.streams)
	mu.Unlock()
	err := streams(ctx, s.streams...)
	mu.Lock()
	defer mu.Unlock()
	w.heads.moving -= len(s.streams)
	if err != nil {
		from[id] = s
		return fmt.Errorf("kvcache: streams of sequence %d: %w", id, err)
	}
	to[id] = s
	return nil
}

// Discard is SwapSpace.Discard of a sequence.
func (w *HeadSwapSpace) Discard(id ID) error {
	w.heads.mu.Lock()
	defer w.heads.mu.Unlock()
	s := w.swapped[id]
	if s == nil {
		return &UnknownSequenceError{id}
	}
	delete(w.swapped, id)
	var errs []error
	for _, stream := range s.streams {
		errs = append(errs, w.space.Discard(stream))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("kvcache: internal error: %w", err)
	}
	return nil
}

// Stats is SwapSpace.Stats of the streams.
func (w *HeadSwapSpace) Stats() SwapStats { return w.space.Stats() }

// CheckIntegrity is SwapSpace.CheckIntegrity.
func (w *HeadSwapSpace) CheckIntegrity() error { return w.space.CheckIntegrity() }

// Close is SwapSpace.Close.
func (w *HeadSwapSpace) Close() error {
	err := w.space.Close()
	w.heads.mu.Lock()
	defer w.heads.mu.Unlock()
	clear(w.swapped)
	return err
}
