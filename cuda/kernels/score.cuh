// From dot products to scores, in units of log 2: rule 4 of package kernel.
#pragma once

#include "exact.cuh"
#include "tensor.cuh"

// score is that of the product a of query index i with key j, for query head h,
// after all modifications.
DEV float score(const lc_attention_params &p, float a, float scale, int h, int64_t i, int64_t j, int64_t key_offset) {
	float t = mul_(a, scale);
	if (p.scores & lc_soft_cap)
		t = mul_(tanh_exact(mul_(t, p.inv_cap)), p.cap);
	if (p.scores & lc_slopes) {
		int64_t distance = i > j ? i - j : j - i;
		t = fma_(mul_(load_scalar(p.slopes, h, 0), log2_e()), -to_float(distance), t);
	}
	if (p.scores & lc_rel_bias) {
		int64_t at = i - j - p.rel_bias_start;
		at = at < 0 ? 0 : at >= p.rel_bias.cols ? p.rel_bias.cols - 1 : at;
		t = fma_(load_scalar(p.rel_bias, h, at), log2_e(), t);
	}
	if (p.scores & lc_prefix_bias && i >= 0) {
		float c = sub_(load_scalar(p.prefix_bias, key_offset + i, h), load_scalar(p.prefix_bias, key_offset + j, h));
		t = fma_(c, log2_e(), t);
	}
	return t;
}
