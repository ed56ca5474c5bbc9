package policy

import (
	"fmt"

	"github.com/longctx/longctx/kvcache"
)

// Wu et al., "SCOPE: Optimizing Key-Value Cache Compression in Long-context
// Generation", https://arxiv.org/abs/2412.13649
//
// Keys of the prompt and keys of what was generated have policies and budgets of
// their own, so that a long answer does not push out the prompt. Needs: those of
// the two. Cost: theirs. Limits: Head.Prompt must be set; until there are more
// generated keys than their budget, all of these stay.
type SCOPE struct {
	Prefill, Decode Planner
	DecodeKeys      int // mean number of generated keys that a head keeps
}

// Needs is what either needs.
func (p SCOPE) Needs() (n Needs) {
	for _, x := range []Planner{p.Prefill, p.Decode} {
		if x != nil {
			n |= x.Needs()
		}
	}
	return n
}

// Plan keeps keys keys of the prompt, and DecodeKeys of the others.
func (p SCOPE) Plan(s *Sequence, keys int) ([]kvcache.Plan, error) {
	if p.Prefill == nil || p.Decode == nil || p.DecodeKeys < 1 {
		return nil, valueError("SCOPE", fmt.Sprintf("Prefill %v, Decode %v, DecodeKeys %d", p.Prefill, p.Decode, p.DecodeKeys), "two Planners and at least 1")
	}
	if err := checkHeads(s, p.Needs()); err != nil {
		return nil, err
	}
	cut := make([]int, len(s.Heads))
	prompt, rest := &Sequence{Layers: s.Layers, KVHeads: s.KVHeads}, &Sequence{Layers: s.Layers, KVHeads: s.KVHeads}
	for i, h := range s.Heads {
		for cut[i] < h.Len() && int(h.Positions[cut[i]]) < h.Prompt {
			cut[i]++
		}
		prompt.Heads = append(prompt.Heads, h.part(0, cut[i]))
		rest.Heads = append(rest.Heads, h.part(cut[i], h.Len()))
	}
	plans, err := p.Prefill.Plan(prompt, keys)
	if err != nil {
		return nil, fmt.Errorf("policy: SCOPE: keys of the prompt: %w", err)
	}
	more, err := p.Decode.Plan(rest, p.DecodeKeys)
	if err != nil {
		return nil, fmt.Errorf("policy: SCOPE: generated keys: %w", err)
	}
	for i, h := range s.Heads {
		at := int32(cut[i])
		for _, j := range more[i].Keep {
			plans[i].Keep = append(plans[i].Keep, j+at)
		}
		for _, m := range more[i].Merges {
			plans[i].Merges = append(plans[i].Merges, kvcache.Merge{Into: m.Into + at, From: m.From + at, Key: m.Key, Value: m.Value})
		}
		h.pending = pending{threshold: prompt.Heads[i].pending.threshold}
		if a, b := prompt.Heads[i].pending.count, rest.Heads[i].pending.count; a != nil || b != nil {
			for j := range h.Len() {
				h.pending.count = append(h.pending.count, h.count(j))
			}
			copy(h.pending.count, a)
			copy(h.pending.count[cut[i]:], b)
		}
	}
	return plans, nil
}
