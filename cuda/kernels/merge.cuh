// The states of the chunks of a row, merged in order: rules 6 to 8 of package
// kernel. A block of 128 threads has one row, a thread features d, d+128, ….
#pragma once

#include "exact.cuh"
#include "tensor.cuh"

enum { merge_threads = 128 };

DEV void merge_parts(const lc_attention_params &p) {
	const int each = lc_max_dim / merge_threads;
	int r = block_index() % p.part_rows, tid = thread_index();
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
