// Songlin Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2023, https://arxiv.org/abs/2312.06635

package recurrence

// GLA is linear attention with a gate of each channel of a key:
//
//	S ← diag(e^Gate)·S + k ⊗ v,  Out = Scale·Sᵀq
//
// Claim: as good as a transformer of the same size at short contexts, and weak
// extrapolation: perplexity stays flat beyond the trained length.
//
// Cost: that of package recurrence, gated, and log₂C exponentials a channel of a
// token: decays cannot be taken out of the products of queries and keys.
//
// Limits: gates below e^−88 within a chunk are 0.
type GLA struct{ direct }

// Info describes the technique.
func (GLA) Info() Info {
	return Info{"gla", "arXiv:2312.06635", "weak", ReadsKey | ReadsChannelGate, "1/√KeyDim"}
}
