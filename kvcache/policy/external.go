package policy

// Scores that a model or a program gives.
//
// Yao et al., "SirLLM: Streaming Infinite Retentive LLM",
// https://arxiv.org/abs/2405.12528: the entropy −log p of each token when it was
// read; Huang et al., "Locret: Enhancing Eviction in Long-Context LLM Inference
// with Trained Retaining Heads", https://arxiv.org/abs/2410.01805: the outputs of
// heads trained to tell which keys will be needed. Needs: external. Cost: none
// here. Limits: SirLLM needs the model's logits, Locret its retaining heads.

// SirLLM takes token entropies, the same for all heads, and keeps sinks and recent
// tokens.
func SirLLM(sinks, recent int) *Policy {
	return &Policy{Score: Given{}, Sinks: sinks, Recent: recent, Share: true, Trigger: Any{AfterPrompt{}, Every{64}}}
}

// Locret takes the scores of retaining heads, and keeps the last stabilizers keys.
func Locret(stabilizers int) *Policy {
	return &Policy{Score: Given{}, Recent: stabilizers, Trigger: Any{AfterPrompt{}, Every{1024}}}
}

// Given scores a key by Head.External.
type Given struct{}

func (Given) Needs() Needs { return External }

// Score is what was given.
func (Given) Score(h *Head, dst []float32) error {
	copy(dst, h.External)
	return nil
}
