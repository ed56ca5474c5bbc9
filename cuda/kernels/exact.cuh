// The scalar functions of the Exact policy, bit for bit those of
// kernel/exact.go. No product that feeds a sum is written with operators: a
// compiler may not fuse what is an intrinsic.
#pragma once

#include "prims.cuh"

DEV float max_start() { return -1e30f; }
DEV float log2_e() { return 0x1.715476p+0f; }
DEV float ln_2() { return 0x1.62e43p-1f; }
DEV float minus_infinity() { return from_bits(0xff800000u); }

// exp2_exact is E.
DEV float exp2_exact(float x) {
	const float shift = 12582912.0f + 127.0f;
	float z = add_(x, shift);
	float r = sub_(x, sub_(z, shift));
	float q = fma_(from_bits(0x3AADDD00u), r, from_bits(0x3C1E7545u));
	q = fma_(q, r, from_bits(0x3D635BAAu));
	q = fma_(q, r, from_bits(0x3E75FCDEu));
	q = fma_(q, r, from_bits(0x3F317215u));
	q = fma_(q, r, 1.0f);
	q = mul_(q, from_bits(as_bits(z) << 23));
	return x >= -125.0f ? q : x < -125.0f ? 0.0f : x;
}

// log2_exact is L, of a normal x > 0.
DEV float log2_exact(float x) {
	uint32_t u = as_bits(x);
	int32_t k = (int32_t)(u >> 23) - 127;
	float f = from_bits((u & 0x7fffff) | 127u << 23);
	if (f > 0x1.6a09e6p+0f) {
		f = mul_(f, 0.5f);
		k++;
	}
	float s = div_(sub_(f, 1.0f), add_(f, 1.0f));
	float z = mul_(s, s);
	float p = fma_(z, 0x1.484b14p-2f, 0x1.a61762p-2f);
	p = fma_(p, z, 0x1.2776c6p-1f);
	p = fma_(p, z, 0x1.ec709ep-1f);
	p = fma_(p, z, 0x1.715476p+1f);
	return fma_(s, p, (float)k);
}

// lse_exact is the natural logarithm of 2^m·l, −Inf where l is 0.
DEV float lse_exact(float m, float l) {
	if (l == 0.0f)
		return minus_infinity();
	if (l != l)
		return l;
	return mul_(add_(m, log2_exact(l)), ln_2());
}

// tanh_exact is T.
DEV float tanh_exact(float x) {
	float a = from_bits(as_bits(x) & 0x7fffffffu);
	if (a < 0.625f) {
		float z = mul_(x, x);
		float p = fma_(0x1.29e352p-9f, z, -0x1.10d6ecp-7f);
		p = fma_(p, z, 0x1.64934cp-6f);
		p = fma_(p, z, -0x1.ba077p-5f);
		p = fma_(p, z, 0x1.1110e6p-3f);
		p = fma_(p, z, -0x1.555556p-2f);
		return fma_(mul_(x, z), p, x);
	}
	float e = exp2_exact(mul_(a, -0x1.715476p+1f));
	float t = div_(sub_(1.0f, e), add_(1.0f, e));
	return from_bits((as_bits(t) & 0x7fffffffu) | (as_bits(x) & 0x80000000u));
}

// Factors are what two states of maxima a and b are multiplied by when they
// merge, and the maximum of both, NaN if either is.
struct Factors {
	float top, a, b;
};

DEV Factors merge_factors(float a, float b) {
	float top = a != a ? a : b != b ? b : max_(a, b);
	return {top, exp2_exact(sub_(a, top)), exp2_exact(sub_(b, top))};
}
