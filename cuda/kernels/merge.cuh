// The states of the chunks of a row, merged in order: rules 6 to 8 of package
// kernel. A block of 128 threads has one row, a thread features d, d+128, …, and
// finds the factors of one part of 128. A decode of 10⁶ keys has 2048 parts, in a
// chain of a product and a sum each; what it need not wait for comes before.
#pragma once

#include "exact.cuh"
#include "tensor.cuh"

enum { merge_threads = 128 };

// Merge is what a block of merge_parts shares: of up to 128 parts of its row.
struct Merge {
	float *top;   // [2][merge_threads] maxima
	float *a, *b; // [merge_threads] factors of what comes before, and of the part
	float *l;     // [merge_threads]
	float m, sum; // of the parts so far
};

DEV Merge start_merge() {
	float *top = (float *)shared_memory();
	float *a = top + 2 * merge_threads;
	return {top, a, a + merge_threads, a + 2 * merge_threads, max_start(), 0.0f};
}

// weigh_parts finds the factors of n parts, of which x and l are the maximum and
// the denominator of this thread's. A maximum is the same in whatever order it is
// found, so the chain of them is not waited for.
DEV void weigh_parts(Merge &s, int n, float x, float l) {
	int tid = thread_index();
	float own = x;
	if (tid == 0)
		x = max_(s.m, x);
	for (int k = 1, side = 0; k < merge_threads; k *= 2, side ^= merge_threads) {
		store_shared(s.top + side + tid, x);
		sync();
		if (tid >= k)
			x = max_(load_shared(s.top + side + tid - k), x);
	}
	sync();
	store_shared(s.top + tid, x);
	sync();
	Factors f = merge_factors(tid == 0 ? s.m : load_shared(s.top + tid - 1), own);
	store_shared(s.a + tid, f.a);
	store_shared(s.b + tid, f.b);
	store_shared(s.l + tid, l);
	s.m = load_shared(s.top + n - 1);
	sync();
	for (int k = 0; k < n; k++)
		s.sum = fma_(load_shared(s.l + k), load_shared(s.b + k), mul_(s.sum, load_shared(s.a + k)));
}

// add_parts merges n outputs, stride apart, with those before. So many are loaded
// before the first is waited for.
DEV float add_parts(const Merge &s, float o, const float *part, int64_t stride, int n) {
	const int run = 16;
	for (int k = 0; k < n; k += run) {
		float x[run];
		UNROLL for (int c = 0; c < run; c++) x[c] = k + c < n ? load_const(part + (k + c) * stride) : 0.0f;
		UNROLL for (int c = 0; c < run; c++)
			if (k + c < n)
				o = fma_(x[c], load_shared(s.b + k + c), mul_(o, load_shared(s.a + k + c)));
	}
	return o;
}

DEV void merge_parts(const lc_attention_params &p) {
	const int each = (lc_max_dim + merge_threads - 1) / merge_threads;
	int r = block_index() % p.part_rows, tid = thread_index();
	if (block_index() / p.part_rows >= load_const(&((const lc_counts *)p.counts)->merges))
		return;
	lc_item item = *((const lc_item *)p.merges + block_index() / p.part_rows);
	if (r >= item.tokens * item.heads)
		return;
	int64_t stride = (int64_t)p.part_rows * (p.part_dim + 2);
	const float *part = (const float *)p.parts + item.part * stride;
	Merge s = start_merge();
	float o[each];
	UNROLL for (int k = 0; k < each; k++) o[k] = 0.0f;
	for (int left = item.chunk1 - item.chunk0; left > 0; left -= merge_threads, part += merge_threads * stride) {
		int n = left < merge_threads ? left : (int)merge_threads;
		const float *ml = part + tid * stride + p.part_rows * p.part_dim + r;
		sync(); // the factors before are read
		weigh_parts(s, n, tid < n ? load_const(ml) : max_start(), tid < n ? load_const(ml + p.part_rows) : 0.0f);
		UNROLL for (int k = 0; k < each; k++) {
			int d = tid + merge_threads * k;
			if (d < p.value_dim)
				o[k] = add_parts(s, o[k], part + r * p.part_dim + d, stride, n);
		}
	}
	float m = s.m, l = s.sum;
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
