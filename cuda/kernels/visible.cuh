// Which keys of a tile a query sees. Intervals come from the plan, ready made;
// the masks that are no intervals are words of 64 keys.
#pragma once

#include "prims.cuh"

DEV int64_t floor_div(int64_t a, int64_t b) {
	int64_t q = a / b;
	return a % b < 0 ? q - 1 : q;
}

// span_bits sets the bits lo <= k < hi.
DEV uint64_t span_bits(int64_t lo, int64_t hi) {
	lo = lo < 0 ? 0 : lo;
	hi = hi > 64 ? 64 : hi;
	return lo >= hi ? 0 : ~0ull >> (64 - (hi - lo)) << lo;
}

// tree_bits: keys before the query tokens are open, the others as Batch.Tree.
DEV uint64_t tree_bits(const lc_attention_params &p, const lc_sequence *s, int64_t i, int64_t j0) {
	int64_t words = (load_const(&s->queries) + 63) / 64;
	const uint64_t *row = (const uint64_t *)p.tree + load_const(&s->tree_start) + (i - load_const(&s->i0)) * words;
	int64_t at = j0 - load_const(&s->i0); // tree column of bit 0
	if (at <= -64)
		return ~0ull;
	if (at < 0)
		return span_bits(0, -at) | load_const(row) << -at;
	int64_t k = at / 64;
	int shift = (int)(at % 64);
	if (k >= words)
		return 0;
	uint64_t w = load_const(row + k) >> shift;
	if (shift > 0 && k + 1 < words)
		w |= load_const(row + k + 1) << (64 - shift);
	return w;
}

DEV uint64_t block_bits(const lc_attention_params &p, const lc_sequence *s, int64_t i, int64_t j0, int kv_head) {
	int64_t row = load_const(&s->block_row) + floor_div(i, p.query_block) - load_const(&s->block_first);
	if (p.blocks_per_head)
		row += kv_head * load_const(&s->query_blocks);
	const int32_t *indptr = (const int32_t *)p.block_indptr + row, *list = (const int32_t *)p.block_indices;
	int lo = load_const(indptr), end = load_const(indptr + 1), hi = end;
	int64_t size = p.key_block, first = j0 / size;
	while (lo < hi) { // the first entry that is not before the tile
		int mid = lo + (hi - lo) / 2;
		if (load_const(list + mid) < first)
			lo = mid + 1;
		else
			hi = mid;
	}
	uint64_t w = 0;
	for (; lo < end; lo++) {
		int64_t at = load_const(list + lo) * size - j0;
		if (at >= 64)
			break;
		w |= span_bits(at, at + size);
	}
	return w;
}

// visible_keys is the word of the tile from key j0 for query index i, which
// sees the keys of range r in a Term.
DEV uint64_t visible_keys(const lc_attention_params &p, const lc_sequence *s, lc_range r, int64_t i, int64_t j0, int kv_head) {
	uint64_t w = span_bits(r.lo - j0, r.hi - j0);
	if (w != 0 && p.masks & lc_mask_tree)
		w &= tree_bits(p, s, i, j0);
	if (w != 0 && p.masks & lc_mask_blocks)
		w &= block_bits(p, s, i, j0, kv_head);
	return w;
}
