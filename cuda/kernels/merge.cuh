// The states of the chunks of a row, merged in order: rules 6 to 8 of package
// kernel. A block of 128 threads has one row, a thread features d, d+128, ….
#pragma once

#include "exact.cuh"
#include "tensor.cuh"

enum { merge_threads = 128 };

DEV void merge_parts(const lc_attention_params &p) {
	const int each = lc_max_dim / merge_threads;
	int r = block_index() % p.part_rows, tid = thread_index();
	if (block_index() / p.part_rows >= load_const(&((const lc_counts *)p.counts)->merges))
		return;
	lc_item item = *((const lc_item *)p.merges + block_index() / p.part_rows);
	if (r >= item.tokens * item.heads)
		return;
	int64_t stride = (int64_t)p.part_rows * (p.part_dim + 2);
	const float *part = (const float *)p.parts + item.part * stride;
	float m = max_start(), l = 0.0f, o[each];
	UNROLL for (int k = 0; k < each; k++) o[k] = 0.0f;
	for (int c = item.chunk0; c < item.chunk1; c++, part += stride) {
		const float *ml = part + p.part_rows * p.part_dim + r;
		Factors f = merge_factors(m, load_const(ml));
		m = f.top;
		l = fma_(load_const(ml + p.part_rows), f.b, mul_(l, f.a));
		UNROLL for (int k = 0; k < each; k++) {
			int d = tid + merge_threads * k;
			if (d < p.value_dim)
				o[k] = fma_(load_const(part + r * p.part_dim + d), f.b, mul_(o[k], f.a));
		}
	}
	int head = item.head + r % item.heads;
	if (p.scores & lc_sink_logit) {
		Factors f = merge_factors(m, mul_(load_scalar(p.sink_logit, head, 0), log2_e()));
		m = f.top;
		l = fma_(1.0f, f.b, mul_(l, f.a));
		UNROLL for (int k = 0; k < each; k++) o[k] = fma_(0.0f, f.b, mul_(o[k], f.a));
	}
	const lc_sequence *seq = (const lc_sequence *)p.sequences + item.sequence;
	int64_t token = seq->query_start + item.t0 + r / item.heads;
	if (tid == 0 && p.lse.data)
		store_global((float *)p.lse.data + token * p.lse.row + head * p.lse.col, lse_exact(m, l));
	float inv = div_(1.0f, l);
	UNROLL for (int k = 0; k < each; k++) {
		int d = tid + merge_threads * k;
		if (d < p.value_dim)
			store_element(p.out, token * p.out.row + head * p.out.head + d * p.out.dim, l == 0.0f ? 0.0f : add_(mul_(o[k], inv), 0.0f));
	}
}

// merge_states joins (Out, LSE) states: rule 9. Out and LSE may be those of A or
// of B, so all of a row is read before any of it is written.
DEV void merge_states(const lc_merge_params &p) {
	int64_t rows = (int64_t)p.tokens * p.heads;
	for (int64_t r = block_index(); r < rows; r += grid_size()) {
		int64_t t = r / p.heads, h = r % p.heads;
		float a = load_global((const float *)p.lse_a.data + t * p.lse_a.row + h * p.lse_a.col);
		float b = load_global((const float *)p.lse_b.data + t * p.lse_b.row + h * p.lse_b.col);
		float none = minus_infinity(), top = a != a ? a : b != b ? b : max_(a, b);
		float wa = exp2_exact(mul_(sub_(a, top), log2_e())), wb = exp2_exact(mul_(sub_(b, top), log2_e()));
		float l = add_(wa, wb), inv = div_(1.0f, l);
		for (int d = thread_index(); d < p.features; d += merge_threads) {
			float x = load_element<false>(p.out_a, t * p.out_a.row + h * p.out_a.head + d * p.out_a.dim);
			float y = load_element<false>(p.out_b, t * p.out_b.row + h * p.out_b.head + d * p.out_b.dim);
			if (b != none)
				x = a == none ? y : l == 0.0f ? 0.0f : add_(mul_(fma_(y, wb, mul_(x, wa)), inv), 0.0f);
			store_element(p.out, t * p.out.row + h * p.out.head + d * p.out.dim, x);
		}
		float lse = b == none ? a : a == none ? b : l != l ? l : add_(top, mul_(log2_exact(l), ln_2()));
		sync(); // all have read both
		if (thread_index() == 0)
			store_global((float *)p.lse.data + t * p.lse.row + h * p.lse.col, lse);
	}
}
