// Reading and writing tensors of any element type and stride, in float32.
#pragma once

#include "prims.cuh"

DEV float widen_bf16(uint16_t h) { return from_bits((uint32_t)h << 16); }

DEV uint16_t narrow_bf16(float x) {
	uint32_t u = as_bits(x);
	return x != x ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

DEV float widen_f8e4m3(uint8_t b) {
	uint32_t sign = (uint32_t)(b & 0x80) << 24;
	if ((b & 0x7f) == 0x7f)
		return from_bits(sign | 0x7fc00000u);
	// the bits as a float32 of too small an exponent; the product is exact
	return mul_(from_bits(sign | (uint32_t)(b & 0x7f) << 20), 0x1p120f);
}

DEV float widen_f8e5m2(uint8_t b) { return widen_f16((uint16_t)(b << 8)); }

DEV float4 zeros() { return {0.0f, 0.0f, 0.0f, 0.0f}; }

// narrow_f8 rounds to a type of frac bits of fraction, of an exponent of the
// given bias and of the code largest for its largest number: rule 12.
DEV uint8_t narrow_f8(float x, uint32_t frac, uint32_t bias, uint32_t largest) {
	uint32_t u = as_bits(x), sign = u >> 24 & 0x80;
	u &= 0x7fffffff;
	if (u > 0x7f800000)
		return sign | 0x7f;
	if (u < (127 - bias + 1) << 23) { // subnormal: the addition rounds
		uint32_t add = (127 + 23 + 1 - bias - frac) << 23;
		return sign | (as_bits(add_(from_bits(u), from_bits(add))) - add);
	}
	uint32_t drop = 23 - frac;
	u += (1u << (drop - 1)) - 1 + (u >> drop & 1);
	u = (u - ((127 - bias) << 23)) >> drop;
	return sign | (u < largest ? u : largest);
}

template <bool Const, class T> DEV T load_from(const T *x) { return Const ? load_const(x) : load_global(x); }

// load_bits is an element as it is stored. Memory that the kernel writes too
// must not go through the cache for constants.
template <bool Const = true> DEV uint32_t load_bits(const lc_tensor &t, int64_t at) {
	if (t.dtype == lc_f32)
		return load_from<Const>((const uint32_t *)t.data + at);
	if (t.dtype <= lc_bf16)
		return load_from<Const>((const uint16_t *)t.data + at);
	return load_from<Const>((const uint8_t *)t.data + at);
}

DEV void store_bits(const lc_tensor &t, int64_t at, uint32_t u) {
	if (t.dtype == lc_f32)
		store_global((uint32_t *)t.data + at, u);
	else if (t.dtype <= lc_bf16)
		store_global((uint16_t *)t.data + at, (uint16_t)u);
	else
		store_global((uint8_t *)t.data + at, (uint8_t)u);
}

DEV float widen(int dtype, uint32_t u) {
	switch (dtype) {
	case lc_f32:
		return from_bits(u);
	case lc_f16:
		return widen_f16((uint16_t)u);
	case lc_bf16:
		return widen_bf16((uint16_t)u);
	case lc_f8e4m3:
		return widen_f8e4m3((uint8_t)u);
	case lc_f8e5m2:
		return widen_f8e5m2((uint8_t)u);
	}
	return (float)u;
}

DEV uint32_t narrow(int dtype, float x) {
	switch (dtype) {
	case lc_f16:
		return narrow_f16(x);
	case lc_bf16:
		return narrow_bf16(x);
	case lc_f8e4m3:
		return narrow_f8(x, 3, 7, 0x7e);
	case lc_f8e5m2:
		return narrow_f8(x, 2, 15, 0x7b);
	}
	return as_bits(x);
}

template <bool Const = true> DEV float load_element(const lc_tensor &t, int64_t at) {
	return widen(t.dtype, load_bits<Const>(t, at));
}

DEV int element_bytes(int dtype) { return dtype == lc_f32 ? 4 : dtype <= lc_bf16 ? 2 : 1; }

// widen4 is elements 4k … 4k+3 of 16 bytes of a type of 16 or 8 bits.
DEV float4 widen4(int dtype, uint4 u, int k) {
	if (dtype <= lc_bf16) {
		uint32_t a = k ? u.z : u.x, b = k ? u.w : u.y;
		if (dtype == lc_bf16)
			return {from_bits(a << 16), from_bits(a & 0xffff0000u), from_bits(b << 16), from_bits(b & 0xffff0000u)};
		return {widen_f16((uint16_t)a), widen_f16((uint16_t)(a >> 16)), widen_f16((uint16_t)b), widen_f16((uint16_t)(b >> 16))};
	}
	uint32_t a = k == 0 ? u.x : k == 1 ? u.y : k == 2 ? u.z : u.w;
	if (dtype == lc_f8e4m3)
		return {widen_f8e4m3((uint8_t)a), widen_f8e4m3((uint8_t)(a >> 8)), widen_f8e4m3((uint8_t)(a >> 16)), widen_f8e4m3((uint8_t)(a >> 24))};
	return {widen_f8e5m2((uint8_t)a), widen_f8e5m2((uint8_t)(a >> 8)), widen_f8e5m2((uint8_t)(a >> 16)), widen_f8e5m2((uint8_t)(a >> 24))};
}

DEV float4 scaled(float4 x, float f) { return {mul_(x.x, f), mul_(x.y, f), mul_(x.z, f), mul_(x.w, f)}; }

DEV bool finite4(float4 x) {
	return sub_(x.x, x.x) == 0.0f && sub_(x.y, x.y) == 0.0f && sub_(x.z, x.z) == 0.0f && sub_(x.w, x.w) == 0.0f;
}

// load4 is features d … d+3 of the row that begins at element at, of n features
// in all; zeros past them. d is a multiple of 4.
template <bool Const = true> DEV float4 load4(const lc_tensor &t, int64_t at, int d, int n) {
	if (d >= n)
		return zeros();
	at += d * t.dim;
	if (t.vector < 4) {
		float4 x = zeros();
		x.x = load_element<Const>(t, at);
		if (d + 1 < n)
			x.y = load_element<Const>(t, at + t.dim);
		if (d + 2 < n)
			x.z = load_element<Const>(t, at + 2 * t.dim);
		if (d + 3 < n)
			x.w = load_element<Const>(t, at + 3 * t.dim);
		return x;
	}
	if (t.dtype == lc_f32)
		return load_from<Const>((const float4 *)((const float *)t.data + at));
	if (t.dtype <= lc_bf16) {
		uint2 u = load_from<Const>((const uint2 *)((const uint16_t *)t.data + at));
		return widen4(t.dtype, {u.x, u.y, 0, 0}, 0);
	}
	return widen4(t.dtype, {load_from<Const>((const uint32_t *)((const uint8_t *)t.data + at)), 0, 0, 0}, 0);
}

DEV void store_element(const lc_tensor &t, int64_t at, float x) { store_bits(t, at, narrow(t.dtype, x)); }

// store4 is the opposite of load4, for F32, F16 and BF16.
DEV void store4(const lc_tensor &t, int64_t at, int d, int n, float4 x) {
	if (d >= n)
		return;
	at += d * t.dim;
	if (t.vector < 4) {
		store_element(t, at, x.x);
		if (d + 1 < n)
			store_element(t, at + t.dim, x.y);
		if (d + 2 < n)
			store_element(t, at + 2 * t.dim, x.z);
		if (d + 3 < n)
			store_element(t, at + 3 * t.dim, x.w);
		return;
	}
	if (t.dtype == lc_f32) {
		store_global((float4 *)((float *)t.data + at), x);
		return;
	}
	uint16_t a, b, c, e;
	if (t.dtype == lc_f16)
		a = narrow_f16(x.x), b = narrow_f16(x.y), c = narrow_f16(x.z), e = narrow_f16(x.w);
	else
		a = narrow_bf16(x.x), b = narrow_bf16(x.y), c = narrow_bf16(x.z), e = narrow_bf16(x.w);
	uint2 u = {a | (uint32_t)b << 16, c | (uint32_t)e << 16};
	store_global((uint2 *)((uint16_t *)t.data + at), u);
}

DEV float load_scalar(const lc_scalars &s, int64_t i, int64_t k) {
	return load_const((const float *)s.data + i * s.row + k * s.col);
}

// load_code is the value of feature d of a row of a coded page, of n features:
// rules 2 and 14 of package kernel.
DEV float load_code(const lc_coded &c, int64_t page, int64_t slot, int head, int d, int n) {
	int byte = d, shift = 0, levels = 255;
	if (c.codec == lc_int4) {
		int k = d / (n / 8), w = d % (n / 8);
		byte = 4 * w + k / 2, shift = 4 * (k % 2), levels = 15;
	}
	int64_t at = page * c.codes.row + slot * c.codes.slot + head * c.codes.head + byte;
	int code = load_const((const uint8_t *)c.codes.data + at) >> shift & levels;
	int group = c.group ? d / c.group : d;
	int64_t s = page * c.scale.row + slot * c.scale.slot + head * c.scale.head + group;
	int64_t z = page * c.zero.row + slot * c.zero.slot + head * c.zero.head + group;
	float scale = widen_f16(load_const((const uint16_t *)c.scale.data + s));
	return add_(mul_((float)code, scale), widen_f16(load_const((const uint16_t *)c.zero.data + z)));
}

// Place is where a key lies: a row, or a slot of a page; of a coded page row is
// −1 − page.
typedef int2 Place;

// load_key4 is features d … d+3 of a key or value at a place.
DEV float4 load_key4(const lc_tensor &t, const lc_coded &c, Place at, int head, int d, int n, float scale) {
	if (at.x >= 0) {
		float4 x = load4(t, at.x * t.row + at.y * t.slot + head * t.head, d, n);
		return t.dtype >= lc_f8e4m3 ? scaled(x, scale) : x;
	}
	float4 x = zeros();
	int64_t page = -1 - (int64_t)at.x;
	if (d < n)
		x.x = load_code(c, page, at.y, head, d, n);
	if (d + 1 < n)
		x.y = load_code(c, page, at.y, head, d + 1, n);
	if (d + 2 < n)
		x.z = load_code(c, page, at.y, head, d + 2, n);
	if (d + 3 < n)
		x.w = load_code(c, page, at.y, head, d + 3, n);
	return x;
}
