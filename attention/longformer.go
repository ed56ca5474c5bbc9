// Iz Beltagy, Matthew E. Peters, Arman Cohan, "Longformer: The Long-Document Transformer", 2020, https://arxiv.org/abs/2004.05150

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// Longformer sees a window, and makes the first Global tokens global: every
// query sees them, and in an encoder they see every key. It is also the pattern
// of ETC (Ainslie et al., https://arxiv.org/abs/2004.08483), whose global input
// is to be laid before the long one.
//
//	decoder, i >= j        i−j < Window or j < Global
//	encoder, i >= Global   |i−j| < Window or j < Global
//	encoder, i <  Global   every j
//
// Claim: none beyond the trained length; the paper trains at the lengths it
// reads.
//
// Cost: Window + Global keys a query (2·Window−1 + Global in an encoder), and
// all keys for the Global queries: O(n·(Window+Global)) pairs of
// 2·(HeadDim+ValueDim) FLOPs.
//
// Limits: the rows of the global queries are no Region, so an encoder takes two
// Runs over disjoint rows of Query and Out: those of Local from row Global on,
// with Bidirectional for the rows before (Steps). The paper projects global queries, keys
// and values by weights of their own: give other tensors to the second Run.
// Global tokens elsewhere than first have to be moved there, with Step.KeyPos to
// keep their positions.
type Longformer struct {
	Window int // keys seen to each side, the query's own included, at least 1
	Global int // first tokens that are global, at least 0
}

// Name returns "longformer".
func (Longformer) Name() string { return "longformer" }

func (m Longformer) check() error {
	if err := parameter("Window", m.Window, 1); err != nil {
		return fmt.Errorf("attention: longformer: %w", err)
	}
	if err := parameter("Global", m.Global, 0); err != nil {
		return fmt.Errorf("attention: longformer: %w", err)
	}
	return nil
}

// Decoder returns the mask of a causal model: WindowSinks.
func (m Longformer) Decoder() (Mask, error) {
	if err := m.check(); err != nil {
		return Mask{}, err
	}
	return WindowSinks(m.Window, m.Global), nil
}

// Local returns the mask of an encoder's queries from row Global on.
func (m Longformer) Local() (Mask, error) {
	if err := m.check(); err != nil {
		return Mask{}, err
	}
	w, first := int32(m.Window), between(0, int32(m.Global))
	out := intervals(kernel.Region{Diff: between(1-w, w), Key: kernel.All})
	if m.Global > 0 {
		out.Regions = append(out.Regions,
			kernel.Region{Diff: between(w, kernel.MaxBound), Key: first},
			kernel.Region{Diff: between(kernel.MinBound, 1-w), Key: first})
	}
	return out, nil
}

// Steps returns the two Steps of an encoder over one contiguous sequence of keys
// tokens: that of Query and Out from row Global on, for an Attention with the
// mask of Local, and that of the rows before, for one with Bidirectional. global
// has no queries where Global is 0, local none where there are no other tokens.
func (m Longformer) Steps(keys int) (local, global Step, err error) {
	if err := m.check(); err != nil {
		return Step{}, Step{}, err
	}
	if err := parameter("keys", keys, 0); err != nil {
		return Step{}, Step{}, fmt.Errorf("attention: longformer: %w", err)
	}
	n := min(m.Global, keys)
	local = Step{QueryLens: []int{keys - n}, KeyLens: []int{keys}}
	// the last n keys are the queries' own by index: only positions can tell, and
	// they say which rows these are
	global = Step{QueryLens: []int{n}, KeyLens: []int{keys}, QueryPos: make([]int32, n)}
	for i := range global.QueryPos {
		global.QueryPos[i] = int32(i)
	}
	return local, global, nil
}
