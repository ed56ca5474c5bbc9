// What fills and copies pages of a cache.
#pragma once

#include "tensor.cuh"

// append_rows stores rows in slots, an element a thread: bit for bit where the
// types agree, rounded where they differ, FP8 by rule 12 of package kernel.
DEV void append_rows(const lc_append_params &p, int threads) {
	int64_t n = (int64_t)p.tokens * p.heads * p.features;
	for (int64_t i = (int64_t)block_index() * threads + thread_index(); i < n; i += (int64_t)grid_size() * threads) {
		int64_t d = i % p.features, h = i / p.features % p.heads, t = i / p.features / p.heads;
		int64_t slot = load_const((const int32_t *)p.slots + t);
		if (slot < 0)
			continue;
		uint32_t u = load_bits(p.rows, t * p.rows.row + h * p.rows.head + d * p.rows.dim);
		if (p.rows.dtype != p.cache.dtype) {
			float x = widen(p.rows.dtype, u);
			if (p.scale.data)
				x = mul_(x, div_(1.0f, load_scalar(p.scale, h, 0)));
			u = narrow(p.cache.dtype, x);
		}
		store_bits(p.cache, slot / p.page_size * p.cache.row + slot % p.page_size * p.cache.slot + h * p.cache.head + d * p.cache.dim, u);
	}
}

// copy_pages copies pages bit for bit, an element or 16 bytes a thread.
DEV void copy_pages(const lc_copy_params &p, int threads) {
	int bytes = element_bytes(p.cache.dtype), units = p.cache.vector == 16 ? p.features * bytes / 16 : p.features;
	int64_t n = (int64_t)p.pages * p.slots * p.heads * units;
	for (int64_t i = (int64_t)block_index() * threads + thread_index(); i < n; i += (int64_t)grid_size() * threads) {
		int64_t u = i % units, h = i / units % p.heads, slot = i / units / p.heads % p.slots, k = i / units / p.heads / p.slots;
		int64_t at = slot * p.cache.slot + h * p.cache.head;
		int64_t from = load_const((const int32_t *)p.src + k) * p.cache.row + at, to = load_const((const int32_t *)p.dst + k) * p.cache.row + at;
		char *base = (char *)p.cache.data;
		if (p.cache.vector == 16)
			store_global((uint4 *)(base + to * bytes) + u, load_global((const uint4 *)(base + from * bytes) + u));
		else
			store_bits(p.cache, to + u * p.cache.dim, load_bits<false>(p.cache, from + u * p.cache.dim));
	}
}

DEV int64_t slot_of(const lc_gather_params &p, int64_t slot) { return slot / p.page_size * p.cache.row + slot % p.page_size * p.cache.slot; }

// gather_rows makes rows of other rows, an element or 16 bytes a thread: rule 19 of
// package kernel.
DEV void gather_rows(const lc_gather_params &p, int threads) {
	const lc_tensor &c = p.cache;
	int bytes = element_bytes(c.dtype), units = c.vector == 16 && p.copies ? p.features * bytes / 16 : p.features;
	int64_t n = (int64_t)p.rows * p.heads * units;
	for (int64_t i = (int64_t)block_index() * threads + thread_index(); i < n; i += (int64_t)grid_size() * threads) {
		int64_t u = i % units, h = i / units % p.heads, k = i / units / p.heads;
		const int32_t *start = (const int32_t *)p.start + k, *src = (const int32_t *)p.src;
		int first = load_const(start), end = load_const(start + 1);
		int64_t to = slot_of(p, load_const((const int32_t *)p.dst + k)) + h * c.head, from = slot_of(p, load_const(src + first)) + h * c.head;
		if (units != p.features) {
			char *base = (char *)c.data;
			store_global((uint4 *)(base + to * bytes) + u, load_global((const uint4 *)(base + from * bytes) + u));
			continue;
		}
		uint32_t x = load_bits<false>(c, from + u * c.dim);
		float w = p.weights ? load_const((const float *)p.weights + first) : 1.0f;
		if (end > first + 1 || w != 1.0f) {
			float sum = fma_(widen(c.dtype, x), w, 0.0f);
			for (int j = first + 1; j < end; j++) {
				w = p.weights ? load_const((const float *)p.weights + j) : 1.0f;
				sum = fma_(widen(c.dtype, load_bits<false>(c, slot_of(p, load_const(src + j)) + h * c.head + u * c.dim)), w, sum);
			}
			x = narrow(c.dtype, sum);
		}
		store_bits(c, to + u * c.dim, x);
	}
}
