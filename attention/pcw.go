// Nir Ratner et al., "Parallel Context Windows for Large Language Models", 2022, https://arxiv.org/abs/2212.10947

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
)

// PCW is parallel context windows: contexts that do not see one another stand at
// the same positions, and the tokens after them see all.
//
//	index                        position                          sees
//	a prefix of Prefix tokens    0, 1, …                           causally
//	then each of Contexts        Prefix, Prefix+1, …               the prefix and, causally, itself
//	then the rest                Prefix + longest context, …       all, causally
//
// Claim: strong, without training: positions stay below the trained length for
// any number of contexts that each fit; best where they are of one kind, such as
// retrieved passages or examples.
//
// Cost: contexts of C tokens take C²/2 pairs each instead of growing with what is
// before them; the rest attends to all keys. A context's keys can be kept and
// used again after any others.
//
// Limits: keys stored PostRoPE are good for their own prefix length alone. The
// contexts know nothing of each other. Contexts are computed one Step after
// another, each with the mask of its own; the cache holds one sequence.
type PCW struct {
	Prefix   int   // tokens before the contexts, at least 0
	Contexts []int // tokens of each, at least 1
}

// Name returns "pcw".
func (PCW) Name() string { return "pcw" }

func (m PCW) check() error {
	if m.Prefix < 0 || m.Prefix >= kernel.MaxBound || len(m.Contexts) == 0 {
		return fmt.Errorf("attention: pcw: Prefix %d and %d Contexts, want Prefix at least 0 and at least one context", m.Prefix, len(m.Contexts))
	}
	total := m.Prefix
	for k, n := range m.Contexts {
		if n < 1 || n >= kernel.MaxBound-total {
			return fmt.Errorf("attention: pcw: Contexts[%d] is %d tokens after %d, want at least 1 and fewer than 2³¹−1 in all", k, n, total)
		}
		total += n
	}
	return nil
}

// end is the index after context k.
func (m PCW) end(k int) int {
	at := m.Prefix
	for _, n := range m.Contexts[:k+1] {
		at += n
	}
	return at
}

// Positions returns the positions of tokens 0 to n−1: Step.KeyPos.
func (m PCW) Positions(n int) ([]int32, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	if err := parameter("tokens", n, 0); err != nil {
		return nil, fmt.Errorf("attention: pcw: %w", err)
	}
	out := make([]int32, 0, n)
	add := func(from, count int) {
		for p := range min(count, n-len(out)) {
			out = append(out, int32(from+p))
		}
	}
	add(0, m.Prefix)
	longest := 0
	for _, c := range m.Contexts {
		add(m.Prefix, c)
		longest = max(longest, c)
	}
	add(m.Prefix+longest, n)
	return out, nil
}

// Mask returns what the tokens of context k see, for a Step of them whose keys end
// with them. The tokens of the prefix and those after the contexts see all before
// them: Causal.
func (m PCW) Mask(k int) (Mask, error) {
	if err := m.check(); err != nil {
		return Mask{}, err
	}
	if k < 0 || k >= len(m.Contexts) {
		return Mask{}, fmt.Errorf("attention: pcw: context %d, want 0 to %d", k, len(m.Contexts)-1)
	}
	own := int32(m.end(k) - m.Contexts[k])
	causal := between(0, kernel.MaxBound)
	out := intervals(kernel.Region{Diff: causal, Key: between(own, kernel.MaxBound)})
	if m.Prefix > 0 {
		out.Regions = append(out.Regions, kernel.Region{Diff: causal, Key: between(0, int32(m.Prefix))})
	}
	return out, nil
}

// parts are the keys of the contexts, and the others, as the tokens after the
// contexts see them.
func (m PCW) parts() (contexts, others Mask) {
	causal, end := between(0, kernel.MaxBound), int32(m.end(len(m.Contexts)-1))
	contexts = intervals(kernel.Region{Diff: causal, Key: between(int32(m.Prefix), end)})
	others = intervals(kernel.Region{Diff: causal, Key: between(end, kernel.MaxBound)})
	if m.Prefix > 0 {
		others.Regions = append(others.Regions, kernel.Region{Diff: causal, Key: between(0, int32(m.Prefix))})
	}
	return contexts, others
}
