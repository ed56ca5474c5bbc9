// Package rope chooses the angles of rotary position embedding for long
// contexts, reads them from model configurations, and builds the tables that
// backends rotate by.
//
// A feature pair (x, y) of a query or key at position p turns, for pair i of
// the d rotated features, by the angle p·f_i:
//
//	x' = A·(x·cos(p·f_i) − y·sin(p·f_i))
//	y' = A·(y·cos(p·f_i) + x·sin(p·f_i))        f_i = θ^(−2i/d), i = 0 … d/2−1
//
// so that a score depends on the distance of query and key, times A². A
// method changes f_i and the attention factor A. With s the factor by which
// the context grows, L the trained length and n the length of the sequence:
//
//	Default       f_i
//	Linear        f_i/s                                        arXiv:2306.15595
//	NTK           θ → θ·s^(d/(d−2))                            arXiv:2309.00071
//	NTKAlpha      θ → θ·α^(d/(d−2))                            arXiv:2411.02265
//	NTKFixed      θ → θ·s, then f_i/s^(2/d)                    kexue.fm/archives/9706
//	NTKMixed      f_i/exp(ln s·((i+1)/(d/2))^b)                kexue.fm/archives/9706
//	DynamicNTK    NTK with s·max(n, L)/L − (s−1)               depends on n
//	NTKByParts    three bands of f_i, NTK, f_i/s               arXiv:2309.00071
//	YaRN          f_i to f_i/s by a ramp; A = 1 + 0.1·ln s     arXiv:2309.00071
//	DynamicYaRN   YaRN with s = max(1, n/L)                    depends on n
//	LongRoPE      f_i/factor_i, short or long list; A          depends on n > L
//	Llama3        f_i to f_i/s by wavelength                   arXiv:2407.21783
//	Proportional  f_i of the whole head, then 0                arXiv:2410.06205
//	XPos          f_i, and a decay ζ_i^(±p/512)                arXiv:2212.10554
//	Divided       another method's f_i/factor_i                GGUF rope_freqs
//
// All take partial rotation (Base.RotaryDim, Base.Partial), either pairing of
// features (Base.Layout) and several position axes (Base.MRoPE). Methods that
// move positions rather than frequencies (ReRoPE, Self-Extend, DCA) are Terms
// of package attention.
//
// # From a method to a rotation
//
// Method.Rotation gives a kernel.Rotation, plain data that a caller may still
// change (Rotation.Layout, say). Package attention builds the tables of a
// batch from it; Table, Apply, Unapply and Shift serve callers who rotate
// themselves. Rotation.ScoreScale is not in the tables: it multiplies the
// scale of the scores.
//
// # Numeric rules
//
//   - Frequencies are float64, from functions with the same bits on every
//     architecture. A table row is computed in float64, the angle p·f_i from
//     its exact product, and rounded once to float32: within 2⁻²⁴·A of the
//     truth at every position below 2³⁰.
//   - CompatF32 computes as Python implementations do: f32(p)·f32(f_i) in
//     float32. The cosine is then off by up to 1.5e-3 at position 131,071,
//     2.5e-2 at 1,048,575 and 0.13 at ten million (d = 128, θ = 10000). Models
//     were trained so; where their training stopped short of such positions
//     there is nothing to be compatible with. Frequencies are rounded once
//     from float64, which may differ from a float32 power by a unit.
//   - Positions are int32 and never pass through a 16-bit type.
//   - A partial rotation does not touch the features behind it. A frequency of
//     0 (Proportional) keeps finite features but for the sign of a zero.
//
// # Configurations
//
// ParseHF reads Hugging Face's config.json of both generations, "rope_scaling"
// with a top-level "rope_theta", and "rope_parameters", flat or by layer type:
//
//	type                     required                                optional
//	default (mrope)          rope_theta
//	linear                   rope_theta, factor
//	dynamic                  rope_theta, factor, trained length      alpha in place of factor
//	yarn                     rope_theta, factor,                     attention_factor, beta_fast, beta_slow,
//	                         original_max_position_embeddings        mscale, mscale_all_dim, truncate
//	longrope (su)            rope_theta, short_factor, long_factor,  factor, attention_factor,
//	                         original_max_position_embeddings        short_mscale, long_mscale
//	llama3                   rope_theta, factor, low_freq_factor,
//	                         high_freq_factor,
//	                         original_max_position_embeddings
//	proportional             rope_theta                              factor
//	all                                                              partial_rotary_factor,
//	                                                                 mrope_section, mrope_interleaved
//
// ParseGGUF reads the "{arch}.rope." keys of GGUF files. In both, an unknown
// key, an unknown type, a missing required key and two keys that contradict
// each other are errors: a recipe that is not understood must not turn into
// one that is silently not applied.
package rope
