// The machine: what kernels may use of it, each in a function of one line.
// Inline PTX stands here and nowhere else; under LONGCTX_SIM the same functions
// run on the host simulator.
#pragma once

#include "params.h"

#ifdef LONGCTX_SIM

#include <cmath>
#include <cstring>

#include "../sim/runtime.h"

#define DEV static inline
#define DEV_METHOD inline
#define UNROLL _Pragma("GCC unroll 16")
#define UNROLL_BY(n)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

DEV int thread_index() { return (int)sim::self->thread; }
DEV int block_index() { return (int)sim::block->id.x; }
DEV int grid_size() { return (int)sim::block->grid.x; }
DEV unsigned char *shared_memory() { return sim::block->shared; }

DEV void sync() { sim::barrier(0, 0, "__syncthreads"); }
DEV bool sync_or(bool p) { return sim::barrier_or(p) != 0; }
DEV void sync_warp() {
	sim::collective("__syncwarp", nullptr, nullptr, [](sim::Warp &w) { w.epoch++; });
}
DEV float shuffle_xor(float x, int mask) {
	struct In { float x; int mask; } in{x, mask};
	float out;
	sim::collective("shfl.bfly", &in, &out, [](sim::Warp &w) {
		for (int l = 0; l < 32; l++) {
			const In *from = (const In *)w.in[l ^ ((const In *)w.in[l])->mask];
			*(float *)w.out[l] = from->x;
		}
	});
	return out;
}

DEV float fma_(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEV float mul_(float a, float b) { return a * b; }
DEV float add_(float a, float b) { return a + b; }
DEV float sub_(float a, float b) { return a - b; }
DEV float div_(float a, float b) { return a / b; }
DEV float max_(float a, float b) { return b > a ? b : a; } // a number a
DEV float to_float(int64_t x) { return (float)x; }
DEV float to_float(double x) { return (float)x; }
DEV uint32_t as_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
DEV float from_bits(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

template <class T> DEV T load_shared(const T *p) { sim::shared(p, sizeof(T), false); return *p; }
template <class T> DEV void store_shared(T *p, T x) { sim::shared(p, sizeof(T), true); *p = x; }
template <class T> DEV T load_const(const T *p) { sim::global(p, sizeof(T)); return *p; }
template <class T> DEV T load_global(const T *p) { sim::global(p, sizeof(T)); return *p; }
template <class T> DEV void store_global(T *p, T x) { sim::global(p, sizeof(T)); *p = x; }


// A copy of 16 or 8 bytes from global to shared memory that lands when it is waited
// for by the thread that asked.
DEV void copy_async(void *to, const void *from) { sim::copy_async(to, from, 16, 16); }
DEV void copy_async8(void *to, const void *from) { sim::copy_async(to, from, 8, 8); }
DEV void copy_commit() { sim::copy_commit(); }
DEV void copy_wait() { sim::copy_wait(0); }
template <int N> DEV void copy_wait_but() { sim::copy_wait(N); } // the last N groups may still be on their way

DEV float widen_f16(uint16_t h) {
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 0x1f, frac = h & 0x3ff;
	if (exp == 0)
		return from_bits(as_bits((float)frac * 0x1p-24f) | sign);
	if (exp == 0x1f)
		return from_bits(sign | 0x7f800000 | frac << 13);
	return from_bits(sign | (exp + 127 - 15) << 23 | frac << 13);
}
DEV uint16_t narrow_f16(float x) {
	uint32_t u = as_bits(x), sign = u >> 16 & 0x8000;
	u &= 0x7fffffff;
	if (u > 0x7f800000)
		return 0x7fff;
	if (u >= 0x47800000)
		return sign | 0x7c00;
	if (u < 0x38800000)
		return sign | (as_bits(from_bits(u) + 0.5f) - as_bits(0.5f));
	u += 0xfff + (u >> 13 & 1);
	return sign | (u - ((127 - 15) << 23)) >> 13;
}

// KERNEL defines a kernel of one parameter struct.
#define KERNEL(name, type, threads, blocks, call)                                                      \
	static void name##_entry(const void *params) {                                                     \
		const type &p = *(const type *)params;                                                         \
		call;                                                                                          \
	}                                                                                                  \
	static const sim_kernel name##_kernel = {#name, name##_entry, 0, sizeof(type)};                    \
	static sim::Registration name##_registration(&name##_kernel);

#else

#define DEV static __device__ __forceinline__
#define DEV_METHOD __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define PRAGMA(x) _Pragma(#x)
#define UNROLL_BY(n) PRAGMA(unroll n)

DEV int thread_index() { return (int)threadIdx.x; }
DEV int block_index() { return (int)blockIdx.x; }
DEV int grid_size() { return (int)gridDim.x; }
extern __shared__ __align__(128) unsigned char dynamic_shared[];
DEV unsigned char *shared_memory() { return dynamic_shared; }

DEV void sync() { __syncthreads(); }
DEV bool sync_or(bool p) { return __syncthreads_or(p) != 0; }
DEV void sync_warp() { __syncwarp(); }
DEV float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

DEV float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEV float mul_(float a, float b) { return __fmul_rn(a, b); }
DEV float add_(float a, float b) { return __fadd_rn(a, b); }
DEV float sub_(float a, float b) { return __fsub_rn(a, b); }
DEV float div_(float a, float b) { return __fdiv_rn(a, b); }
DEV float max_(float a, float b) { return fmaxf(a, b); }
DEV float to_float(int64_t x) { return __ll2float_rn(x); }
DEV float to_float(double x) { return __double2float_rn(x); }
DEV uint32_t as_bits(float x) { return __float_as_uint(x); }
DEV float from_bits(uint32_t u) { return __uint_as_float(u); }

template <class T> DEV T load_shared(const T *p) { return *p; }
template <class T> DEV void store_shared(T *p, T x) { *p = x; }
template <class T> DEV T load_const(const T *p) { return __ldg(p); } // memory that no kernel under way writes
template <class T> DEV T load_global(const T *p) { return *p; }
template <class T> DEV void store_global(T *p, T x) { *p = x; }


DEV void copy_async(void *to, const void *from) {
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
DEV void copy_async8(void *to, const void *from) {
	asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
DEV void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
DEV void copy_wait() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
template <int N> DEV void copy_wait_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

DEV float widen_f16(uint16_t h) {
	float x;
	asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
	return x;
}
DEV uint16_t narrow_f16(float x) {
	uint16_t h;
	asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
	return h;
}

#define KERNEL(name, type, threads, blocks, call) \
	extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ type p) { call; }

#endif
