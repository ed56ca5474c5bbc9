// The largest scores of rows: rule 18 of package kernel. A block takes a row. It
// finds the rank of the k-th largest bit by bit, counting what lies at or above
// it: 32 passes over a row, which stays in the second-level cache; nothing is
// sorted and nothing is added atomically, so the order is that of the indices.
#pragma once

#include "exact.cuh"
#include "tensor.cuh"

enum { topk_threads = 256, topk_warps = topk_threads / 32 };

// score_rank orders scores as integers: 0 for what is never chosen.
DEV uint32_t score_rank(float x) {
	if (!(x >= -0x1.fffffep127f))
		return 0;
	uint32_t u = as_bits(add_(x, 0.0f));
	return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}

struct TopK {
	const lc_topk_params &p;
	int *counts; // [topk_threads] and [topk_warps] of shared memory
	int64_t at;  // of the row
	int n;

	DEV_METHOD TopK(const lc_topk_params &params) : p(params) { counts = (int *)shared_memory(); }

	DEV_METHOD uint32_t rank(int j) const { return score_rank(load_const((const float *)p.scores.data + at + j * p.scores.dim)); }

	// sum adds up x of all threads; counts are exact in float.
	DEV_METHOD int sum(int x) {
		float total = (float)x;
		UNROLL for (int mask = 16; mask > 0; mask /= 2) total = add_(total, shuffle_xor(total, mask));
		sync(); // the last sums are read
		if (thread_index() % 32 == 0)
			store_shared(counts + topk_threads + thread_index() / 32, (int)total);
		sync();
		int all = 0;
		UNROLL for (int k = 0; k < topk_warps; k++) all += load_shared(counts + topk_threads + k);
		return all;
	}

	// from is how many ranks are at least x.
	DEV_METHOD int from(uint32_t x) {
		int c = 0;
		UNROLL_BY(4) for (int j = thread_index(); j < n; j += topk_threads) c += rank(j) >= x;
		return sum(c);
	}

	// before is the sum of x of the threads before this one.
	DEV_METHOD int before(int x) {
		sync();
		store_shared(counts + thread_index(), x);
		sync();
		if (thread_index() == 0)
			for (int k = 0, total = 0; k < topk_threads; k++) {
				int y = load_shared(counts + k);
				store_shared(counts + k, total);
				total += y;
			}
		sync();
		return load_shared(counts + thread_index());
	}

	DEV_METHOD void row(int64_t i) {
		int64_t token = i / p.heads;
		at = token * p.scores.row + i % p.heads * p.scores.head;
		n = p.counts ? load_const((const int32_t *)p.counts + token) : p.n;
		int have = from(1), k = have < p.k ? have : p.k;
		uint32_t least = 0;
		UNROLL_BY(1) for (int bit = 31; bit >= 0 && k > 0; bit--)
			if (from(least | 1u << bit) >= k)
				least |= 1u << bit;
		if (k == 0)
			least = 0xffffffffu; // no score has it
		int ties = k - (k > 0 ? from(least + 1) : 0);
		// each thread has a run of indices, so that the order is kept
		int each = (n + topk_threads - 1) / topk_threads, first = thread_index() * each, end = first + each < n ? first + each : n;
		int larger = 0, equal = 0;
		for (int j = first; j < end; j++) {
			uint32_t x = rank(j);
			larger += x > least, equal += x == least;
		}
		int ahead = before(larger), same = before(equal);
		int32_t *out = (int32_t *)p.out + i * p.k;
		for (int j = first; j < end; j++) {
			uint32_t x = rank(j);
			if (x > least || (x == least && same < ties))
				store_global(out + ahead + (same < ties ? same : ties), (int32_t)j);
			ahead += x > least, same += x == least;
		}
		for (int j = k + thread_index(); j < p.k; j += topk_threads) store_global(out + j, (int32_t)-1);
	}
};

DEV void topk_rows(const lc_topk_params &p) {
	TopK a(p);
	for (int64_t i = block_index(); i < p.rows; i += grid_size()) a.row(i);
}
