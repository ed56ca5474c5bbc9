// Rotation of rows: rule 3 of package kernel.
#pragma once

#include "tensor.cuh"

// table_row is RowMap.Row of a position, by the map of a Term.
DEV int64_t table_row(uint64_t maps, int term, int64_t x) {
	const int32_t *at = (const int32_t *)((const lc_row_map *)maps + term);
	lc_row_map m = {load_const(at), load_const(at + 1), load_const(at + 2), load_const(at + 3), load_const(at + 4)};
	if (m.mod > 0) {
		int64_t r = x % m.mod;
		x = r < 0 ? r + m.mod : r;
	}
	if (m.div > 1) {
		int64_t q = x / m.div;
		x = x % m.div < 0 ? q - 1 : q;
	}
	x -= m.first;
	x = x < 0 ? 0 : x;
	return m.base + (x >= m.count ? m.count - 1 : x);
}

// rotate_pair turns pair k of a row in shared memory by row `at` of the table.
DEV void rotate_pair(const lc_attention_params &p, float *row, int k, int64_t at) {
	int half = p.rotary_dim / 2;
	float c = load_const((const float *)p.cos + at * half + k), s = load_const((const float *)p.sin + at * half + k);
	float *a = row + (p.interleaved ? 2 * k : k), *b = p.interleaved ? a + 1 : a + half;
	float x = load_shared(a), y = load_shared(b);
	store_shared(a, fma_(x, c, -mul_(y, s)));
	store_shared(b, fma_(y, c, mul_(x, s)));
}

// rotate_rows turns rows of a tensor in place, a pair a thread.
DEV void rotate_rows(const lc_rotate_params &p, int threads) {
	int half = p.dim / 2;
	int64_t n = (int64_t)p.tokens * p.heads * half;
	for (int64_t i = (int64_t)block_index() * threads + thread_index(); i < n; i += (int64_t)grid_size() * threads) {
		int64_t k = i % half, h = i / half % p.heads, t = i / half / p.heads;
		if (load_const((const int32_t *)p.rows + t) < 0)
			continue;
		float c = load_const((const float *)p.cos + t * half + k), s = load_const((const float *)p.sin + t * half + k);
		if (p.inverse)
			s = -s;
		int64_t a = t * p.x.row + h * p.x.head + (p.interleaved ? 2 * k : k) * p.x.dim, b = a + (p.interleaved ? 1 : half) * p.x.dim;
		float x = load_element<false>(p.x, a), y = load_element<false>(p.x, b);
		store_element(p.x, a, fma_(x, c, -mul_(y, s)));
		store_element(p.x, b, fma_(y, c, mul_(x, s)));
	}
}
