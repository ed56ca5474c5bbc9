// What is made of pages: their codes, their bounds, and bounds of their scores.
// All three read their input once and are bound by memory.
#pragma once

#include "exact.cuh"
#include "tensor.cuh"

// Extremes are the least and the largest of some values, NaN if one is.
struct Extremes {
	float lo, hi;

	DEV_METHOD void take(float x) {
		lo = lo != lo || x >= lo ? lo : x;
		hi = hi != hi || x <= hi ? hi : x;
	}
};

DEV Extremes nothing() { return {from_bits(0x7f800000u), minus_infinity()}; }

// page_value is an element of a page as rule 2 widens it.
DEV float page_value(const lc_tensor &t, const lc_scalars &scale, int64_t page, int64_t slot, int head, int d) {
	float x = load_element(t, page * t.row + slot * t.slot + head * t.head + d * t.dim);
	return scale.data ? mul_(x, load_scalar(scale, head, 0)) : x;
}

// page_bounds is rule 16, a feature of a head of a page a thread: neighbours
// read neighbouring features.
DEV void page_bounds(const lc_bounds_params &p, int threads) {
	int64_t n = (int64_t)p.pages * p.heads * p.features;
	for (int64_t i = (int64_t)block_index() * threads + thread_index(); i < n; i += (int64_t)grid_size() * threads) {
		int d = (int)(i % p.features), h = (int)(i / p.features % p.heads);
		int64_t k = i / p.features / p.heads, page = load_const((const int32_t *)p.list + k);
		int rows = load_const((const int32_t *)p.rows + k);
		Extremes e = nothing();
		UNROLL_BY(4) for (int slot = 0; slot < rows; slot++) e.take(page_value(p.key, p.scale, page, slot, h, d));
		store_element(p.least, page * p.least.row + h * p.least.head + d * p.least.dim, add_(e.lo, 0.0f));
		store_element(p.most, page * p.most.row + h * p.most.head + d * p.most.dim, add_(e.hi, 0.0f));
	}
}

// page_scores is rule 17. A block takes 64 pages of a sequence and KV head
// against 16 rows (query token and head of the group) at a time. Bounds come
// through shared memory (lc_scores_shared bytes), 32 features at a time, so that
// neighbouring threads read neighbouring features.
enum { scores_threads = 256, scores_pages = 64, scores_rows = 16, scores_features = 32 };

// score_piece adds to the sums of a thread what 32 features of one side give.
DEV void score_piece(const lc_scores_params &p, bool most, int d0, const int32_t *pages, int have, int head, int64_t t0, int r0, int rows, float *sum) {
	enum { row = scores_features + 1, each = scores_rows / (scores_threads / scores_pages) };
	float *bound = (float *)shared_memory(), *query = bound + scores_pages * row;
	const lc_tensor &side = most ? p.most : p.least;
	sync(); // the last piece is read
	for (int k = thread_index(); k < (scores_pages + scores_rows) * scores_features; k += scores_threads) {
		int at = k / scores_features, d = d0 + k % scores_features;
		float x = 0.0f;
		if (at < have && d < p.features)
			x = load_element(side, load_const(pages + at) * side.row + head * side.head + d * side.dim);
		int r = r0 + at - scores_pages;
		if (at >= scores_pages && r < rows && d < p.features) {
			float q = load_element(p.query, (t0 + r / p.group) * p.query.row + (head * p.group + r % p.group) * p.query.head + d * p.query.dim);
			x = q != q || (most ? q > 0.0f : q < 0.0f) ? q : 0.0f;
		}
		store_shared(bound + at * row + k % scores_features, x);
	}
	sync();
	int page = thread_index() % scores_pages, g = thread_index() / scores_pages;
	UNROLL_BY(4) for (int d = 0; d < scores_features; d++) {
		float x = load_shared(bound + page * row + d);
		UNROLL for (int k = 0; k < each; k++) sum[k] = fma_(x, load_shared(query + (g * each + k) * row + d), sum[k]);
	}
}

DEV void page_scores(const lc_scores_params &p) {
	enum { each = scores_rows / (scores_threads / scores_pages) };
	for (int64_t i = block_index(); i < p.items; i += grid_size()) {
		int64_t tile = i % p.tiles;
		int head = (int)(i / p.tiles % p.heads), s = (int)(i / p.tiles / p.heads);
		const int32_t *starts = (const int32_t *)p.query_start + s, *indptr = (const int32_t *)p.indptr + s;
		int64_t t0 = load_const(starts), first = load_const(indptr) + tile * scores_pages, left = load_const(indptr + 1) - first;
		int have = left < 0 ? 0 : left < scores_pages ? (int)left : (int)scores_pages;
		int rows = (int)(load_const(starts + 1) - t0) * p.group;
		int page = thread_index() % scores_pages, g = thread_index() / scores_pages;
		int64_t n = tile * scores_pages + page;
		for (int r0 = 0; r0 < rows; r0 += scores_rows) {
			float sum[each];
			UNROLL for (int k = 0; k < each; k++) sum[k] = 0.0f;
			UNROLL_BY(1) for (int side = 0; side < 2 && have > 0; side++)
				for (int d0 = 0; d0 < p.features; d0 += scores_features)
					score_piece(p, side == 0, d0, (const int32_t *)p.indices + first, have, head, t0, r0, rows, sum);
			UNROLL for (int k = 0; k < each; k++) {
				int r = r0 + g * each + k;
				if (r < rows && n < p.columns)
					store_element(p.out, (t0 + r / p.group) * p.out.row + (head * p.group + r % p.group) * p.out.head + n * p.out.dim,
						page < have ? mul_(sum[k], p.scale) : minus_infinity());
			}
		}
	}
}

// Group is the scale and zero of a group: rule 13.
struct Group {
	uint16_t scale, zero;

	DEV_METHOD bool held() const { return (scale & 0x7c00) != 0x7c00 && (zero & 0x7c00) != 0x7c00; }
};

DEV Group group_of(Extremes e, float levels) {
	float lo = add_(e.lo, 0.0f), hi = add_(e.hi, 0.0f);
	return {narrow_f16(div_(sub_(hi, lo), levels)), narrow_f16(lo)};
}

// code_of is rule 14.
DEV uint32_t code_of(float x, float scale, float zero, float levels) {
	if (scale == 0.0f)
		return 0;
	float y = div_(sub_(x, zero), scale);
	y = y > 0.0f ? y : 0.0f;
	y = y < levels ? y : levels;
	return as_bits(add_(y, 0x1p23f)) & 0xff; // the addition rounds to an integer
}

// coded_features is the features whose codes are byte b of a row of n: one, or
// the two of INT4 whose nibbles it holds.
DEV int2 coded_features(int codec, int b, int n) {
	if (codec != lc_int4)
		return {b, b};
	int w = b / 4, k = 2 * (b % 4), words = n / 8;
	return {k * words + w, (k + 1) * words + w};
}

DEV uint32_t code_byte(const lc_encode_params &p, int64_t page, int64_t slot, int head, int2 d, float2 scale, float2 zero, float levels) {
	uint32_t u = code_of(page_value(p.rows, p.scale, page, slot, head, d.x), scale.x, zero.x, levels);
	if (p.coded.codec == lc_int4)
		u |= code_of(page_value(p.rows, p.scale, page, slot, head, d.y), scale.y, zero.y, levels) << 4;
	return u;
}

// encode_keys codes pages of keys, a byte of a row in all slots a thread. A
// group that cannot be held clears the page's flag, whoever else does too.
DEV void encode_keys(const lc_encode_params &p, int threads) {
	int bytes = p.coded.codec == lc_int4 ? p.features / 2 : p.features;
	float levels = p.coded.codec == lc_int4 ? 15.0f : 255.0f;
	int64_t n = (int64_t)p.pages * p.heads * bytes;
	const lc_coded &c = p.coded;
	for (int64_t i = (int64_t)block_index() * threads + thread_index(); i < n; i += (int64_t)grid_size() * threads) {
		int b = (int)(i % bytes), h = (int)(i / bytes % p.heads);
		int64_t k = i / bytes / p.heads, src = load_const((const int32_t *)p.src + k), dst = load_const((const int32_t *)p.dst + k);
		int2 d = coded_features(c.codec, b, p.features);
		Extremes e = nothing(), f = nothing();
		UNROLL_BY(2) for (int slot = 0; slot < p.slots; slot++) {
			e.take(page_value(p.rows, p.scale, src, slot, h, d.x));
			if (d.y != d.x)
				f.take(page_value(p.rows, p.scale, src, slot, h, d.y));
		}
		Group x = group_of(e, levels), y = d.y != d.x ? group_of(f, levels) : x;
		if (!x.held() || !y.held()) {
			store_global((uint8_t *)p.encoded + k, (uint8_t)0);
			continue;
		}
		int64_t to = dst * c.scale.row + h * c.scale.head, at = dst * c.zero.row + h * c.zero.head;
		store_global((uint16_t *)c.scale.data + to + d.x, x.scale);
		store_global((uint16_t *)c.zero.data + at + d.x, x.zero);
		if (d.y != d.x) {
			store_global((uint16_t *)c.scale.data + to + d.y, y.scale);
			store_global((uint16_t *)c.zero.data + at + d.y, y.zero);
		}
		float2 scale = {widen_f16(x.scale), widen_f16(y.scale)}, zero = {widen_f16(x.zero), widen_f16(y.zero)};
		for (int slot = 0; slot < p.slots; slot++) {
			uint32_t u = code_byte(p, src, slot, h, d, scale, zero, levels);
			store_global((uint8_t *)c.codes.data + dst * c.codes.row + slot * c.codes.slot + h * c.codes.head + b, (uint8_t)u);
		}
	}
}

// encode_values codes pages of values. A block takes a head of a page: groups
// first, a group a thread, then bytes, which may need two groups.
DEV void encode_values(const lc_encode_params &p, int threads) {
	const lc_coded &c = p.coded;
	int groups = p.features / c.group, bytes = c.codec == lc_int4 ? p.features / 2 : p.features;
	float levels = c.codec == lc_int4 ? 15.0f : 255.0f;
	for (int64_t i = block_index(); i < (int64_t)p.pages * p.heads; i += grid_size()) {
		int h = (int)(i % p.heads);
		int64_t k = i / p.heads, src = load_const((const int32_t *)p.src + k), dst = load_const((const int32_t *)p.dst + k);
		int64_t scales = dst * c.scale.row + h * c.scale.head, zeros = dst * c.zero.row + h * c.zero.head;
		bool held = true;
		for (int64_t x = thread_index(); x < (int64_t)p.slots * groups; x += threads) {
			int slot = (int)(x / groups), g = (int)(x % groups);
			Extremes e = nothing();
			UNROLL_BY(4) for (int d = 0; d < c.group; d++) e.take(page_value(p.rows, p.scale, src, slot, h, g * c.group + d));
			Group y = group_of(e, levels);
			held &= y.held();
			store_global((uint16_t *)c.scale.data + scales + slot * c.scale.slot + g, y.scale);
			store_global((uint16_t *)c.zero.data + zeros + slot * c.zero.slot + g, y.zero);
		}
		if (sync_or(!held)) { // and the groups are there
			if (thread_index() == 0)
				store_global((uint8_t *)p.encoded + k, (uint8_t)0);
			continue;
		}
		for (int64_t x = thread_index(); x < (int64_t)p.slots * bytes; x += threads) {
			int slot = (int)(x / bytes), b = (int)(x % bytes);
			int2 d = coded_features(c.codec, b, p.features);
			const uint16_t *s = (const uint16_t *)c.scale.data + scales + slot * c.scale.slot, *z = (const uint16_t *)c.zero.data + zeros + slot * c.zero.slot;
			float2 scale = {widen_f16(load_global(s + d.x / c.group)), widen_f16(load_global(s + d.y / c.group))};
			float2 zero = {widen_f16(load_global(z + d.x / c.group)), widen_f16(load_global(z + d.y / c.group))};
			uint32_t u = code_byte(p, src, slot, h, d, scale, zero, levels);
			store_global((uint8_t *)c.codes.data + dst * c.codes.row + slot * c.codes.slot + h * c.codes.head + b, (uint8_t)u);
		}
	}
}
