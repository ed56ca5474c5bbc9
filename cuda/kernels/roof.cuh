// What the device can do at most: the roofs that benchmarks are held against.
#pragma once

#include "prims.cuh"

enum { roof_threads = 256, roof_chains = 16 };

// roof_fma does 16 independent chains of n fused multiply-adds a thread, in
// registers: two FLOP each.
DEV void roof_fma(const lc_roof_params &p) {
	float x[roof_chains], a = 1.0f + 0x1p-20f * thread_index(), b = 0x1p-30f;
	UNROLL for (int k = 0; k < roof_chains; k++) x[k] = (float)k;
	UNROLL_BY(4) for (int64_t i = 0; i < p.n; i++)
		UNROLL for (int k = 0; k < roof_chains; k++) x[k] = fma_(x[k], a, b);
	float sum = 0.0f;
	UNROLL for (int k = 0; k < roof_chains; k++) sum = add_(sum, x[k]);
	store_global((float *)p.out + (int64_t)block_index() * roof_threads + thread_index(), sum);
}

// roof_read reads n units of 16 bytes, each once.
DEV void roof_read(const lc_roof_params &p) {
	uint32_t sum = 0;
	int64_t step = (int64_t)grid_size() * roof_threads;
	UNROLL_BY(8) for (int64_t i = (int64_t)block_index() * roof_threads + thread_index(); i < p.n; i += step) {
		uint4 u = load_const((const uint4 *)p.data + i);
		sum ^= u.x ^ u.y ^ u.z ^ u.w;
	}
	store_global((uint32_t *)p.out + (int64_t)block_index() * roof_threads + thread_index(), sum);
}
