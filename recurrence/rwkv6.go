// Bo Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence", 2024, https://arxiv.org/abs/2404.05892

package recurrence

// RWKV6 is the recurrence of RWKV-6 (Finch): a gate of each channel, and a weight
// of its own for the token that is read before it is stored,
//
//	Out = Sᵀr + (r·(u∘k))·v,  S ← diag(w)·S + k ⊗ v
//
// with Query r (receptance), Gate ln w = −e^(data-dependent decay) and Bonus u.
// Token shift, the low-rank maps that make w, and the normalisation of heads are
// the model's.
//
// Claim: quality near transformers' of the same size, with weak extrapolation.
//
// Cost: that of GLA, and 2·KeyDim FLOPs a token and head.
//
// Limits: those of GLA. RWKV-5 is the same with gates that do not depend on the
// token.
type RWKV6 struct{ direct }

// Info describes the technique.
func (RWKV6) Info() Info {
	return Info{"rwkv6", "arXiv:2404.05892", "weak", ReadsKey | ReadsChannelGate | ReadsBonus, "1"}
}
