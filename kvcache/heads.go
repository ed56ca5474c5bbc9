package kvcache

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// HeadCache keeps a table for each KV head of each layer of a sequence, so that
// heads and layers can hold different keys, and what one of them lets go of is
// free for all (Rehg, "KV-Compress", https://arxiv.org/abs/2410.00161). It is a
// Cache of pages of one head of one layer, in which each pair of them is a
// sequence of its own: a stream. All invariants of the package comment hold for
// the streams.
//
// Attention reads a layer as a batch of streams with one KV head:
//
//   - Layer gives those of all heads, for steps of one token a sequence: Query
//     [tokens, Heads, dim], by Split, is [tokens·KVHeads, Heads/KVHeads, dim].
//   - Head gives those of one head, for any step: Query is the slice of its
//     Heads/KVHeads heads.
//
// What is said of concurrency for Cache holds here too.
type HeadCache struct {
	config Config
	cache  *Cache

	mu        sync.Mutex // of all below; taken before that of cache
	sequences map[ID]*headSequence
	moving    int // streams that a HeadSwapSpace moves: the cache has them or not
	scratch   headExtension
}

// headExtension is the work of one Extend, kept from call to call for its memory.
type headExtension struct {
	number    uint64
	found     []*headSequence
	ids       []ID
	counts    []int
	positions []int32
}

// headSequence is the streams of a sequence.
type headSequence struct {
	streams []ID // [Layers·KVHeads]
	tokens  int  // that there were: the position of the next

	extension uint64 // the last Extend that named the sequence
}

// NewHeads allocates a HeadCache. Layers and KVHeads of c are those of the model,
// and Pages, like CodedPages, those of one head of one layer that there are in
// all: the memory is Bytes of c with Layers and KVHeads 1. There are no Scales
// and no LayerCoding, and Levels are those of one layer with one head.
func NewHeads(b kernel.Backend, c Config) (*HeadCache, error) {
	for _, f := range []struct {
		name  string
		value int
	}{{"Config.Layers", c.Layers}, {"Config.KVHeads", c.KVHeads}} {
		if f.value < 1 || f.value > math.MaxInt16 {
			return nil, valueError(f.name, f.value, "1 to %d", math.MaxInt16)
		}
	}
	if c.Scales != nil {
		return nil, valueError("Config.Scales", fmt.Sprintf("of %d layers", len(c.Scales)), "nil: heads share their pages")
	}
	if c.LayerCoding != nil {
		return nil, valueError("Config.LayerCoding", fmt.Sprintf("of %d layers", len(c.LayerCoding)), "nil: heads share their pages")
	}
	one := c
	one.Layers, one.KVHeads = 1, 1
	cache, err := New(b, one)
	if err != nil {
		return nil, err
	}
	return &HeadCache{config: c, cache: cache, sequences: map[ID]*headSequence{}}, nil
}

// Config returns what NewHeads was given, with the Pages that Grow has reached.
func (h *HeadCache) Config() Config {
	c := h.config
	c.Pages = h.cache.Config().Pages
	return c
}

// Grow gives the cache so many pages of a head in all, as Cache.Grow.
func (h *HeadCache) Grow(pages int) error { return h.cache.Grow(pages) }

// Close gives the memory back, as Cache.Close.
func (h *HeadCache) Close() error { return h.cache.Close() }

func (h *HeadCache) find(id ID) (*headSequence, error) {
	s := h.sequences[id]
	if s == nil {
		return nil, &UnknownSequenceError{id}
	}
	return s, nil
}

// NewSequence starts an empty sequence. It takes no page.
func (h *HeadCache) NewSequence() ID {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &headSequence{streams: make([]ID, h.config.Layers*h.config.KVHeads)}
	for i := range s.streams {
		s.streams[i] = h.cache.NewSequence()
	}
	return h.add(s)
}

func (h *HeadCache) add(s *headSequence) ID {
	id := ID(lastID.Add(1))
	h.sequences[id] = s
	return id
}

// Fork is Cache.Fork of all streams.
func (h *HeadCache) Fork(id ID) (ID, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.find(id)
	if err != nil {
		return 0, err
	}
	other := &headSequence{streams: make([]ID, len(s.streams)), tokens: s.tokens}
	for i, stream := range s.streams {
		if other.streams[i], err = h.cache.Fork(stream); err != nil {
			return 0, fmt.Errorf("kvcache: internal error: %w", err)
		}
	}
	return h.add(other), nil
}

// Free ends a sequence. Its ID is unknown from now on.
func (h *HeadCache) Free(id ID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.find(id)
	if err != nil {
		return err
	}
	for _, stream := range s.streams {
		if err := h.cache.Free(stream); err != nil {
			return fmt.Errorf("kvcache: internal error: %w", err)
		}
	}
	delete(h.sequences, id)
	return nil
}

// Truncate takes back all tokens but the first n, evicted ones counted, as a
// rejected speculation needs. n is 0 to Tokens. A stream that would end within a
// coded page is a *CodedPageError, which names the stream, and nothing has
// changed.
func (h *HeadCache) Truncate(id ID, n int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.find(id)
	if err != nil {
		return err
	}
	if n < 0 || n > s.tokens {
		return valueError("Truncate: n", n, "0 to the %d tokens", s.tokens)
	}
	c := h.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	lens := make([]int, len(s.streams))
	for i, id := range s.streams {
		lens[i] = c.sequences[id].positions.below(n)
		if err := c.cutsCoded(id, c.sequences[id], lens[i]); err != nil {
			return err
		}
	}
	for i, id := range s.streams {
		c.truncate(c.sequences[id], lens[i])
	}
	s.tokens = n
	return nil
}

// KeepPlain is Cache.KeepPlain of a KV head of a layer.
func (h *HeadCache) KeepPlain(id ID, layer, head int, pages []int) error {
	stream, err := h.stream(id, layer, head)
	if err != nil {
		return err
	}
	return h.cache.KeepPlain(stream, pages)
}

// Tokens is the number of tokens that a sequence was extended by, evicted ones
// included.
func (h *HeadCache) Tokens(id ID) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.find(id)
	if err != nil {
		return 0, err
	}
	return s.tokens, nil
}

// stream is that of a KV head of a layer.
func (h *HeadCache) stream(id ID, layer, head int) (ID, error) {
	if layer < 0 || layer >= h.config.Layers {
		return 0, valueError("layer", layer, "0 to %d", h.config.Layers-1)
	}
	if head < 0 || head >= h.config.KVHeads {
		return 0, valueError("head", head, "0 to %d", h.config.KVHeads-1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s, err := h.find(id)
	if err != nil {
		return 0, err
	}
	return s.streams[layer*h.config.KVHeads+head], nil
}

// Len is the number of keys that a KV head of a layer holds.
func (h *HeadCache) Len(id ID, layer, head int) (int, error) {
	stream, err := h.stream(id, layer, head)
	if err != nil {
		return 0, err
	}
	return h.cache.Len(stream)
}

// Positions appends the positions of the keys of a KV head of a layer to dst.
func (h *HeadCache) Positions(id ID, layer, head int, dst []int32) ([]int32, error) {
	stream, err := h.stream(id, layer, head)
	if err != nil {
		return dst, err
	}
	return h.cache.Positions(stream, dst)
}

// Gather is Cache.Gather of a KV head of a layer: keys [Len, 1, HeadDim] and
// values [Len, 1, ValueDim].
func (h *HeadCache) Gather(id ID, layer, head int) (key, value tensor.View, err error) {
	stream, err := h.stream(id, layer, head)
	if err != nil {
		return tensor.View{}, tensor.View{}, err
	}
	return h.cache.Gather(0, stream)
}

// Extend adds counts[i] tokens to sequence seqs[i] in all streams, for all i or
// for none, and appends to slots those of the new tokens: [Layers][KVHeads]
// times that of each token, sequence by sequence. Append fills them. Errors are
// those of Cache.Extend.
func (h *HeadCache) Extend(seqs []ID, counts []int, slots []int32) ([]int32, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(counts) != len(seqs) {
		return slots, valueError("Extend: number of counts", len(counts), "that of sequences, %d", len(seqs))
	}
	x := &h.scratch
	defer func() { clear(x.found) }() // a freed sequence must not live on here
	if err := h.planExtension(seqs, counts); err != nil {
		return slots, err
	}
	for stream := range h.config.Layers * h.config.KVHeads {
		for i, s := range x.found {
			x.ids, x.counts = append(x.ids, s.streams[stream]), append(x.counts, counts[i])
			for k := range counts[i] {
				x.positions = append(x.positions, int32(s.tokens+k))
			}
		}
	}
	slots, err := h.cache.ExtendAt(x.ids, x.counts, x.positions, slots)
	if err != nil {
		return slots, err
	}
	for i, s := range x.found {
		s.tokens += counts[i]
	}
	return slots, nil
}

// planExtension checks the arguments and finds the sequences.
func (h *HeadCache) planExtension(seqs []ID, counts []int) error {
	x := &h.scratch
	x.number++
	x.found, x.ids, x.counts = x.found[:0], x.ids[:0], x.counts[:0]
	if x.positions = x.positions[:0]; x.positions == nil {
		x.positions = []int32{} // nil would ask for those of the streams
	}
	for i, id := range seqs {
		s, err := h.find(id)
		if err != nil {
			return err
		}
		switch {
		case s.extension == x.number:
			return valueError(fmt.Sprintf("Extend: seqs[%d]", i), id, "a sequence not named before")
		case counts[i] < 0:
			return valueError(fmt.Sprintf("Extend: counts[%d]", i), counts[i], "0 or more")
		case counts[i] > math.MaxInt32-s.tokens:
			return &TooLongError{fmt.Sprintf("length of sequence %d", id), fmt.Sprintf("%d+%d", s.tokens, counts[i])}
		}
		s.extension = x.number
		x.found = append(x.found, s)
	}
	return nil
}

// Append stores the rows key [tokens, KVHeads, HeadDim] and value [tokens,
// KVHeads, ValueDim] of a layer. slots are all that Extend gave.
func (h *HeadCache) Append(layer int, slots []int32, key, value tensor.View) error {
	if layer < 0 || layer >= h.config.Layers {
		return valueError("layer", layer, "0 to %d", h.config.Layers-1)
	}
	heads := h.config.KVHeads
	for _, v := range []*tensor.View{&key, &value} {
		if v.Rank != 3 || v.Shape[1] != int64(heads) || int64(len(slots)) != v.Shape[0]*int64(h.config.Layers*heads) {
			return valueError("Append: rows", v.String(), "[tokens,%d,dim], for %d slots of Layers, KVHeads and tokens", heads, len(slots))
		}
	}
	tokens := int(key.Shape[0])
	for head := range heads {
		at := (layer*heads + head) * tokens
		g := int64(head)
		if err := h.cache.Append(0, slots[at:at+tokens], key.Slice(1, g, g+1), value.Slice(1, g, g+1)); err != nil {
			return err
		}
	}
	return nil
}

// Apply is Cache.Apply to all streams of the sequences: plans[(i·Layers +
// layer)·KVHeads + head] is of sequence i.
func (h *HeadCache) Apply(seqs []ID, plans []Plan) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	streams := h.config.Layers * h.config.KVHeads
	if len(plans) != len(seqs)*streams {
		return valueError("Apply: number of plans", len(plans), "%d, one for each KV head and layer of %d sequences", len(seqs)*streams, len(seqs))
	}
	ids := make([]ID, 0, len(plans))
	for _, id := range seqs {
		s, err := h.find(id)
		if err != nil {
			return err
		}
		ids = append(ids, s.streams...)
	}
	return h.cache.Apply(ids, plans)
}

// Layer makes v the View of all heads of a layer: of each sequence, its KV heads
// in order.
func (h *HeadCache) Layer(v *View, layer int, ids ...ID) error {
	return h.view(v, layer, 0, h.config.KVHeads, ids)
}

// Head makes v the View of one KV head of a layer.
func (h *HeadCache) Head(v *View, layer, head int, ids ...ID) error {
	if head < 0 || head >= h.config.KVHeads {
		return valueError("head", head, "0 to %d", h.config.KVHeads-1)
	}
	return h.view(v, layer, head, head+1, ids)
}

func (h *HeadCache) view(v *View, layer, from, to int, ids []ID) error {
	if layer < 0 || layer >= h.config.Layers {
		return valueError("layer", layer, "0 to %d", h.config.Layers-1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	v.cache, v.ids = h.cache, v.ids[:0]
	for _, id := range ids {
		s, err := h.find(id)
		if err != nil {
			v.ids = v.ids[:0]
			return err
		}
		v.ids = append(v.ids, s.streams[layer*h.config.KVHeads+from:layer*h.config.KVHeads+to]...)
	}
	return nil
}

// Bind is Cache.Bind. All layers share their pages.
func (h *HeadCache) Bind(a *kernel.Args) error { return h.cache.Bind(0, a) }

// Split makes of a tensor [tokens, Heads, dim] or [tokens, Heads] one for a View
// of Layer: [tokens·KVHeads, Heads/KVHeads, dim] of the same memory. Its heads
// must follow one another evenly, from token to token too.
func (h *HeadCache) Split(v tensor.View) (tensor.View, error) {
	heads := int64(h.config.KVHeads)
	if v.Rank < 2 || v.Rank > 3 || v.Shape[1]%heads != 0 || v.Shape[0] > 1 && v.Stride[0] != v.Shape[1]*v.Stride[1] {
		return tensor.View{}, valueError("Split: tensor", &v, "[tokens,Heads,dim] or [tokens,Heads], Heads a multiple of KVHeads %d and without a gap between tokens", heads)
	}
	group := v.Shape[1] / heads
	v.Shape[0], v.Shape[1], v.Stride[0] = v.Shape[0]*heads, group, group*v.Stride[1]
	return v, nil
}

// Stats is Cache.Stats of the streams: Sequences counts them, Tokens their keys.
func (h *HeadCache) Stats() Stats { return h.cache.Stats() }

// CheckIntegrity is Cache.CheckIntegrity, and sees that each stream belongs to
// one sequence.
func (h *HeadCache) CheckIntegrity() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	faults, seen := []error{h.cache.CheckIntegrity()}, map[ID]bool{}
	for id, s := range h.sequences {
		for _, stream := range s.streams {
			p, err := h.cache.Positions(stream, nil)
			if n := len(p); err != nil || seen[stream] || n > 0 && int(p[n-1]) >= s.tokens {
				faults = append(faults, fmt.Errorf("kvcache: internal error: stream %d of sequence %d of %d tokens, in another %v: positions %v, %v", stream, id, s.tokens, seen[stream], p, err))
			}
			seen[stream] = true
		}
	}
	if n := h.cache.Stats().Sequences; n < len(seen) || n > len(seen)+h.moving {
		faults = append(faults, fmt.Errorf("kvcache: internal error: %d streams in the cache, %d in sequences and %d on their way", n, len(seen), h.moving))
	}
	return errors.Join(faults...)
}
