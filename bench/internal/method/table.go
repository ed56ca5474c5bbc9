package method

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
)

// table is all methods.
var table = append(plainMethods, selectorMethods()...)

// In the summaries L is the trained length, n the tested one, s = max(1, n/L),
// and p the position of a token.
var plainMethods = []Method{
	{
		Name: "rope", Title: "RoPE", Claim: "none", Quick: true,
		Summary: "as trained: positions beyond L are met for the first time",
		Paper:   "Su et al., RoFormer", URL: "https://arxiv.org/abs/2104.09864",
		build: func(s *setting) Setup { return s.rotate(rope.Default{Base: s.base}, "") },
	},
	{
		Name: "rope+logn", Title: "RoPE with log-n", Claim: "weak",
		Summary: "rope, scores of query i times max(1, ln(i+1)/ln L), so that attention stays as sharp over more keys",
		Paper:   "Chiang and Cholak; Su", URL: "https://arxiv.org/abs/2202.12172",
		build: func(s *setting) Setup { return s.logN(s.rotate(rope.Default{Base: s.base}, "")) },
	},
	{
		Name: "nope", Title: "NoPE", Module: "nope", Claim: "none", Control: true,
		Summary: "no rotation at all",
		Paper:   "Kazemnejad et al.", URL: "https://arxiv.org/abs/2305.19466",
		build: func(s *setting) Setup { return s.place(attention.NoPE{}, "") },
	},
	{
		Name: "pi", Title: "Position interpolation", Claim: "weak", Quick: true,
		Summary: "position interpolation: every position divided by s; made to be fine-tuned",
		Paper:   "Chen et al.", URL: "https://arxiv.org/abs/2306.15595",
		build: func(s *setting) Setup {
			return s.rotate(rope.Linear{Base: s.base, Factor: s.s}, "s=%.4g", s.s)
		},
	},
	{
		Name: "ntk", Title: "NTK-aware", Claim: "weak", Quick: true,
		Summary: "base θ·s^(d/(d−2)): the lowest frequency is divided by s, the highest kept",
		Paper:   "bloc97; in Peng et al., YaRN, section 3.1", URL: "https://arxiv.org/abs/2309.00071",
		build: func(s *setting) Setup {
			return s.rotate(rope.NTK{Base: s.base, Factor: s.s}, "s=%.4g", s.s)
		},
	},
	{
		Name: "ntk-fixed", Title: "NTK, fixed base", Claim: "weak",
		Summary: "base θ·s, then every frequency divided by s^(2/d)",
		Paper:   "Su, Transformer upgrade path 11", URL: "https://kexue.fm/archives/9706",
		build: func(s *setting) Setup {
			return s.rotate(rope.NTKFixed{Base: s.base, Factor: s.s}, "s=%.4g", s.s)
		},
	},
	{
		Name: "ntk-mixed", Title: "NTK, mixed base", Claim: "weak",
		Summary: "frequency i divided by exp(a·(i+1)^0.625), the lowest by s",
		Paper:   "Su, Transformer upgrade path 11", URL: "https://kexue.fm/archives/9706",
		build: func(s *setting) Setup {
			return s.rotate(rope.NTKMixed{Base: s.base, Factor: s.s}, "s=%.4g b=0.625", s.s)
		},
	},
	{
		Name: "ntk-alpha", Title: "NTK-alpha", Claim: "weak",
		Summary: "ntk with a factor chosen apart from s; here 2s beyond L",
		Paper:   "Sun et al., Hunyuan-Large", URL: "https://arxiv.org/abs/2411.02265",
		build: func(s *setting) Setup {
			alpha := 1.0
			if s.s > 1 {
				alpha = 2 * s.s
			}
			return s.rotate(rope.NTKAlpha{Base: s.base, Alpha: alpha}, "α=%.4g", alpha)
		},
	},
	{
		Name: "dynamic-ntk", Title: "Dynamic NTK", Claim: "weak",
		Summary: "ntk with the factor a·n/L − (a−1), which grows with the sequence",
		Paper:   "emozilla; in Peng et al., YaRN, section 3.3", URL: "https://arxiv.org/abs/2309.00071",
		build: func(s *setting) Setup {
			return s.rotate(rope.DynamicNTK{Base: s.base, Factor: 2, MaxLength: s.trained}, "a=2")
		},
	},
	{
		Name: "ntk-by-parts", Title: "NTK-by-parts", Claim: "strong",
		Summary: "fast pairs kept, slow pairs interpolated, those between by ntk",
		Paper:   "bloc97; in Peng et al., YaRN, section 3.2", URL: "https://arxiv.org/abs/2309.00071",
		build: func(s *setting) Setup {
			return s.rotate(rope.NTKByParts{Base: s.base, Factor: s.s, OriginalLength: s.trained}, "s=%.4g", s.s)
		},
	},
	{
		Name: "yarn", Title: "YaRN", Claim: "strong", Quick: true,
		Summary: "pairs of 32 turns in L kept, of less than 1 interpolated, a ramp between; scores times (0.1·ln s + 1)²",
		Paper:   "Peng et al., YaRN", URL: "https://arxiv.org/abs/2309.00071",
		build: func(s *setting) Setup {
			return s.rotate(rope.YaRN{Base: s.base, Factor: s.s, OriginalLength: s.trained}, "s=%.4g", s.s)
		},
	},
	{
		Name: "dynamic-yarn", Title: "Dynamic YaRN", Claim: "strong",
		Summary: "yarn with s = n/L of each step; equal to yarn where, as here, a sequence is run at once",
		Paper:   "Peng et al., YaRN, section 3.3", URL: "https://arxiv.org/abs/2309.00071",
		build: func(s *setting) Setup {
			return s.rotate(rope.DynamicYaRN{Base: s.base, OriginalLength: s.trained}, "")
		},
	},
	{
		Name: "longrope", Title: "LongRoPE", Claim: "strong",
		Summary: "a factor of its own for each pair, and scores times 1 + ln s/ln L; not searched for here: from 1 for the fastest pair geometrically to s for those that make no whole turn in L",
		Paper:   "Ding et al., LongRoPE", URL: "https://arxiv.org/abs/2402.13753",
		build: func(s *setting) Setup {
			short, long := make([]float64, s.base.HeadDim/2), make([]float64, s.base.HeadDim/2)
			turning := s.turning()
			for i := range long {
				short[i], long[i] = 1, s.s
				if i < turning {
					long[i] = math.Pow(s.s, float64(i)/float64(turning))
				}
			}
			m := rope.LongRoPE{Base: s.base, Short: short, Long: long, OriginalLength: s.trained, Factor: s.s}
			return s.rotate(m, "factors 1 to %.4g over %d pairs", s.s, turning)
		},
	},
	{
		Name: "llama3", Title: "Llama 3", Claim: "strong",
		Summary: "pairs of 4 turns in L kept, of less than 1 divided by s, a blend between",
		Paper:   "Grattafiori et al., The Llama 3 Herd of Models", URL: "https://arxiv.org/abs/2407.21783",
		build: func(s *setting) Setup {
			m := rope.Llama3{Base: s.base, Factor: s.s, LowFreqFactor: 1, HighFreqFactor: 4, OriginalLength: s.trained}
			return s.rotate(m, "s=%.4g turns 1 to 4", s.s)
		},
	},
	{
		Name: "proportional", Title: "p-RoPE", Claim: "none",
		Summary: "beyond L, only the pairs that make a whole turn in L are rotated, with their own frequencies",
		Paper:   "Barbero et al., Round and Round We Go! (p-RoPE)", URL: "https://arxiv.org/abs/2410.06205",
		build: func(s *setting) Setup {
			b := s.base
			b.Partial = 1
			if s.s > 1 {
				b.Partial = max(1, float64(s.turning())) / float64(b.HeadDim/2)
			}
			return s.rotate(rope.Proportional{Base: b}, "p=%.3g", b.Partial)
		},
	},
	{
		Name: "xpos", Title: "xPos", Claim: "none", Control: true,
		Summary: "rope with a decay of scores with distance, per pair",
		Paper:   "Sun et al., A Length-Extrapolatable Transformer", URL: "https://arxiv.org/abs/2212.10554",
		build: func(s *setting) Setup { return s.rotate(rope.XPos{Base: s.base}, "scale base 512") },
	},
	{
		Name: "abf", Title: "Adjusted base frequency", Claim: "none", Control: true,
		Summary: "a larger base θ, the least with which distances up to n have been seen; made to be fine-tuned",
		Paper:   "Xiong et al., Effective Long-Context Scaling; the base by Liu et al., Scaling Laws of RoPE-based Extrapolation", URL: "https://arxiv.org/abs/2309.16039",
		build: func(s *setting) Setup {
			b := s.base
			if s.s > 1 {
				b.Theta, s.err = rope.BaseFor(b.HeadDim, s.trained, b.Theta, s.length)
			}
			return s.rotate(rope.Default{Base: b}, "θ=%.4g", b.Theta)
		},
	},
	{
		Name: "entropy-abf", Title: "Entropy-ABF", Module: "entropy", Claim: "none", Control: true,
		Summary: "abf, and from the third layer on scores of query i times max(1, ln(i+1)/ln L); made to be fine-tuned",
		Paper:   "Zhang et al., Extending LLMs' Context Window with 100 Samples", URL: "https://arxiv.org/abs/2401.07004",
		build: func(s *setting) Setup {
			b := s.base
			if s.s > 1 {
				b.Theta, s.err = rope.BaseFor(b.HeadDim, s.trained, b.Theta, s.length)
			}
			out := s.rotate(rope.Default{Base: b}, "θ=%.4g", b.Theta)
			m := attention.EntropyScale{Trained: s.trained, First: 2}
			out.Layer = func(layer int, c *attention.Config) error { return m.Apply(c, layer) }
			return out
		},
	},
	{
		Name: "rerope", Title: "ReRoPE", Module: "rerope", Claim: "strong", Quick: true,
		Summary: "distances grow to w = L/2 and stay there",
		Paper:   "Su, Transformer upgrade path 12", URL: "https://kexue.fm/archives/9708",
		build: func(s *setting) Setup {
			return s.place(attention.ReRoPE{Window: s.trained / 2}, "w=%d", s.trained/2)
		},
	},
	{
		Name: "rerope+logn", Title: "ReRoPE with log-n", Module: "rerope", Claim: "strong", Quick: true,
		Summary: "rerope, scores of query i times max(1, ln(i+1)/ln L)",
		Paper:   "Su, Transformer upgrade path 12", URL: "https://kexue.fm/archives/9708",
		build: func(s *setting) Setup {
			return s.logN(s.place(attention.ReRoPE{Window: s.trained / 2}, "w=%d", s.trained/2))
		},
	},
	{
		Name: "leaky-rerope", Title: "Leaky ReRoPE", Module: "leaky-rerope", Claim: "strong",
		Summary: "distances grow to w = L/2, and beyond it slowly enough to end below L",
		Paper:   "Su, Transformer upgrade path 12", URL: "https://kexue.fm/archives/9708",
		build: func(s *setting) Setup {
			w := s.trained / 2
			k := max(1, float64(s.length-w)/float64(s.trained-1-w))
			return s.place(attention.LeakyReRoPE{Window: w, Factor: k}, "w=%d k=%.4g", w, k)
		},
	},
	{
		Name: "self-extend", Title: "Self-Extend", Module: "self-extend", Claim: "strong", Quick: true,
		Summary: "near distances kept, far positions divided by a group size and rounded down",
		Paper:   "Jin et al., LLM Maybe LongLM", URL: "https://arxiv.org/abs/2401.01325",
		build: func(s *setting) Setup {
			m := s.selfExtend()
			return s.place(m, "G=%d W=%d", m.Group, m.Window)
		},
	},
	{
		Name: "dca", Title: "Dual chunk attention", Module: "dca", Claim: "strong", Quick: true,
		Summary: "dual chunk attention: positions start anew every chunk, of ¾L with L/8 kept local",
		Paper:   "An et al., Training-Free Long-Context Scaling", URL: "https://arxiv.org/abs/2402.17463",
		build: func(s *setting) Setup {
			m := attention.DCAFor(s.trained)
			return s.place(m, "c=%d w=%d", m.Chunk, m.Local)
		},
	},
	{
		Name: "string", Title: "STRING", Module: "string", Claim: "none", Control: true,
		Summary: "distances from L/3 on are moved down by L/3 − L/8; made to use the trained length well, not to pass it",
		Paper:   "An et al., Why Does the Effective Context Length of LLMs Fall Short?", URL: "https://arxiv.org/abs/2410.18745",
		build: func(s *setting) Setup {
			m := attention.STRING{Shift: s.trained / 3, Window: s.trained / 8}
			return s.place(m, "S=%d W=%d", m.Shift, m.Window)
		},
	},
	{
		Name: "lm-infinite", Title: "LM-Infinite", Module: "lm-infinite", Claim: "weak",
		Summary: "the last keys at their distances and the first 10 at a constant one; the rest is not seen",
		Paper:   "Han et al., LM-Infinite", URL: "https://arxiv.org/abs/2308.16137",
		build: func(s *setting) Setup {
			m := attention.LMInfinite{Global: 10, Window: s.trained - 10}
			return s.place(m, "global=%d window=%d", m.Global, m.Window)
		},
	},
	{
		Name: "window", Title: "Sliding window", Claim: "weak",
		Summary: "the last L keys alone are seen",
		Paper:   "Beltagy et al., Longformer", URL: "https://arxiv.org/abs/2004.05150",
		build: func(s *setting) Setup {
			out := s.rotate(rope.Default{Base: s.base}, "window=%d", s.trained)
			out.Mask = attention.Window(s.trained)
			return out
		},
	},
	{
		Name: "longformer", Title: "Window and global tokens", Module: "longformer", Claim: "none", Control: true,
		Summary: "the last L keys and the first 4 are seen, all at their distances",
		Paper:   "Beltagy et al., Longformer", URL: "https://arxiv.org/abs/2004.05150",
		build: func(s *setting) Setup {
			m := attention.Longformer{Window: s.trained, Global: 4}
			out := s.rotate(rope.Default{Base: s.base}, "window=%d global=%d", m.Window, m.Global)
			out.Mask, s.err = m.Decoder()
			return out
		},
	},
	{
		Name: "zebra", Title: "Local and global layers", Module: "zebra", Claim: "none", Control: true,
		Summary: "every other layer sees its own block of L/2 tokens and the one before it",
		Paper:   "Song et al., Zebra", URL: "https://arxiv.org/abs/2312.08618",
		build: func(s *setting) Setup {
			m := attention.Zebra{Group: 2, Block: s.trained / 2, Back: 1}
			out := s.rotate(rope.Default{Base: s.base}, "block=%d", m.Block)
			out.Layer = func(layer int, c *attention.Config) (err error) {
				c.Mask, err = m.Mask(layer)
				return err
			}
			return out
		},
	},
	{
		Name: "longlora", Title: "Shifted groups", Module: "longlora", Claim: "none", Control: true,
		Summary: "tokens see their group of L, in half of the heads groups that lie L/2 later; made for fine-tuning",
		Paper:   "Chen et al., LongLoRA", URL: "https://arxiv.org/abs/2309.12307",
		build: func(s *setting) Setup {
			m := attention.ShiftedGroups{Size: s.trained / 2 * 2}
			out := s.rotate(rope.Default{Base: s.base}, "G=%d", m.Size)
			out.Mask = m.Mask()
			out.Blocks = func(queryLens, keyLens []int) (kernel.BlockSparse, error) {
				return m.Blocks(queryLens, keyLens, s.kvHeads)
			}
			return out
		},
	},
	{
		Name: "streaming-llm", Title: "StreamingLLM", Module: "streaming-llm", Claim: "weak", Quick: true,
		Summary: "token by token over a cache that drops all but the first 4 and the last L−4 keys; positions are ranks in the cache",
		Paper:   "Xiao et al., StreamingLLM", URL: "https://arxiv.org/abs/2309.17453",
		build: func(s *setting) Setup {
			out := s.rotate(rope.Default{Base: s.base}, "sinks=4 recent=%d", s.trained-4)
			out.Evict = &model.Eviction{Sinks: 4, Recent: s.trained - 4}
			return out
		},
	},
	{
		Name: "alibi", Title: "ALiBi", Claim: "none", Control: true,
		Summary: "no rotation, a penalty on scores that grows with distance, per head",
		Paper:   "Press et al., ALiBi", URL: "https://arxiv.org/abs/2108.12409",
		build: func(s *setting) Setup {
			return Setup{Attending: model.Attending{
				Score: attention.Score{Slopes: true}, Slopes: attention.ALiBiSlopes(s.heads),
			}}
		},
	},
}

// rotate is plain attention with the given frequencies.
func (s *setting) rotate(r attention.Rotary, params string, args ...any) Setup {
	return Setup{Attending: model.Attending{Rotary: r}, Params: fmt.Sprintf(params, args...)}
}

// place is the trained frequencies at the positions of a module.
func (s *setting) place(p attention.Position, params string, args ...any) Setup {
	out := s.rotate(rope.Default{Base: s.base}, params, args...)
	out.Position = p
	return out
}

func (s *setting) logN(out Setup) Setup {
	out.Score.LogN = s.trained
	return out
}
